"""Label files of SPIN, 4D-Humans and OpenPose: every quirk of theirs, hostile and
damaged files, real detections."""

import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmr_nb.basics.files import shipped
from hmr_nb.basics.keypoints import keypoint_set
from hmr_nb.body.pickles import UnsafePickleError
from hmr_nb.inference.infer import boxes_from_openpose
from hmr_nb.records.datasets.lsp import read_joints
from hmr_nb.records.datasets.openpose import convert_openpose, read_openpose
from hmr_nb.records.datasets.spin import (
    _joined,
    _read_pyd,
    _spin_points,
    convert_4dhumans,
    convert_spin,
    read_4dhumans,
    read_spin,
)
from hmr_nb.records.reader import card, examples
from hmr_nb.shell.convert import _options, find_converter

RAW = shipped("goldens") / "raw" / "lsp"
REAL = Path(__file__).resolve().parents[2] / "shared" / "real" / "openpose"
KP = read_joints(RAW)[1]
N = 8
SPIN24, BODY25 = keypoint_set("spin24").names, keypoint_set("body25").names
NAMES = np.array([f"images/im{i + 1:04d}.jpg" for i in range(N)])
LOW, HIGH = KP.min(1), KP.max(1)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(RAW / "images", tmp_path / "images")
    return tmp_path


def part24(first=14):
    part = np.zeros((N, 24, 3))
    part[:, :first, :2], part[:, :first, 2] = KP[:, :first], 1
    return part


def spin(path, **arrays):
    np.savez(
        path,
        **{
            "imgname": NAMES,
            "center": (LOW + HIGH) / 2,
            "scale": 1.2 * (HIGH - LOW).max(1) / 200,
        }
        | arrays,
    )


def quick(convert, *args, **options):
    return convert(*args, workers=1, progress=False, **options)


# SPIN


def test_spin_points_come_back_and_confidence_says_what_exists(folder):
    part = part24()
    part[1, 3, 2] = 0  # coordinates are there, the confidence says no
    part[2, 4, :2] = np.nan
    spin(folder / "lsp_train.npz", part=part)
    facts = quick(convert_spin, folder / "lsp_train.npz", folder / "r")
    assert (
        facts["names"] == list(SPIN24)
        and facts["splits"] == {"train": 7}
        and facts["dropped"] == {"too small": 1}
    )
    for e in examples(folder / "r"):
        i = NAMES.tolist().index(e.source)
        gone = {1: [3], 2: [4]}.get(i, [])
        assert (e.state == 0).nonzero()[0].tolist() == gone + list(range(14, 24))
        np.testing.assert_allclose(
            e.crop.undo(e.kp2d)[e.state > 0], KP[i][e.state[:14] > 0], atol=2e-3
        )


@pytest.mark.parametrize(
    ("dataset", "root", "spine"),
    [
        ("h36m_train", "h36m_pelvis", "h36m_spine1"),
        ("mpi_inf_3dhp_train", "mpi_pelvis", "mpi_spine"),
    ],
)
def test_places_mean_what_the_dataset_says(folder, dataset, root, spine):
    S = np.zeros((N, 24, 4))
    filled = [*range(13), 14, 16, 17, 18]
    S[:, filled, 0], S[:, filled, 3] = filled, 1
    spin(folder / f"{dataset}.npz", S=S)
    quick(convert_spin, folder / f"{dataset}.npz", folder / "r")
    e = next(iter(examples(folder / "r")))
    value = {n: e.kp3d[i, 0] for i, n in enumerate(e.names)}
    assert (
        value["head_top"] == 18
        and value[root] == 14
        and value[spine] == 16
        and np.isnan(value["thorax"])
        and np.isnan(value["nose"])
    )
    assert "pelvis" not in value and card(folder / "r")["with_3d"] == 7


