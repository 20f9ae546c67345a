"""3DPW: the official container, its quirks, bad input, workers and resume."""

import os
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from video_data import bytes_of, dot_errors, dots, write_pictures

from hmr_nb.basics.camera import Camera
from hmr_nb.basics.keypoints import keypoint_set, map_points
from hmr_nb.body.pickles import UnsafePickleError
from hmr_nb.records.datasets.threedpw import (
    _frame_points,
    convert_threedpw,
    into_camera,
    read_sequence,
)
from hmr_nb.records.open_poses import REST_JOINTS, place_joints
from hmr_nb.records.reader import card, examples, source_set
from hmr_nb.shell.commands import main

SIZE = (640, 360)  # portrait
K = np.array([[600.0, 0, 180], [0, 602.0, 320], [0, 0, 1]])
NAMES = (*keypoint_set("openpose18").names, *keypoint_set("smpl24").names)
REST = REST_JOINTS + [0.01, -0.24, 0.03]  # SMPL's pelvis does not rest at the origin


def cameras(n):
    t = np.arange(n) / max(n, 1)
    cam = np.tile(np.eye(4), (n, 1, 1))
    cam[:, :3, :3] = Rotation.from_euler(
        "zyx", np.stack([175 + 9 * t, 20 * t - 10, 6 * t], 1), degrees=True
    ).as_matrix()
    cam[:, :3, 3] = np.stack([0.1 * t, 0.1 - 0.1 * t, 3.5 + t], 1)
    return cam


def seen(points, cam):
    X = np.einsum("nij,nkj->nki", cam[:, :3, :3], points) + cam[:, None, :3, 3]
    return X, (X @ K.T)[..., :2] / X[..., 2:]


def sequence(name, n=5, people=2, seed=0):
    rng, cam = np.random.default_rng(seed), cameras(n)
    held = {
        "sequence": name,
        "cam_poses": cam,
        "cam_intrinsics": K,
        "genders": ["m", "f"][:people],
        "img_frame_ids": 2 * np.arange(n),
    }
    held |= {
        k: []
        for k in (
            "poses",
            "trans",
            "betas",
            "jointPositions",
            "poses2d",
            "campose_valid",
            "texture_maps",
            "poses_60Hz",
        )
    }
    for p in range(people):
        pose, trans = (
            rng.normal(0, 0.15, (n, 24, 3)),
            np.tile([0.7 * p - 0.4, 0, 0.4 * p], (n, 1)) + rng.normal(0, 0.02, (n, 3)),
        )
        J = place_joints(pose, REST) + trans[:, None]
        px = seen(J[:, :18], cam)[1] + [1.5, -2]
        held["poses"].append(pose.reshape(n, 72))
        held["trans"].append(trans)
        held["betas"].append(rng.normal(size=((10,), (300, 1))[p]))
        held["jointPositions"].append(J.reshape(n, 72))
        held["poses2d"].append(
            np.concatenate([px, np.full((n, 18, 1), 0.7)], 2).transpose(0, 2, 1)
        )
        held["campose_valid"].append(np.ones(n, np.uint8))
        held["texture_maps"].append(np.zeros((8, 8, 3), np.uint8))
        held["poses_60Hz"].append(np.zeros((2 * n, 72)))
    return held


def put(root, folder, held, pictures=True):
    file = root / "sequenceFiles" / folder / f"{held['sequence']}.pkl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(
        pickle.dumps(held, protocol=2).replace(
            b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
        )
    )
    if pictures:
        kp = np.concatenate(
            [
                seen(np.nan_to_num(J.reshape(-1, 24, 3), nan=9), held["cam_poses"])[1]
                for J in held["jointPositions"]
            ],
            1,
        )
        write_pictures(
            root / "imageFiles" / held["sequence"] / "image_%05d.jpg",
            [dots(k, SIZE, 2.5) for k in kp],
            0,
        )
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("3dpw")
    put(root, "train", sequence("a_00", people=1))
    put(root, "validation", sequence("b_00"))
    put(root, "test", sequence("c_00", seed=2))
    return root


def convert(source, out, **options):
    return convert_threedpw(source, out, **{"workers": 1, "progress": False, **options})


@pytest.fixture(scope="module")
def converted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "r"
    convert(data, out)
    return out


