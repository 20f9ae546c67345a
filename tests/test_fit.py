"""A body fitted to points: exact points give the body back; bad ones give a clear
answer; records with points become records with bodies."""

from dataclasses import replace

import numpy as np
import pytest

from hmr_nb.basics.camera import Camera
from hmr_nb.basics.files import shipped
from hmr_nb.basics.keypoints import keypoint_set
from hmr_nb.basics.metrics import mpjpe
from hmr_nb.body.open_body import open_body
from hmr_nb.body.smpl import SMPL
from hmr_nb.inference.fit import (
    MEASURED,
    BodyPoints,
    PosePrior,
    Tolerance,
    fit_body,
    fit_views,
    named_points,
)
from hmr_nb.inference.fit_records import fit_records
from hmr_nb.records.open_poses import open_poses, within_limits
from hmr_nb.records.reader import card, examples
from hmr_nb.records.writer import RecordWriter

COCO = keypoint_set("coco17")
OFFICIAL = [
    f"{ {'l': 'left', 'r': 'right'}[n[-1]] }_{n[:-2]}" if n[-2] == "_" else n
    for n in COCO.names
]


@pytest.fixture(scope="module")
def smpl():
    return SMPL()


@pytest.fixture(scope="module")
def people(smpl):
    "Three people before a camera: their numbers, points in space and picture."
    rng = np.random.default_rng(4)
    pose = open_poses(3, seed=11).astype(float)
    pose[:, 0] = [[np.pi, 0, 0], [2.6, 0.3, 0.9], [0.2, 2.9, -0.6]]
    betas, trans = (
        rng.normal(0, 0.7, (3, 10)),
        np.array([[0, 0.2, 4], [1, 0, 6], [0, 0, 3.0]]),
    )
    points = BodyPoints(smpl, named_points(smpl, COCO.names).mixtures)
    space = points.place(pose, betas)[0] + trans[:, None]
    camera = Camera.simple(600, (320, 240))
    return pose, betas, trans, space, camera


def error(points, fit, space):
    found = points.place(fit.pose.reshape(-1, 24, 3), fit.betas.reshape(-1, 10))[0]
    hips = [COCO.index("hip_l"), COCO.index("hip_r")]
    return mpjpe(found, space.reshape(found.shape), root=hips)


def test_names_of_three_kinds_mean_the_same_points(smpl):
    ours, official = (named_points(smpl, n) for n in (COCO.names, OFFICIAL))
    assert OFFICIAL[-1] == "right_ankle" and ours.mixtures == official.mixtures
    own, network = (
        named_points(smpl, [n]).mixtures[0] for n in ("thumb_l", "left_thumb")
    )
    assert own == {"thumb_l": 1.0} and set(network) == {"wrist_l", "thumb_l"}
    assert named_points(smpl, ["left_foot_index", "toe_l"]).mixtures[0] == {
        "toe_l": 1.0
    }
    assert len(named_points(smpl, ["left_eye_inner", "mpi_clavicle_l"]).used) == 0
    short = named_points(smpl, ["eye_in_l", "index_r", "pinky_l", "toe_l"])
    long = ["left_eye_inner", "right_index", "left_pinky", "left_foot_index"]
    assert short.mixtures == named_points(smpl, long).mixtures
    for m in named_points(smpl, ["left_index", "left_pinky", "left_thumb"]).mixtures:
        assert sum(m.values()) == pytest.approx(1)


def test_points_and_rates_are_the_layers_on_any_body(smpl):
    rng = np.random.default_rng(1)
    names = ("wrist_l", "smpl_left_hand", "nose", "smpl_pelvis")
    body = replace(open_body(), shapedirs=open_body().shapedirs[..., :4])
    layer = SMPL(body, keypoints=keypoint_set("coco17").subset(["nose"]))
    points = BodyPoints(layer, named_points(layer, names).mixtures)
    pose, betas = rng.normal(0, 0.6, (2, 24, 3)), rng.normal(0, 1, (2, 4))
    X, kept = points.place(pose, betas)
    out = layer(pose, betas)
    np.testing.assert_allclose(X[:, 3], np.asarray(out.joints)[:, 0], atol=1e-5)
    np.testing.assert_allclose(X[:, 2], np.asarray(out.keypoints)[:, 0], atol=1e-5)
    rates, step = points.rates(kept), 1e-6

    def at(i, by):
        moved = np.concatenate([pose.reshape(2, 72), betas], 1)
        moved[:, i] += by
        return points.place(moved[:, :72].reshape(2, 24, 3), moved[:, 72:])[0]

    slopes = [(at(i, step) - at(i, -step)) / (2 * step) for i in range(76)]
    np.testing.assert_allclose(rates, np.stack(slopes, -1), atol=1e-7)