def test_mpii_and_coco_keep_the_24_names():
    for dataset in (
        "mpii_train",
        "coco_2014_train",
        "lsp_dataset_original_train",
        "hr-lspet_train",
        "3dpw_test",
    ):
        assert _spin_points(dataset) == {n: i for i, n in enumerate(SPIN24)}


def test_pose_shape_and_gender(folder):
    pose, shape = np.random.default_rng(0).normal(size=(N, 72)), np.ones((N, 10))
    pose[4, 3] = np.nan
    spin(
        folder / "3dpw_test.npz",
        pose=pose,
        shape=shape,
        gender=np.array(["m", "f"] * 4),
        has_smpl=np.array([1, 1, 0, 1, 1, 1, 1, 1]),
    )
    facts = quick(convert_spin, folder / "3dpw_test.npz", folder / "r")
    # no pose, a NaN in it
    assert facts["splits"] == {"test": 5} and facts["dropped"] == {
        "no points labelled": 2,
        "too small": 1,
    }
    for e in examples(folder / "r"):
        i = NAMES.tolist().index(e.source)
        np.testing.assert_allclose(e.pose.ravel(), pose[i], rtol=1e-6)
        assert e.gender == ("female" if i % 2 else "male") and np.isnan(e.kp2d).all()
        side = (HIGH - LOW)[i].max()  # centre and scale are the person's square
        np.testing.assert_allclose(
            e.box / e.crop.scale,
            [
                *((LOW + HIGH)[i] / 2 - side / 2 + e.crop.affine[:, 2] / e.crop.scale),
                side,
                side,
            ],
            atol=1e-2,
        )
    # no has_smpl: all have it; an axis too many is no harm
    spin(folder / "all.npz", pose=pose[:, :, None], shape=shape)
    assert (
        sum("pose" in q.body for p in read_spin(folder / "all.npz") for q in p.people)
        == 7
    )


def test_detections_complete_labels_and_never_replace_them(folder):
    openpose = np.zeros((N, 25, 3))
    openpose[:, BODY25.index("toe_l")] = [100, 101, 0.8]
    openpose[:, BODY25.index("neck_mid_shoulders")] = [5, 6, 0.2]
    openpose[:, BODY25.index("shoulder_l")] = [7, 8, 0.9]
    openpose[:, BODY25.index("nose")] = [9, 10, 0.6]
    spin(folder / "coco_2014_train.npz", part=part24(), openpose=openpose)
    photo = read_spin(folder / "coco_2014_train.npz", openpose=0.5)[0]
    kp = dict(zip(photo.names, photo.people[0].kp.tolist()))
    assert (
        kp["toe_l"] == [100, 101]
        and kp["nose"] == [9, 10]
        and np.isnan(kp["neck_mid_shoulders"]).all()
    )
    np.testing.assert_allclose(kp["shoulder_l"], KP[0, 9])
    assert read_spin(folder / "coco_2014_train.npz")[0].names == SPIN24


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=3),
    st.floats(0.01, 1),
)
def test_joined(confidences, least):
    labels, more = np.zeros((1, 3, 3)), np.ones((1, 3, 3))
    labels[0, :, 2], more[0, :, 2] = np.array(confidences).T
    names, out = _joined(["a", "b", "c"], labels, ["b", "c", "d"], more, least)
    assert names == ("a", "b", "c", "d")
    detected = {n: c[1] for n, c in zip("bcd", confidences)}
    for name, got, labelled in zip(names, out[0], [*labels[0, :, 2], 0]):
        expected = (
            0 if labelled > 0 else 1 if detected.get(name, 0) >= least else np.nan
        )
        np.testing.assert_array_equal(got, expected)


