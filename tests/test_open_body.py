"""The body that ships: a closed, symmetric skin that does not run into itself, in any
shape, and keeps its flesh when it bends."""

import numpy as np
import pytest

from hmr_nb.basics.files import shipped
from hmr_nb.basics.keypoints import SMPL_JOINTS, keypoint_set
from hmr_nb.body.open_body import open_body
from hmr_nb.making.body_shapes import INSIDE, ON_SKIN, SAME
from hmr_nb.making.field import body_field, to_surface
from hmr_nb.making.open_body import save_open_body
from hmr_nb.making.skin import JOINT_MIRROR, joint_rotations, linear_skin
from hmr_nb.making.surface import (
    crossing_faces,
    half_surface,
    mirror_half,
    remesh,
    volume,
)

FLIP = np.array([-1, 1, 1])


@pytest.fixture(scope="module")
def body():
    return open_body()


@pytest.fixture(scope="module")
def V(body):
    return body.v_template.astype(float)


def posed(body, betas=None, correct=True, **degrees):
    R = joint_rotations(**degrees)
    V = body.v_template + (body.shapedirs @ betas if betas is not None else 0)
    offset = body.posedirs @ (R[1:] - np.eye(3)).ravel() if correct else 0
    return linear_skin(
        (V + offset).astype(float),
        body.weights.astype(float),
        R,
        (body.J_regressor @ V).astype(float),
    )


def test_the_skin_is_closed_without_handles_and_mirror_symmetric(body, V):
    edges, count = np.unique(
        np.sort(body.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1),
        axis=0,
        return_counts=True,
    )
    assert V.shape == (6890, 3) and body.faces.shape == (13776, 3)
    assert (count == 2).all() and len(V) - len(edges) + len(body.faces) == 2
    np.testing.assert_array_equal(
        body.v_template[body.mirror] * np.float32([-1, 1, 1]), body.v_template
    )
    faces = {frozenset(f) for f in body.faces.tolist()}
    assert {frozenset(f) for f in body.mirror[body.faces].tolist()} == faces
    assert volume(V, body.faces) > 0.05  # the faces look outward


def test_crossing_faces_finds_a_finger_in_a_thigh(body, V):
    assert len(crossing_faces(V, body.faces)) == 0
    bent = V.copy()
    finger = V[:, 0] > 0.84
    bent[finger] += V[np.linalg.norm(V - [0.1, -0.5, 0], axis=1).argmin()] - V[
        finger
    ].mean(0)
    assert len(crossing_faces(bent, body.faces)) > 0


@pytest.mark.parametrize("k", range(10))
def test_a_shape_at_its_ends_stays_a_person(body, V, k):
    for beta in (-3, 3):
        X = V + beta * body.shapedirs[..., k]
        assert len(crossing_faces(X, body.faces)) == 0
        assert 1.45 < np.ptp(X[:, 1]) < 2.0 and 0.035 < volume(X, body.faces) < 0.11


def test_mixtures_of_shapes_stay_people(body, V):
    heights = []
    for betas in np.clip(np.random.default_rng(0).normal(0, 1.2, (25, 10)), -3, 3):
        X = V + body.shapedirs @ betas
        assert len(crossing_faces(X, body.faces)) == 0
        heights.append(np.ptp(X[:, 1]))
    assert 1.45 < min(heights) < max(heights) < 2.0


def test_build_and_hips_say_different_things(body):
    D = body.shapedirs.reshape(-1, 10).astype(float)
    D /= np.linalg.norm(D, axis=0)
    names = list(body.extras["shape_names"])
    assert names[:3] == ["height", "weight", "build"]
    assert abs(D[:, names.index("build")] @ D[:, names.index("hips")]) < 0.2


