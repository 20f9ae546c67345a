"""MPII: the official file in all its shapes, the other forms, bad input, and the faults
that must not come back."""

import json
import shutil

import cv2
import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hmr_nb.basics.files import shipped
from hmr_nb.basics.keypoints import keypoint_set, map_points, source_order
from hmr_nb.records.card import card_table
from hmr_nb.records.datasets.lsp import read_joints
from hmr_nb.records.datasets.mpii import (
    _read_json,
    _read_mat,
    _read_rect,
    convert_mpii,
    read_mpii,
)
from hmr_nb.records.reader import examples

RAW = shipped("goldens") / "raw" / "lsp"
MPII = keypoint_set("mpii16")
LSP_KP = read_joints(RAW)[1]
EMPTY = np.zeros((0, 0))


def structs(rows):
    "A MATLAB structure array, as scipy writes it."
    out = np.empty((1, len(rows)), dtype=[(n, "O") for n in rows[0]])
    for i, row in enumerate(rows):
        out[0, i] = tuple(row.values())
    return out


def points16(number):
    p = dict(zip(keypoint_set("lsp14").names, LSP_KP[number - 1]))
    p["pelvis"], p["thorax"] = (
        (p["hip_l"] + p["hip_r"]) / 2,
        (p["shoulder_l"] + p["shoulder_r"]) / 2,
    )
    return np.array([p[n] for n in MPII.names])


def rect(kp, visible=None, ids=range(16)):
    """An annorect; `visible` is a list of 16 values, EMPTY among them, or None for no
    field."""
    rows = [
        {"x": kp[k, 0], "y": kp[k, 1], "id": np.uint8(k)}
        | ({} if visible is None else {"is_visible": visible[k]})
        for k in ids
    ]
    return {
        "x1": 1.0,
        "x2": 9.0,
        "annopoints": {"point": structs(rows)} if rows else EMPTY,
        "scale": 1.0,
    }


def write(path, rects, single, train=None):
    "MPII's file: one entry of `rects` for each picture, a list of annorects."
    single_person = np.empty((len(rects), 1), object)
    for i, s in enumerate(single):
        single_person[i, 0] = s
    annolist = structs(
        [
            {
                "image": {"name": f"{i + 1:03d}.jpg"},
                "annorect": structs(r) if r else EMPTY,
            }
            for i, r in enumerate(rects)
        ]
    )
    scipy.io.savemat(
        path,
        {
            "RELEASE": {
                "annolist": annolist,
                "img_train": np.array([train or [1] * len(rects)]),
                "single_person": single_person,
            }
        },
    )