def test_people_of_one_picture_stay_together(folder):
    spin(
        folder / "mpii_train.npz",
        imgname=np.array([NAMES[0]] * 4 + [NAMES[1]] * 4),
        part=part24(12),
    )
    photos = read_spin(folder / "mpii_train.npz")
    assert [len(p.people) for p in photos] == [4, 4]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (
            {"part": np.zeros((3, 24, 3))},
            r"part: expected \(8, 24, 3\), found \(3, 24, 3\)",
        ),
        ({"S": np.zeros((N, 24, 3))}, r"S: expected \(8, 24, 4\)"),
        ({"pose": np.zeros((N, 69))}, r"pose: expected \(8, 72\)"),
    ],
)
def test_wrong_shapes_are_named(folder, arrays, says):
    spin(folder / "a.npz", **arrays)
    with pytest.raises(ValueError, match=says) as error:
        quick(convert_spin, folder / "a.npz", folder / "r")
    assert "a.npz" in str(error.value) and not (folder / "r").exists()


@pytest.mark.parametrize("convert", [convert_spin, convert_4dhumans])
def test_files_that_are_no_label_files(folder, convert):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        quick(convert, folder / "nowhere.npz", folder / "r")
    (folder / "a.npz").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="a.npz: expected an npz file"):
        quick(convert, folder / "a.npz", folder / "r")
    np.savez(folder / "b.npz", poses=np.zeros(3))
    with pytest.raises(ValueError, match="b.npz: has no 'imgname'"):
        quick(convert, folder / "b.npz", folder / "r")
    np.savez(folder / "c.npz", imgname=np.array([], str))
    with pytest.raises(ValueError, match="c.npz: holds no people"):
        quick(convert, folder / "c.npz", folder / "r")
    np.savez(folder / "d.npz", imgname=np.array(["images/none.jpg"]))
    with pytest.raises(
        FileNotFoundError, match="such as images/none.jpg, were looked for in"
    ):
        quick(convert, folder / "d.npz", folder / "r")
    whole = (folder / "c.npz").read_bytes()
    (folder / "e.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="e.npz: expected an npz file"):
        quick(convert, folder / "e.npz", folder / "r")


@pytest.mark.parametrize("convert", [convert_spin, convert_4dhumans])
def test_objects_in_npz_files_run_nothing(folder, convert, monkeypatch):
    monkeypatch.chdir(folder)
    np.savez(
        "good.npz",
        imgname=NAMES.astype(object),
        center=(LOW + HIGH) / 2,
        scale=(HIGH - LOW).max(1),
        extra_info=np.array([Hostile()] * N, object),
        **(
            {"part": part24()}
            if convert is convert_spin
            else {"extra_keypoints_2d": part24()[:, :19]}
        ),
    )
    # what is not wanted is not read
    assert quick(convert, folder / "good.npz", folder / "r")["written"] == 7
    np.savez("hostile.npz", imgname=np.array([Hostile()], object))
    with pytest.raises(UnsafePickleError, match="hostile.npz: refused"):
        quick(convert, folder / "hostile.npz", folder / "r2")
    assert not Path("owned").exists()


def test_bad_pictures_are_counted(folder):
    spin(folder / "lsp_train.npz", part=part24())
    (folder / "images/im0001.jpg").unlink()
    (folder / "images/im0002.jpg").write_bytes(b"\xff\xd8 nothing")
    cv2.imwrite(str(folder / "images/im0005.jpg"), np.zeros((9, 9, 3), np.uint8))
    facts = quick(convert_spin, folder / "lsp_train.npz", folder / "r")
    assert (
        facts["dropped"]
        == {
            "image missing": 1,
            "image unreadable": 1,
            "mostly outside the image": 1,
            "too small": 1,
        }
        and facts["read"] == 8
    )


# 4D-Humans


def person_44(i, **more):
    kp = np.zeros((44, 3), np.float32)
    kp[25:39, :2], kp[25:39, 2] = KP[i], 1
    return {
        "keypoints_2d": kp,
        "keypoints_3d": np.zeros((44, 4), np.float32),
        "center": (LOW + HIGH)[i] / 2,
        "scale": (HIGH - LOW)[i] / 200,
        "body_pose": np.full(72, 0.1, np.float32),
        "betas": np.zeros(10),
        "has_body_pose": np.array(1.0),
        "has_betas": np.array([1.0]),
        "extra_info": {"a": "b"},
    } | more


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def members(folder):
    return {
        f"{n.removesuffix('.jpg')}.{kind}": data
        for i, n in enumerate(NAMES.tolist())
        for kind, data in (
            ("jpg", (folder / n).read_bytes()),
            ("data.pyd", pickle.dumps([person_44(i)])),
            ("detection.npz", b"masks"),
        )
    }


def test_npz_with_scale_in_pixels(folder):
    extra3 = np.zeros((N, 19, 4))
    extra3[:, 5] = [1, 2, 3, 1]
    np.savez(
        folder / "val.npz",
        imgname=[n.encode() for n in NAMES],
        center=(LOW + HIGH) / 2,
        scale=HIGH - LOW,
        extra_keypoints_3d=extra3,
        body_pose=np.zeros((N, 72)),
        betas=np.zeros((N, 10)),
        has_betas=np.array([0] + [1] * 7),
    )
    facts = quick(convert_4dhumans, folder / "val.npz", folder / "r")
    assert (
        facts["written"],
        facts["with_3d"],
        facts["with_smpl"],
        facts["splits"],
    ) == (7, 7, 6, {"test": 7}) and len(facts["names"]) == 32
    photos = read_4dhumans(folder / "val.npz")
    np.testing.assert_allclose(photos[2].people[0].box, [*LOW[2], *(HIGH - LOW)[2]])
    e = next(iter(examples(folder / "r")))
    assert e.kp3d[e.names.index("ankle_l")].tolist() == [1, 2, 3]


def test_tars_give_what_the_pictures_and_labels_are(folder, members):
    members["images/more.jpg"], members["images/more.data.pyd"] = (
        members["images/im0001.jpg"],
        pickle.dumps([person_44(0), person_44(0)], protocol=2),
    )
    write_tar(folder / "000.tar", members)
    facts = quick(convert_4dhumans, folder / "000.tar", folder / "r")
    assert facts["dropped"] == {"too small": 1} and (
        facts["read"],
        facts["written"],
        facts["with_smpl"],
    ) == (10, 9, 9)
    for e in examples(folder / "r"):
        stem = Path(e.source).name
        i = 0 if stem == "more" else int(stem[2:]) - 1
        seen = e.state > 0
        assert {n for n, s in zip(e.names, seen) if s} == set(SPIN24[:14])
        np.testing.assert_allclose(e.crop.undo(e.kp2d)[:14], KP[i], atol=2e-2)
    shutil.copy(folder / "000.tar", folder / "001.tar")
    two = quick(convert_4dhumans, folder, folder / "r2")
    assert two["written"] == 18


def test_tars_that_lack_parts(folder, members):
    del members["images/im0001.jpg"], members["images/im0002.data.pyd"]
    members["images/im0003.data.pyd"] = b"no pickle"
    members["images/im0005.data.pyd"] = pickle.dumps(
        [{"keypoints_2d": np.zeros((17, 3))}]
    )
    members["images/im0006.data.pyd"] = pickle.dumps([])
    members["images/im0007.data.pyd"] = pickle.dumps({"persons": 1})
    members["images/im0008.jpg"] = members["images/im0008.jpg"][:999]
    write_tar(folder / "000.tar", members)
    facts = quick(convert_4dhumans, folder / "000.tar", folder / "r")
    assert facts["dropped"] == {
        "image missing": 1,
        "image unreadable": 1,
        "labels unreadable": 3,
        "no labels": 1,
        "nobody in the labels": 1,
        "too small": 1,
    }
    assert facts["read"] == 8 and facts["written"] == 0


def test_pickles_in_tars_run_nothing(folder, members, monkeypatch):
    monkeypatch.chdir(folder)
    members["images/im0002.data.pyd"] = pickle.dumps(
        [person_44(1, extra_info=Hostile())]
    )
    write_tar(folder / "000.tar", members)
    with pytest.raises(
        UnsafePickleError,
        match=r"000.tar/images/im0002: refused, it asks for \w+.mkdir",
    ):
        quick(convert_4dhumans, folder / "000.tar", folder / "r")
    with pytest.raises(UnsafePickleError):
        _read_pyd(pickle.dumps(Hostile()))
    assert not Path("owned").exists()


def test_damaged_tars(folder, members):
    write_tar(folder / "a.tar", members)
    (folder / "cut.tar").write_bytes((folder / "a.tar").read_bytes()[:20_000])
    write_tar(folder / "z.tar", members, "w:gz")
    (folder / "html.tar").write_bytes(b"<html>" * 200)
    for name in ("cut", "z", "html"):
        with pytest.raises(
            ValueError, match=f"{name}.tar: expected an uncompressed tar"
        ):
            quick(convert_4dhumans, folder / f"{name}.tar", folder / "r")
    write_tar(folder / "empty.tar", {"readme.txt": b"hello"})
    with pytest.raises(ValueError, match="holds no pictures"):
        quick(convert_4dhumans, folder / "empty.tar", folder / "r")
    assert not (folder / "r").exists()


def test_two_workers_read_the_same_from_tars(folder, members):
    write_tar(folder / "000.tar", members)
    for name, workers in (("one", 1), ("two", 2)):
        convert_4dhumans(
            folder / "000.tar", folder / name, workers=workers, progress=False
        )
    one, two = (
        {f.name: f.read_bytes() for f in (folder / n).iterdir()} for n in ("one", "two")
    )
    assert one == two


# OpenPose


def write_json(path, *people, key="pose_keypoints_2d"):
    Path(path).write_text(
        json.dumps(
            {
                "version": 1.3,
                "people": [
                    {
                        key: np.asarray(p, float).ravel().tolist(),
                        "face_keypoints_2d": [],
                        "hand_left_keypoints_3d": [],
                    }
                    for p in people
                ],
            }
        ),
        encoding="utf-8",
    )


def detected(i, names=BODY25, confidence=0.9):
    found, lsp = (
        np.zeros((len(names), 3)),
        dict(zip(keypoint_set("lsp14").names, KP[i])),
    )
    for k, n in enumerate(names):
        if n in lsp:
            found[k] = [*lsp[n], confidence]
    return found


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.floats(2, 900), st.floats(2, 900), st.floats(0.01, 1), st.booleans()
            ),
            min_size=25,
            max_size=25,
        ),
        max_size=3,
    ),
    st.sampled_from([18, 25]),
)
def test_what_is_found_is_read_and_the_rest_is_nan(tmp_path_factory, people, k):
    path = tmp_path_factory.mktemp("op") / "a_keypoints.json"
    tables = [
        np.array([(x, y, c) if seen else (0, 0, 0) for x, y, c, seen in p[:k]])
        for p in people
    ]
    write_json(path, *tables, key="pose_keypoints" if k == 18 else "pose_keypoints_2d")
    got = read_openpose(path)
    assert [name for name, _ in got] == [{18: "openpose18", 25: "body25"}[k]] * len(
        people
    )
    for table, (_, found) in zip(tables, got):
        np.testing.assert_array_equal(found, np.where(table[:, 2:] > 0, table, np.nan))