def test_weights_are_few_smooth_and_do_not_leak(body, V):
    W = body.weights
    assert (W > 0).sum(1).max() <= 4 and W.min() >= 0
    np.testing.assert_allclose(W.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(W[body.mirror][:, JOINT_MIRROR], W, atol=1e-6)
    leg = [
        SMPL_JOINTS.index(n)
        for n in ("left_hip", "left_knee", "left_ankle", "left_foot")
    ]
    assert W[np.ix_(V[:, 0] < -0.03, leg)].max() == 0
    arm = [SMPL_JOINTS.index(n) for n in ("left_shoulder", "left_elbow")]
    assert W[np.ix_((np.abs(V[:, 0]) < 0.12) & (V[:, 1] < 0.08), arm)].max() == 0


def test_joints_follow_the_shape_and_lie_inside(body, V):
    J_reg = body.J_regressor
    assert J_reg.min() >= 0
    np.testing.assert_allclose(J_reg.sum(1), 1, atol=1e-5)
    J = J_reg @ V
    np.testing.assert_allclose(J[JOINT_MIRROR] * FLIP, J, atol=1e-5)
    assert (body_field(J + [0, 1.165, -0.040]) < -0.01).all()


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
    rest = volume(V, body.faces)
    for angle in angles:
        plain, mended = (
            volume(
                posed(body, correct=c, **{joint: np.multiply(axis, angle)}), body.faces
            )
            - rest
            for c in (False, True)
        )
        assert plain < -5e-5 and abs(mended) < 0.3 * abs(plain)


def test_sitting_and_squatting_win_or_lose_less_than_a_third_of_a_litre(body, V):
    sit = {
        "left_hip": (-88, 0, 5),
        "right_hip": (-88, 0, -5),
        "left_knee": (88, 0, 0),
        "right_knee": (88, 0, 0),
    }
    squat = {
        "left_hip": (-105, 0, 18),
        "right_hip": (-105, 0, -18),
        "left_knee": (120, 0, 0),
        "right_knee": (120, 0, 0),
    }
    for joints in (sit, squat):
        assert (
            abs(volume(posed(body, **joints), body.faces) - volume(V, body.faces))
            < 0.33e-3
        )


def test_hip_correctives_leave_the_other_leg_alone(body, V):
    P = body.posedirs.reshape(len(V), 3, 23, 9)
    assert (
        np.abs(P[V[:, 0] < -0.011][:, :, SMPL_JOINTS.index("left_hip") - 1]).max() == 0
    )
    assert (
        np.abs(P[V[:, 0] > 0.011][:, :, SMPL_JOINTS.index("right_hip") - 1]).max() == 0
    )


def test_named_points_lie_where_their_names_say(body, V):
    rows = body.keypoint_regressors
    left = {*INSIDE, *ON_SKIN, *SAME}
    assert left <= set(rows) and {
        n[:-1] + "r" for n in left if n.endswith("_l")
    } <= set(rows)
    at = {n: row @ (V + [0, 1.165, -0.040]) for n, row in rows.items()}
    for name, row in rows.items():
        assert row.min() >= 0 and row.sum() == pytest.approx(1, abs=1e-5), name
    for name, (place, *_) in ON_SKIN.items():
        np.testing.assert_allclose(at[name], place, atol=0.008, err_msg=name)
    for name, (_, place) in INSIDE.items():
        np.testing.assert_allclose(at[name], place, atol=0.006, err_msg=name)
    assert (
        at["nose"][2] > at["eye_l"][2] > at["ear_l"][2]
        and at["heel_l"][2] < at["ankle_l"][2] < at["toe_l"][2]
    )
    assert set(keypoint_set("cocoplus19").names) <= set(rows)


def test_parts_and_regions_dress_the_body(body):
    regions = list(body.extras["region_names"])
    assert set(regions) >= {
        "hips",
        "torso",
        "neck",
        "face",
        "hair",
        "upper_arm",
        "forearm",
        "hand",
        "thigh",
        "shin",
        "foot",
    }
    assert set(body.extras["region_labels"]) == set(range(len(regions)))
    assert list(body.extras["part_names"]) == list(SMPL_JOINTS)
    np.testing.assert_array_equal(
        body.extras["region_labels"][body.mirror], body.extras["region_labels"]
    )


def test_the_file_is_small_and_written_alike(body, tmp_path):
    first = save_open_body(body, tmp_path / "a.npz").read_bytes()
    assert (
        first == save_open_body(open_body(), tmp_path / "b.npz").read_bytes()
        and len(first) < 4_000_000
    )
    assert shipped("open_body.npz").stat().st_size < 4_000_000


def test_a_quick_doll_has_the_exact_count_twice():
    dolls = [
        mirror_half(
            *remesh(
                *half_surface(coarser=2.8),
                target=800,
                size=lambda P: np.full(len(P), 0.055),
                rounds=3,
            )
        )
        for _ in range(2)
    ]
    V, F, mirror = dolls[0]
    assert len(F) == 1600 and len(V) == 802
    np.testing.assert_array_equal(V, dolls[1][0])
    np.testing.assert_array_equal(V[mirror] * FLIP, V)
    assert np.quantile(np.abs(body_field(to_surface(V))), 0.95) < 1e-3