def test_counts_and_splits(data, converted, tmp_path):
    facts = card(converted)
    assert facts["splits"] == {"train": 5, "val": 10, "test": 10} and facts[
        "names"
    ] == list(NAMES)
    assert facts["read"] == facts["written"] == facts["with_smpl"] == 25
    assert set(facts["sources"]) == {
        "train/a_00.pkl",
        "validation/b_00.pkl",
        "test/c_00.pkl",
    }
    assert convert(data, tmp_path / "some", split="test", step=2)["splits"] == {
        "test": 6
    }


def test_the_joints_lie_on_the_dots_and_the_body_is_where_they_are(data, converted):
    for e in examples(converted):
        assert e.kp3d.dtype == np.float32 and np.isnan(e.kp3d[:18]).all()
        errors = dot_errors(
            SimpleNamespace(
                kp2d=np.where(e.state[18:, None] == 2, e.kp2d[18:], np.nan),
                image=e.image,
                source=e.source,
            ),
            2.5,
        )
        assert len(errors) >= 5 and np.median(errors) < 0.4
        # the body, made of the record alone
        J = place_joints(e.pose[None].astype(float), REST)[0] + e.trans
        np.testing.assert_allclose(J, e.kp3d[18:], atol=2e-5)
        seen_at = e.camera.project(J)
        np.testing.assert_allclose(e.crop.undo(e.kp2d)[18:], seen_at, atol=0.02)


def test_detections_come_back_as_the_file_has_them(data, converted):
    held = sequence("c_00", seed=2)
    for e in examples(converted, "test"):
        at = e.crop.undo(e.kp2d)[:18]
        np.testing.assert_allclose(
            at, held["poses2d"][int(e.subject[-1])][e.frame, :2].T, atol=0.01
        )
        assert e.gender == ("male", "female")[int(e.subject[-1])]
        np.testing.assert_allclose(
            e.betas, np.ravel(held["betas"][int(e.subject[-1])])[:10], rtol=1e-6
        )


def test_joints_inside_the_body_do_not_pass_as_marked_points(converted):
    e = next(examples(converted))
    lsp = dict(
        zip(
            keypoint_set("lsp14").names,
            map_points(e.kp2d, source_set(e.names), keypoint_set("lsp14")),
        )
    )
    assert np.isnan(lsp["neck"]).all() and np.isnan(lsp["head_top"]).all()
    # the detector's, not smpl_right_hip
    np.testing.assert_array_equal(lsp["hip_r"], e.kp2d[NAMES.index("hip_r")])
    assert "smpl_right_hip" in e.names


def test_what_the_protocol_leaves_out(tmp_path):
    held = sequence("d_00", n=8)
    held["campose_valid"][0][[0, 1]] = 0
    held["poses2d"][1][2] = 0
    held["poses"][1][3, 5] = np.nan
    held["cam_poses"][4, 0, 0] = np.nan
    put(
        tmp_path / "3dpw",
        "test",
        {**held, "cam_poses": held["cam_poses"]},
        pictures=False,
    )
    put(tmp_path / "3dpw", "test", sequence("d_00", n=8))  # pictures
    put(tmp_path / "3dpw", "test", held, pictures=False)
    (tmp_path / "3dpw/imageFiles/d_00/image_00006.jpg").unlink()
    (tmp_path / "3dpw/imageFiles/d_00/image_00007.jpg").write_bytes(b"\xff\xd8 cut")
    facts = convert(tmp_path / "3dpw", tmp_path / "r")
    assert facts["dropped"] == {
        "camera pose not valid": 2,
        "nobody detected": 1,
        "labels not finite": 3,
        "image missing": 2,
        "image unreadable": 2,
    }
    assert facts["read"] == 16 == facts["written"] + 10
    assert (
        "nobody detected"
        not in convert(tmp_path / "3dpw", tmp_path / "c", frames="camera")["dropped"]
    )


def test_a_detection_far_outside_or_unsure_is_missing():
    cam = cameras(1)
    X = seen(place_joints(np.zeros((1, 24, 3)), REST), cam)[0]
    detected = np.tile([100.0, 200.0, 0.9], (1, 18, 1))
    detected[0, 0, :2], detected[0, 1, 2], detected[0, 2, 2] = (5000, -40), 0.1, 0
    kp, state, _ = _frame_points(detected, X, Camera(K), SIZE)
    assert state[0, :4].tolist() == [0, 0, 0, 2] and np.isnan(kp[0, :3]).all()
    assert _frame_points(detected, X, Camera(K), SIZE, confidence=0.05)[1][
        0, :4
    ].tolist() == [0, 2, 0, 2]
    assert (
        _frame_points(detected, X, Camera(K), (20, 360))[1][0, 18:] < 2
    ).any()  # joints below a low picture are not visible