def test_a_folder_of_pictures(folder):
    for i in range(6):
        write_json(
            folder / f"images/im{i + 1:04d}_keypoints.json",
            *([detected(i)] if i else []),
        )
    faint = detected(6)
    faint[:, 2] = 0.1
    write_json(folder / "images/im0007_keypoints.json", faint)
    facts = quick(convert_openpose, folder / "images", folder / "r")
    assert facts["dropped"] == {
        "nobody found": 1,
        "no json": 1,
        "too few points": 1,
        "too small": 1,
    } and (facts["read"], facts["written"]) == (8, 4)
    assert quick(
        convert_openpose,
        folder / "images",
        folder / "all",
        confidence=0.05,
        split="test",
    )["splits"] == {"test": 5}
    for e in examples(folder / "r"):
        i = int(Path(e.source).stem[2:]) - 1
        back = dict(zip(e.names, e.crop.undo(e.kp2d)))
        for k, n in enumerate(keypoint_set("lsp14").names[:12]):
            np.testing.assert_allclose(back[n], KP[i, k], atol=2e-3)
        assert (
            np.isnan(back["neck_mid_shoulders"]).all()
            and "neck" not in back
            and set(e.state) <= {0, 2}
        )


def test_labels_in_another_folder_and_18_beside_25(folder):
    (folder / "json").mkdir()
    write_json(
        folder / "json/im0002_keypoints.json",
        detected(1, keypoint_set("openpose18").names),
        key="pose_keypoints",
    )
    facts = quick(convert_openpose, folder, folder / "r", labels=folder / "json")
    assert len(facts["names"]) == 18 and facts["written"] == 1
    write_json(folder / "json/im0003_keypoints.json", detected(2))
    write_json(folder / "json/gone_keypoints.json", detected(2))
    facts = quick(convert_openpose, folder, folder / "both", labels=folder / "json")
    assert (
        facts["names"] == list(BODY25)
        and facts["written"] == 2
        and facts["dropped"] == {"image missing": 1, "no json": 6}
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected OpenPose's json"),
        ("[]", "expected OpenPose's json"),
        ('{"people": 3}', "expected OpenPose's json"),
        ('{"people": [{"pose_keypoints_2d": [1, 2]}]}', "expected OpenPose's json"),
        (
            '{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}',
            "18 or 25 points a person, found 1",
        ),
        (
            '{"people": [{"pose_keypoints_2d": [0.1, 0.2, 0.9'
            + ", 0.1, 0.2, 0.9" * 24
            + "]}]}",
            "keypoint_scale 0",
        ),
    ],
)
def test_json_that_is_not_openposes(folder, text, says):
    (folder / "images/im0001_keypoints.json").write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        quick(convert_openpose, folder / "images", folder / "r")
    assert "im0001_keypoints.json" in str(error.value) and not (folder / "r").exists()
    with pytest.raises(ValueError, match=says):
        boxes_from_openpose(folder / "images/im0001_keypoints.json")


