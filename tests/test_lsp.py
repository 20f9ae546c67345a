"""LSP and LSP-extended: the old converter's numbers, real files, bad input, workers and
resume."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io

from hmr_nb.basics.camera import box_from_keypoints
from hmr_nb.basics.files import shipped
from hmr_nb.records import photos
from hmr_nb.records.card import card_table
from hmr_nb.records.datasets.lsp import convert_lsp, convert_lsp_extended, read_joints
from hmr_nb.records.reader import card, examples

GOLDENS = shipped("goldens")
REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
convert = {
    "lsp": lambda *a, **k: convert_lsp(*a, train_count=5, progress=False, **k),
    "lsp_ext": lambda *a, **k: convert_lsp_extended(*a, progress=False, **k),
}


def bytes_of(folder):
    return {f.name: f.read_bytes() for f in Path(folder).iterdir()}


@pytest.fixture(scope="module", params=["lsp", "lsp_ext"])
def converted(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "r"
    convert[request.param](GOLDENS / "raw" / request.param, out, workers=1)
    return request.param, out


def test_points_are_the_old_converters_where_it_kept_them(converted):
    name, out = converted
    facts = json.loads((GOLDENS / f"converter_{name}.json").read_text())
    calls = {Path(c["path"]).name: c for c in facts["scale_and_crop_calls"]}
    theirs = dict(
        zip(
            (Path(e["source"]).name for e in facts["examples"]),
            np.load(GOLDENS / f"converter_{name}.npz")["keypoints_2d"],
        )
    )
    ours = {Path(e.source).name: e for e in examples(out)}
    both = sorted(set(theirs) & set(ours))
    assert len(both) == 5
    points = 0
    for file in both:
        e, call = ours[file], calls[file]
        kept = (theirs[file][:14, 2] > 0) & (e.state > 0)
        source = e.crop.undo(e.kp2d)
        np.testing.assert_allclose(
            (source * call["actual_factor_yx"] - call["top_left_xy"])[kept],
            theirs[file][:14, :2][kept],
            atol=1e-3,
        )
        points += kept.sum()
    assert points == {"lsp": 58, "lsp_ext": 57}[name]
    assert not [n for n in theirs if n not in ours and n != "im00009.jpg"]


def test_labels_are_the_old_converters_before_its_filters(converted):
    name, _ = converted
    _, kp, state = read_joints(GOLDENS / "raw" / name)
    z = np.load(GOLDENS / f"converter_{name}.npz")
    stages = ("train", "val") if name == "lsp" else ("train",)
    old = np.concatenate([z[f"{s}_after_check_kps_2d"] for s in stages])[:, :14]
    visible = np.concatenate([z[f"{s}_after_check_vis"] for s in stages])[:, :14] > 0
    assert len(old) == len(kp)
    np.testing.assert_allclose(
        kp[visible & (state > 0)], old[visible & (state > 0)], atol=1e-4
    )
    if name == "lsp":
        # beyond the left border: the old one drops what is labelled
        inside = (kp > 0).all(-1)
        np.testing.assert_array_equal(visible, (state == 2) & inside)
        assert (state == 1).sum() == 9  # what the old one threw away
    else:
        np.testing.assert_array_equal(visible, state == 2)


def test_the_scale_is_the_rule_and_nothing_is_enlarged(converted):
    _, out = converted
    name, kept = converted[0], 0
    for e in examples(out):
        np.testing.assert_allclose(
            e.box, box_from_keypoints(e.kp2d, e.state), atol=1e-3
        )
        side = np.ceil(1.5 * max(e.box[2:]) / e.crop.scale)  # in the photograph
        if e.jpeg == (GOLDENS / "raw" / name / e.source).read_bytes():  # kept as it was
            kept += 1
            assert (
                (e.crop.affine == np.eye(2, 3)).all()
                and side <= 300
                and e.image.shape[0] * e.image.shape[1] <= 2.5 * side**2
            )
        else:
            stored = e.image.shape[0]
            assert (
                e.image.shape == (stored, stored, 3)
                and stored <= 300
                and e.crop.scale <= 1
                and e.crop.size == (stored, stored)
            )
            assert abs(max(e.box[2:]) * 1.5 - stored) <= 1
    assert 0 < kept < card(out)["written"]


def test_split_names_and_frames(converted):
    name, out = converted
    seen = {(e.source, e.split, e.frame) for e in examples(out)}
    digits = 4 if name == "lsp" else 5
    assert all(
        source == f"images/im{frame:0{digits}d}.jpg" for source, _, frame in seen
    )
    assert {split for _, split, frame in seen if frame > 5} == (
        {"test"} if name == "lsp" else {"train"}
    )


def test_two_workers_and_resume_give_the_same_bytes(tmp_path, monkeypatch):
    raw = GOLDENS / "raw" / "lsp_ext"
    convert_lsp_extended(raw, tmp_path / "one", workers=1, progress=False)
    convert_lsp_extended(raw, tmp_path / "two", workers=2, progress=False)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")

    def small(*a, **k):
        return RecordWriter(*a, shard_size=4, **k)

    RecordWriter = photos.RecordWriter
    monkeypatch.setattr(photos, "RecordWriter", small)
    convert_lsp_extended(raw, tmp_path / "whole", workers=1, progress=False)
    honest, count = photos.convert_photo, iter(range(100))

    def fails(item):
        if next(count) == 9:
            raise KeyboardInterrupt
        return honest(item)

    monkeypatch.setattr(photos, "convert_photo", fails)
    with pytest.raises(KeyboardInterrupt):
        convert_lsp_extended(raw, tmp_path / "resumed", workers=1, progress=False)
    assert len(list((tmp_path / "resumed").glob("*.tfrecord"))) == 2
    convert_lsp_extended(
        raw, tmp_path / "resumed", workers=1, progress=False, resume=True
    )
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "resumed")
    with pytest.raises(ValueError, match="min_points"):
        convert_lsp_extended(
            raw, tmp_path / "resumed", progress=False, resume=True, min_points=3
        )


def test_bad_pictures_are_counted(tmp_path):
    shutil.copytree(GOLDENS / "raw" / "lsp", tmp_path / "lsp")
    images = tmp_path / "lsp" / "images"
    (images / "im0001.jpg").unlink()
    (images / "im0002.jpg").write_bytes((images / "im0002.jpg").read_bytes()[:4000])
    (images / "im0003.jpg").write_bytes(b"")
    (images / "im0005.jpg").write_text("<html>not found</html>")
    facts = convert["lsp"](tmp_path / "lsp", tmp_path / "r", workers=1)
    assert facts["dropped"] == {
        "image missing": 1,
        "image unreadable": 3,
        "too small": 1,
    }
    assert facts["read"] == 8 == facts["written"] + 5
    lines = (tmp_path / "r" / "dropped.csv").read_text().splitlines()
    assert lines[1] == "images/im0001.jpg,image missing,train" and len(lines) == 6


@pytest.mark.parametrize(
    ("joints", "says"),
    [
        (np.zeros((2, 14, 5)), "shape"),
        (np.zeros((14, 14, 3)), "shape"),
        (np.zeros((14, 3)), "shape"),
        (np.array([["text"]]), "expected"),
    ],
)
def test_other_label_files_are_refused(tmp_path, joints, says):
    (tmp_path / "images").mkdir()
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints})
    with pytest.raises(ValueError, match=says) as error:
        convert_lsp(tmp_path, tmp_path / "r", progress=False)
    assert "joints.mat" in str(error.value) and not (tmp_path / "r").exists()


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no joints.mat"):
        convert_lsp(tmp_path / "nowhere", tmp_path / "r")
    shutil.copy(GOLDENS / "raw" / "lsp" / "joints.mat", tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder images/"):
        convert_lsp(tmp_path, tmp_path / "r")
    scipy.io.savemat(tmp_path / "joints.mat", {"other": np.zeros(3)})
    with pytest.raises(ValueError, match="array 'joints'"):
        convert_lsp(tmp_path, tmp_path / "r")


def test_people_without_points(tmp_path):
    (tmp_path / "images").mkdir()
    joints = np.full((14, 3, 2), np.nan)
    joints[:, 2] = 1
    joints[:, :, 1] = [[-45.3, 0, 0]]
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints})
    cv2.imwrite(str(tmp_path / "images" / "im00001.jpg"), np.zeros((9, 9, 3), np.uint8))
    facts = convert_lsp_extended(
        tmp_path, tmp_path / "r", workers=1, progress=False, min_points=2
    )
    assert facts["dropped"] == {"too few points": 2} and facts["written"] == 0


@pytest.mark.skipif(
    not (REAL / "lsp_extended").is_dir(),
    reason="the real LSP-extended images are not on this machine",
)
def test_the_real_extended_images(tmp_path):
    facts = convert_lsp_extended(
        REAL / "lsp_extended", tmp_path / "r", workers=1, progress=False
    )
    assert (facts["read"], facts["written"], facts["dropped"]) == (100, 100, {})
    assert card_table(tmp_path / "r")[["visible", "missing"]].sum().tolist() == [
        1227,
        173,
    ]
    joints = scipy.io.loadmat(REAL / "lsp_extended" / "joints.mat")["joints"]
    facing = []
    for e in examples(tmp_path / "r"):
        source = e.crop.undo(e.kp2d)
        np.testing.assert_allclose(
            source[e.state > 0], joints[e.state > 0, :2, e.frame - 1], atol=1e-3
        )
        assert (
            (e.kp2d[e.state > 0] > -1) & (e.kp2d[e.state > 0] < e.image.shape[1::-1])
        ).all()
        side = {
            n: e.kp2d[e.names.index(n)]
            for n in ("shoulder_l", "shoulder_r", "hip_l", "hip_r")
        }
        facing.append(
            (side["shoulder_l"] - side["shoulder_r"]) @ (side["hip_l"] - side["hip_r"])
        )
    facing = np.array(facing)[np.isfinite(facing)]
    # shoulders and hips mostly point the same way
    assert len(facing) > 50 and np.mean(facing > 0) > 0.75


@pytest.mark.skipif(
    not (REAL / "lsp").is_dir(), reason="the real LSP labels are not on this machine"
)
def test_the_real_labels(tmp_path):
    kind, kp, state = read_joints(REAL / "lsp")
    assert kind == "lsp" and kp.shape == (2000, 14, 2) and np.isfinite(kp).all()
    assert [(state == s).sum() for s in (0, 1, 2)] == [0, 2044, 25956]
    (tmp_path / "images").mkdir()
    shutil.copy(REAL / "lsp" / "joints.mat", tmp_path)
    # the pictures are missing
    facts = convert_lsp(tmp_path, tmp_path / "r", workers=1, progress=False)
    assert (
        facts["read"] == 2000
        and facts["dropped"]["image missing"] + facts["dropped"].get("too small", 0)
        == 2000
    )
    assert card(tmp_path / "r")["written"] == 0