def test_exact_points_give_the_bodies_back_one_or_many(smpl, people):
    pose, betas, trans, space, camera = people
    points = BodyPoints(smpl, named_points(smpl, COCO.names).mixtures)
    xy = np.stack([camera.project(x) for x in space])
    fit = fit_body(smpl, OFFICIAL, xy, None, space, camera=camera, tolerance=MEASURED)
    assert (error(points, fit, space) < 15).all() and (fit.rms_px < 1).all()
    np.testing.assert_allclose(fit.translation, trans, atol=0.25)
    assert fit.vertices.shape == (3, 6890, 3) and (fit.confidence > 0.7).all()
    two = {"camera": camera, "tolerance": MEASURED}
    alone = fit_body(smpl, OFFICIAL, xy[1], np.ones(17), space[1], **two)
    np.testing.assert_allclose(alone.vertices, fit.vertices[1], atol=1e-3)
    assert alone.keypoints_px.shape == (17, 2) and alone.names == tuple(OFFICIAL)


def test_a_lens_and_cameras_of_their_own(smpl, people):
    _, _, _, space, camera = people
    lens = Camera(camera.K, [-1.5, 0.1, 0.001, 0, 0])
    other = Camera.simple(900, (100, 100))
    xy = np.stack([lens.project(space[0]), other.project(space[1])])
    assert np.abs(xy[0] - camera.project(space[0])).max() > 4
    fit = fit_body(smpl, COCO.names, xy, None, space[:2], camera=[lens, other])
    assert (fit.rms_px < 2).all()


def test_a_start_is_followed_where_points_leave_it_open(smpl, people):
    pose, betas, _, space, camera = people
    points = BodyPoints(smpl, named_points(smpl, COCO.names).mixtures)
    xy = np.stack([camera.project(x) for x in space])
    noisy = xy + np.random.default_rng(0).normal(0, 4, xy.shape)
    truth = fit_body(
        smpl, COCO.names, xy, None, space, camera=camera, tolerance=MEASURED
    )
    free = fit_body(smpl, COCO.names, noisy, None, camera=camera, mesh=False)
    led = fit_body(
        smpl, COCO.names, noisy, None, None, list(truth), camera=camera, mesh=False
    )
    assert error(points, led, space).mean() < 0.7 * error(points, free, space).mean()
    assert led.vertices is None


def test_who_stands_on_the_hands_is_the_same_person(smpl, people):
    "The picture rotated: the body rotates with it, without a start or places in space."
    _, _, _, space, camera = people
    xy = camera.project(space[0])
    turns = [np.array([[c, -s], [s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0))]
    rotated = np.stack([(xy - camera.center) @ R.T + camera.center for R in turns])
    fit = fit_body(smpl, COCO.names, rotated, None, camera=camera, mesh=False)
    back = [X[:, :2] @ R for X, R in zip(fit.keypoints, turns)]
    np.testing.assert_allclose(back[1:], [back[0]] * 2, atol=0.05)
    assert np.ptp(fit.confidence) < 0.05


def test_limits_hold_where_the_prior_is_weak(smpl, people):
    _, _, _, space, camera = people
    rng = np.random.default_rng(3)
    xy = np.stack([camera.project(x) for x in space[[0, 1, 2, 0, 1, 2]]])
    xy = xy + rng.normal(0, 12, xy.shape)
    weak = Tolerance(prior=0.02, limits=0)
    free, held = (
        fit_body(smpl, COCO.names, xy, None, camera=camera, tolerance=t, mesh=False)
        for t in (weak, replace(weak, limits=0.05))
    )
    assert within_limits(held.pose).all() and not within_limits(free.pose).all()


def test_two_cameras_leave_no_depth_open(smpl, people):
    _, _, trans, space, camera = people
    points = BodyPoints(smpl, named_points(smpl, COCO.names).mixtures)
    R = np.array([[0, 0, 1.0], [0, 1, 0], [-1, 0, 0]])
    side = Camera(camera.K, R=R, t=trans[0] - R @ trans[0])
    xy = np.stack([camera.project(space[0]), side.project(side.see(space[0]))])
    fit = fit_views(smpl, COCO.names, xy, None, [camera, side])
    assert error(points, fit, space[0])[0] < 40 and fit.rms_px < 3


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda xy: np.where(np.arange(17)[:, None] < 3, xy, np.nan), "3 usable"),
        (lambda xy: np.full_like(xy, 5.0), "in one place"),
        (lambda xy: xy * np.inf, "infinite"),
        (lambda xy: xy[:, :1], "expected"),
    ],
)
def test_too_little_is_refused(smpl, people, spoil, says):
    xy = people[4].project(people[3][0])
    with pytest.raises(ValueError, match=says):
        fit_body(smpl, COCO.names, spoil(xy), None)