def read_back(path, i=0):
    pictures = np.atleast_1d(
        scipy.io.loadmat(path, struct_as_record=False, squeeze_me=True)[
            "RELEASE"
        ].annolist
    )
    return pictures[i].annorect


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures 1 to 8, and a label file with people alone, with others, without points,
    without labels."""
    path = tmp_path_factory.mktemp("mpii")
    (path / "images").mkdir()
    for n in range(1, 9):
        shutil.copy(RAW / "images" / f"im{n:04d}.jpg", path / "images" / f"{n:03d}.jpg")
    mixed = [0, 1, "0", "1", 1, 1, 1, 1, EMPTY, EMPTY, 1, 1, 1, 1, 1, "0"]
    rects = [
        [rect(points16(1), mixed)],
        [rect(points16(2)), rect(points16(2), mixed)],
        [rect(points16(3), ids=()), rect(points16(3), mixed)],
        [rect(points16(4), mixed)],
        [rect(points16(5), mixed, range(5))],
        [],
        [{"x1": 1.0, "x2": 2.0}],
        [rect(points16(8), mixed)],
    ]
    write(
        path / "mpii_human_pose_v1_u12_1.mat",
        rects,
        [1, 2, np.array([[1], [2]]), 1, 1, EMPTY, 1, 1],
        [1, 1, 1, 1, 1, 1, 0, 1],
    )
    return path


def test_every_person_is_written_or_counted(folder, tmp_path):
    facts = convert_mpii(folder, tmp_path / "r", workers=1, progress=False)
    assert facts["dropped"] == {
        "no points labelled": 1,
        "not apart from others": 1,
        "test picture, its labels are not public": 1,
        "too few points": 1,
        "too small": 1,
    }
    assert facts["read"] == 9 == facts["written"] + 5 and facts["names"] == list(
        MPII.names
    )
    everybody = convert_mpii(
        folder, tmp_path / "all", workers=1, progress=False, single=False
    )
    assert (
        everybody["written"] == 5
        and "not apart from others" not in everybody["dropped"]
    )
    assert [e.source for e in examples(tmp_path / "all")] == [
        f"images/{n:03d}.jpg" for n in (1, 2, 2, 3, 8)
    ]


def test_points_are_where_they_were_labelled(folder, tmp_path):
    convert_mpii(folder, tmp_path / "r", workers=1, progress=False)
    for e in examples(tmp_path / "r"):
        kp = points16(e.frame)
        np.testing.assert_allclose(e.crop.undo(e.kp2d), kp, atol=2e-3)
        assert e.state.tolist() == [1, 2, 1] + [2] * 12 + [1]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    values=st.lists(
        st.sampled_from([0, 1, "0", "1", "", "empty", 0.0, 1.0]),
        min_size=16,
        max_size=16,
    ),
    field=st.booleans(),
    ids=st.sets(st.integers(0, 15)),
)
def test_presence_is_the_label_whatever_is_visible_says(tmp_path, values, field, ids):
    visible = [EMPTY if v == "empty" else v for v in values]
    kp = points16(2)
    write(
        tmp_path / "one.mat", [[rect(kp, visible if field else None, sorted(ids))]], [1]
    )
    got, state = _read_rect(read_back(tmp_path / "one.mat"))
    assert {k for k in range(16) if state[k]} == ids
    np.testing.assert_array_equal(np.isfinite(got).all(1), state > 0)
    np.testing.assert_allclose(got[sorted(ids)], kp[sorted(ids)])
    occluded = {k for k in ids if field and values[k] in (0, "0")}
    assert {k for k in range(16) if state[k] == 1} == occluded


def test_points_that_are_no_numbers_are_missing(tmp_path):
    kp = points16(2)
    kp[3], kp[4, 0] = np.nan, np.inf
    rows = rect(kp, [1] * 16)
    rows["annopoints"]["point"][0, 5]["x"] = EMPTY
    write(tmp_path / "one.mat", [[rows]], [1])
    _, state = _read_rect(read_back(tmp_path / "one.mat"))
    assert (state == 0).nonzero()[0].tolist() == [3, 4, 5]


@pytest.mark.parametrize("single", [1, np.array([[1], [2]]), EMPTY])
def test_a_file_of_one_picture(tmp_path, single):
    "squeeze_me takes the axes away: one picture is no list."
    write(tmp_path / "one.mat", [[rect(points16(2)), rect(points16(3))]], [single])
    (photo,) = _read_mat(tmp_path / "one.mat")
    assert [p.drop == "" for p in photo.people] == [
        1 in np.atleast_1d(single),
        2 in np.atleast_1d(single),
    ]


def test_pelvis_and_thorax_are_neither_nose_nor_eye():
    mpii, model = keypoint_set("mpii16"), keypoint_set("cocoplus19")
    order = source_order(mpii, model)
    assert (
        order[:14].tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15, 8, 9]
        and (order[14:] == -1).all()
    )
    for a, b in [("pelvis", "nose"), ("thorax", "eye_l")]:
        with pytest.raises(ValueError, match=f"{a} may not stand for {b}"):
            map_points(np.zeros((16, 2)), mpii, model, rename={a: b})


def test_neck_and_head_top_are_trained_on(folder, tmp_path):
    convert_mpii(folder, tmp_path / "r", workers=1, progress=False)
    table = card_table(tmp_path / "r")
    assert (
        table.loc[["neck", "head_top"], "visible"].tolist() == [4, 4]
        and table["missing"].sum() == 0
    )
    assert table["occluded"].sum() == 3 * 4


def test_first_pixel(folder, tmp_path):
    a, b = (read_mpii(folder, first_pixel=f)[0].people[0].kp for f in (0, 1))
    np.testing.assert_allclose(a - b, 1)
    facts = convert_mpii(
        folder, tmp_path / "r", workers=1, progress=False, first_pixel=1
    )
    assert facts["options"]["first_pixel"] == 1
    e = next(iter(examples(tmp_path / "r")))
    np.testing.assert_allclose(e.crop.undo(e.kp2d), points16(1) - 1, atol=2e-3)


def test_forms_of_other_projects(folder, tmp_path):
    kp, missing = points16(1), [6, 7]
    joints = kp.copy()
    joints[missing] = -1
    vis = [int(k not in missing) for k in range(16)]
    for part in ("train", "valid", "trainval"):
        (tmp_path / f"{part}.json").write_text(
            json.dumps(
                [
                    {
                        "image": "001.jpg",
                        "center": [1, 1],
                        "scale": 1,
                        "joints": joints.tolist(),
                        "joints_vis": vis,
                    }
                ]
            )
        )
    bearpaw = np.c_[np.where(np.array(vis)[:, None] > 0, kp, 0), np.arange(16) % 2]
    (tmp_path / "mpii_annotations.json").write_text(
        json.dumps(
            [
                {
                    "img_paths": "001.jpg",
                    "isValidation": 1.0,
                    "joint_self": bearpaw.tolist(),
                }
            ]
        )
    )
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["imgname"], file["part"] = (
            np.array([b"001.jpg"]),
            np.where(np.array(vis)[None, :, None] > 0, kp, 0),
        )
    for file in ("train.json", "mpii_annotations.json", "train.h5"):
        (photo,) = read_mpii(tmp_path / file)
        np.testing.assert_allclose(
            photo.people[0].kp, np.where(np.array(vis)[:, None] > 0, kp, np.nan)
        )
        assert (photo.people[0].state == 0).nonzero()[0].tolist() == missing
    assert read_mpii(tmp_path / "mpii_annotations.json")[0].people[0].state[
        :4
    ].tolist() == [1, 2, 1, 2]
    facts = convert_mpii(
        tmp_path, tmp_path / "r", workers=1, progress=False, images=folder / "images"
    )
    # trainval.json holds the same people and is not read
    assert facts["splits"] == {"train": 1, "val": 1}


def test_hrnets_test_file_has_no_labels(tmp_path):
    (tmp_path / "test.json").write_text(
        json.dumps([{"image": "001.jpg", "center": [1, 1], "scale": 1}])
    )
    (photo,) = _read_json(tmp_path / "test.json")
    assert (photo.split, photo.people[0].drop) == ("test", "no points labelled")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.mat", b"<html>"),
        ("a.mat", b""),
        ("a.json", b"{"),
        ("a.json", b"[1]"),
        ("a.json", b'{"image": 1}'),
        ("a.json", b"\xff\xfe"),
        ("a.h5", b"nothing"),
        ("a.json", b'[{"image": "a.jpg", "joints": [[1, 2]], "joints_vis": [1]}]'),
        ("a.json", b'[{"joints": []}]'),
    ],
)
def test_files_that_are_none_of_mpiis(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: expected") as error:
        convert_mpii(tmp_path / name, tmp_path / "r", progress=False)
    assert not (tmp_path / "r").exists() and "Traceback" not in str(error.value)


def test_no_people_no_labels_no_pictures(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no labels of MPII"):
        convert_mpii(tmp_path, tmp_path / "r", progress=False)
    write(tmp_path / "mpii_human_pose_v1_u12_1.mat", [[], []], [EMPTY, EMPTY])
    with pytest.raises(ValueError, match="holds no people"):
        convert_mpii(tmp_path, tmp_path / "r", progress=False)
    shutil.copy(folder / "mpii_human_pose_v1_u12_1.mat", tmp_path)
    with pytest.raises(
        FileNotFoundError, match="such as 001.jpg, were looked for in .*images"
    ):
        convert_mpii(tmp_path, tmp_path / "r", progress=False)


def test_bad_pictures_are_counted(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    images = tmp_path / "m" / "images"
    (images / "001.jpg").write_bytes((images / "001.jpg").read_bytes()[:5000])
    (images / "002.jpg").unlink()
    # the labels lie beyond it
    cv2.imwrite(str(images / "003.jpg"), np.zeros((20, 20, 3), np.uint8))
    facts = convert_mpii(tmp_path / "m", tmp_path / "r", workers=1, progress=False)
    assert {
        k: facts["dropped"][k]
        for k in ("image missing", "image unreadable", "mostly outside the image")
    } == {"image missing": 1, "image unreadable": 1, "mostly outside the image": 1}
    assert facts["read"] == facts["written"] + sum(facts["dropped"].values()) == 9
    lines = (tmp_path / "r" / "dropped.csv").read_text().splitlines()
    assert "images/002.jpg,image missing,train" in lines


def test_two_workers_give_the_same_bytes(folder, tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        convert_mpii(folder, tmp_path / name, workers=workers, progress=False)
    one, two = (
        {f.name: f.read_bytes() for f in (tmp_path / n).iterdir()}
        for n in ("one", "two")
    )
    assert one == two