def test_nothing_is_changed_in_place_and_an_unfit_body_has_no_place():
    cam, rng = cameras(4), np.random.default_rng(1)
    pose, trans = rng.normal(0, 0.3, (4, 24, 3)), rng.normal(size=(4, 3))
    joints = place_joints(pose, REST) + trans[:, None]
    before = [x.copy() for x in (cam, pose, trans, joints)]
    turned, moved, _ = into_camera(cam, pose, trans, joints)
    for x, y in zip((cam, pose, trans, joints), before):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_allclose(
        place_joints(turned, REST) + moved[:, None], seen(joints, cam)[0], atol=1e-9
    )
    joints[2] += 0.05  # joints of another body
    assert np.isnan(into_camera(cam, pose, trans, joints)[1]).all()


def test_names_of_the_readme_are_read_too(tmp_path):
    held = sequence("e_00")
    held["gender"], held["poses2D"] = held.pop("genders"), held.pop("poses2d")
    file = put(tmp_path, "test", held, pictures=False)
    assert [p["gender"] for p in read_sequence(file).people] == ["male", "female"]


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_hostile_pickle_runs_nothing(tmp_path):
    put(
        tmp_path,
        "test",
        {**sequence("f_00"), "texture_maps": [Canary(tmp_path / "ran")]},
    )
    with pytest.raises(UnsafePickleError, match="system"):
        convert(tmp_path, tmp_path / "r")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "r").exists()


@pytest.fixture
def command(monkeypatch):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["hmr_nb", *map(str, words)])
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0
        return 0

    return run


BAD = {
    "empty folder": (
        lambda d: None,
        "expected sequenceFiles and imageFiles, found nothing",
    ),
    "no sequence": (
        lambda d: (d / "sequenceFiles/test").mkdir(parents=True),
        "has no .pkl in train, validation, test",
    ),
    "no picture at all": (
        lambda d: put(d, "test", sequence("g_00"), pictures=False),
        "were looked for in",
    ),
    "cut short": (
        lambda d: (f := put(d, "test", sequence("g_00"))).write_bytes(
            f.read_bytes()[:-700]
        ),
        "is the file complete",
    ),
    "not a dict": (
        lambda d: put(d, "test", sequence("g_00")).write_bytes(
            pickle.dumps([1, 2], protocol=2)
        ),
        "expected a sequence of 3DPW",
    ),
    "a key missing": (
        lambda d: put(
            d,
            "test",
            {k: v for k, v in sequence("g_00").items() if k != "cam_poses"},
            pictures=False,
        ),
        "KeyError: 'cam_poses'",
    ),
    "lengths differ": (
        lambda d: put(
            d, "test", {**sequence("g_00"), "cam_poses": cameras(3)}, pictures=False
        ),
        "expected a sequence of 3DPW",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_an_error_that_says_what_to_do(case, tmp_path, command, capsys):
    make, words = BAD[case]
    (tmp_path / "d").mkdir()
    make(tmp_path / "d")
    assert (
        command(
            "convert",
            "threedpw",
            "--data",
            tmp_path / "d",
            "--out",
            tmp_path / "r",
            "--workers",
            "1",
        )
        != 0
    )
    said = capsys.readouterr().err
    assert (
        words in said
        and "Traceback" not in said
        and not list(tmp_path.glob("r/*.tfrecord"))
    )


def test_workers_and_resume_change_nothing(data, converted, tmp_path, monkeypatch):
    convert(data, tmp_path / "two", workers=2)
    assert bytes_of(tmp_path / "two") == bytes_of(converted)
    from hmr_nb.records.writer import RecordWriter

    real, calls = RecordWriter._close_shard, []

    def stop(self):
        real(self)
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(RecordWriter, "_close_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(data, tmp_path / "again")
    monkeypatch.undo()
    assert (tmp_path / "again" / "unfinished.json").exists()
    convert(data, tmp_path / "again", resume=True)
    assert bytes_of(tmp_path / "again") == bytes_of(converted)


def test_command_line(data, tmp_path, command, capsys):
    assert (
        command(
            "convert",
            "threedpw",
            "--data",
            data,
            "--out",
            tmp_path / "r",
            "--workers",
            "1",
            *("--split", "test", "--step", "2"),
        )
        == 0
    )
    assert "6 examples of threedpw (6 test)" in capsys.readouterr().out