def test_little_gives_the_priors_body_and_low_confidence(smpl, people):
    xy = people[4].project(people[3][0])
    face = np.where(np.arange(17)[:, None] < 5, xy, np.nan)
    line = np.stack([np.linspace(0, 99, 17), np.full(17, 50.0)], 1)
    wrong = xy.copy()
    wrong[3] = 1e5
    some = np.stack([xy, face, line, wrong])
    fit = fit_body(smpl, COCO.names, some, None, camera=people[4])
    assert fit.confidence[1] < 0.25 and fit.confidence[2] < 0.5 < fit.confidence[0]
    assert within_limits(fit.pose).all() and np.abs(fit.betas).max() < 3
    apart = np.linalg.norm(fit.vertices[3] - fit.vertices[0], axis=-1)
    assert apart.mean() < 0.05  # one label far away is nobody's


def test_a_prior_of_mocap_and_a_body_with_other_joints():
    with pytest.raises(ValueError, match="at least 200"):
        PosePrior.of(np.zeros((5, 24, 3)))
    prior = PosePrior.of(open_poses(300, seed=1))
    other = prior.on(["pelvis", "left_knee", "tail"])
    at = 3 * prior.names.index("left_knee")
    np.testing.assert_allclose(other.mean, [*prior.mean[at : at + 3], 0, 0, 0])
    spread = np.linalg.inv(prior.whiten)
    mine = np.linalg.inv(other.whiten)[:3, :3]
    np.testing.assert_allclose(
        mine @ mine.T, (spread @ spread.T)[at : at + 3, at : at + 3]
    )


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    "Records of rendered people whose truth is taken away; one has a face alone."
    out = tmp_path_factory.mktemp("fit") / "hidden"
    with RecordWriter(out, "hidden") as writer:
        for i, e in enumerate(list(examples(shipped("samples") / "street"))[:20]):
            where = [e.names.index(n) for n in COCO.names]
            state = e.state[where]
            state[5:] *= i != 2
            none = dict.fromkeys(("kp3d", "pose", "betas", "trans", "camera"))
            few = {"names": COCO.names, "kp2d": e.kp2d[where], "state": state}
            writer.write(replace(e, **few, **none))
    return out


def test_records_get_bodies_the_same_in_one_process_or_two(hidden, tmp_path, run):
    code, said, _ = run("fit-bodies", hidden, "--out", tmp_path / "a", "--workers", 1)
    assert code == 0 and "19 of 20 people have a body" in said
    facts = fit_records(hidden, tmp_path / "b", workers=2, progress=False)
    assert facts["dropped"] == {"too few points": 1} == card(tmp_path / "a")["dropped"]
    one, two = (list(examples(tmp_path / n)) for n in "ab")
    for a, b in zip(one, two):
        np.testing.assert_allclose(a.pose, b.pose, atol=1e-5)
    before = {e.source: e for e in examples(shipped("samples") / "street")}
    for e in one:
        assert e.has_smpl and 0.3 <= e.confidence <= 1 and e.kp3d.shape == (17, 3)
        seen = e.crop.camera(e.camera).project(e.kp3d)
        assert np.nanmedian(np.linalg.norm(seen - e.kp2d, axis=1)) < 3
        assert e.jpeg == before[e.source].jpeg
    assert fit_records(hidden, tmp_path / "b", resume=True, progress=False) == facts
    again = fit_records(tmp_path / "a", tmp_path / "c", workers=1, progress=False)
    assert again["written"] == 19
    for a, b in zip(one, examples(tmp_path / "c")):
        assert (a.pose == b.pose).all()  # who has a body keeps it


def test_refused_people_can_be_kept_and_bad_input_is_one_line(hidden, tmp_path, run):
    words = ("fit-bodies", hidden, "--out", tmp_path / "k", "--workers", 1, "--keep")
    assert run(*words)[0] == 0
    kept = list(examples(tmp_path / "k"))
    assert [i for i, e in enumerate(kept) if not e.has_smpl] == [2]
    for more, says in (
        (("--least", 3), "--least"),
        (("--body", "nobody.npz"), "nobody.npz"),
    ):
        code, _, err = run("fit-bodies", hidden, "--out", tmp_path / "x", *more)
        assert code and says in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()