def test_inference_takes_its_boxes_from_the_same_reader(folder):
    write_json(folder / "a.json", detected(0), np.zeros((25, 3)))
    (box,) = boxes_from_openpose(folder / "a.json")
    inner = KP[0, :12]  # OpenPose has no head top, and another neck
    np.testing.assert_allclose(box, [*inner.min(0), *np.ptp(inner, axis=0)])


@pytest.mark.parametrize("name", ["mpii", "coco", "spin", "4dhumans", "openpose"])
def test_the_command_knows_them(name):
    assert find_converter(name).__doc__ and "min_points" in _options(name)


@pytest.mark.skipif(
    not REAL.is_dir(), reason="the real OpenPose answer is not on this machine"
)
def test_two_real_people(tmp_path):
    facts = quick(convert_openpose, REAL, tmp_path / "r")
    assert facts["read"] == facts["written"] == 2 and len(facts["names"]) == 18
    tables = [t for _, t in read_openpose(REAL / "random_keypoints.json")]
    for e, table in zip(examples(tmp_path / "r"), tables):
        np.testing.assert_allclose(
            e.crop.undo(e.kp2d)[e.state > 0], table[e.state > 0, :2], atol=2e-3
        )
        at = {n: e.kp2d[i] for i, n in enumerate(e.names)}
        # upright
        assert at["neck_mid_shoulders"][1] < np.nanmean(
            [at["hip_l"][1], at["hip_r"][1]]
        )
