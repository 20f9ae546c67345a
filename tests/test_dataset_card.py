"""What is said about a set: tables, viewpoints, warnings, the sheet, and the commands convert and card."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from hmr_nb.basics.files import shipped
from hmr_nb.basics.keypoints import keypoint_set
from hmr_nb.records.card import card_warnings, contact_sheet, people_table
from hmr_nb.records.datasets.lsp import read_joints
from hmr_nb.records.reader import examples
from hmr_nb.records.schema import Sample
from hmr_nb.records.writer import Dropped, RecordWriter
from hmr_nb.shell.commands import (
    CONVERTERS,
    find_converter,
    list_converters,
    read_settings,
)

RAW = shipped("goldens") / "raw"
STUDIO = shipped("samples/studio")


def changed(folder, change):
    with RecordWriter(folder, "changed") as writer:
        for i, e in enumerate(examples(STUDIO)):
            writer.write(change(i, e))
    return folder


def test_a_good_set_has_no_warnings_and_a_spoiled_one_has_its_own(tmp_path):
    assert card_warnings(STUDIO) == []

    def mirror_pixels_only(i, e):
        "The picture turned over, the names left as they were."
        kp2d = [e.image.shape[1] - 1, 0] + e.kp2d * [-1, 1]
        return replace(e, kp3d=e.kp3d * [-1, 1, 1], kp2d=kp2d)

    def all_mm(i, e):
        return replace(e, kp3d=e.kp3d * 1000)

    assert any(
        "knees bend backward" in w
        for w in card_warnings(changed(tmp_path / "a", mirror_pixels_only))
    )
    assert any(
        "do not look like metres" in w
        for w in card_warnings(changed(tmp_path / "b", all_mm))
    )


def test_each_fault_of_a_set_has_its_own_warning(tmp_path):
    """A joint that nobody labelled, two names exchanged, one person of another size: in
    a set that was good before."""
    names = next(examples(STUDIO)).names
    mirror = [
        names.index(n[:-2] + {"_l": "_r", "_r": "_l"}.get(n[-2:], n[-2:]))
        for n in names
    ]

    def no_left_wrist(i, e):
        state = np.where(np.array(e.names) == "wrist_l", 0, e.state)
        return replace(e, state=state)

    def exchanged(i, e):
        fields = ("kp2d", "state", "kp3d")
        return replace(e, **{f: getattr(e, f)[mirror] for f in fields})

    def one_giant(i, e):
        return replace(e, kp3d=e.kp3d * (30 if i == 5 else 1))

    assert card_warnings(changed(tmp_path / "a", no_left_wrist)) == [
        "never labelled: wrist_l"
    ]
    found = card_warnings(changed(tmp_path / "b", exchanged))
    assert (
        found
        and all("left and right look exchanged" in w for w in found)
        and len(found) == 2
    )
    [far] = card_warnings(changed(tmp_path / "c", one_giant))
    assert far.startswith("3D size (metres?): 1 of 48 far from the median")


def test_people_in_numbers():
    table = people_table(STUDIO)
    for row, e in zip(table.itertuples(), examples(STUDIO)):
        assert (
            row.stored_px == max(e.image.shape[:2])
            and row.labelled == (e.state > 0).sum()
            and row.occluded == (e.state == 1).sum()
        )
        np.testing.assert_allclose(
            [row.person_px, row.source_px],
            [max(e.box[2:]), max(e.box[2:]) / e.crop.scale],
            rtol=1e-4,
        )


def test_an_empty_set(tmp_path, run):
    with RecordWriter(tmp_path / "r", "nobody") as writer:
        writer.write(Dropped("a.jpg", "too small"))
    code, out, _ = run("card", tmp_path / "r")
    assert (
        code == 0
        and "0 examples" in out
        and "warning: no examples at all" in out
        and "1 too small" in out
    )


def test_a_set_with_one_person_and_two_points(tmp_path, run):
    with RecordWriter(tmp_path / "r", "one") as writer:
        writer.write(
            Sample(
                ["paw", "tail"], [[3, 4], [9, 9]], image=np.zeros((12, 12, 3), np.uint8)
            )
        )
    code, out, _ = run("card", tmp_path / "r")
    assert (
        code == 0
        and "paw" in out
        and (tmp_path / "r" / "contact_sheet.png").stat().st_size > 50
    )
    assert contact_sheet(tmp_path / "r").ndim == 3


def test_convert_and_card_from_the_command_line(tmp_path, run):
    code, out, _ = run(
        "convert",
        "lsp",
        "--data",
        RAW / "lsp",
        "--out",
        tmp_path / "r",
        "--workers",
        "1",
        "--set",
        "min_points=3",
        "--set",
        "min_side=10",
    )
    assert code == 0 and "8 examples of lsp" in out
    code, out, _ = run("card", tmp_path / "r")
    assert code == 0 and "person in the source, px" in out and "contact sheet" in out
    code, out, _ = run("convert", "--list")
    assert code == 0 and "--set min_side=60" in out and "hmr2_records" in out


def test_the_split_that_is_asked_for_is_the_one_that_is_written(tmp_path, run):
    "The converter has an option of this name; the command must hand it on."
    (tmp_path / "d").mkdir()
    joints = dict(zip(keypoint_set("lsp14").names, read_joints(RAW / "lsp")[1][1]))
    table = [
        [*joints[n], 0.9] if n in joints else [0, 0, 0]
        for n in keypoint_set("body25").names
    ]
    (tmp_path / "d" / "im0002_keypoints.json").write_text(
        json.dumps({"people": [{"pose_keypoints_2d": np.ravel(table).tolist()}]})
    )
    shutil.copy(RAW / "lsp" / "images" / "im0002.jpg", tmp_path / "d")
    code, out, err = run(
        "convert",
        "openpose",
        "--data",
        tmp_path / "d",
        "--out",
        tmp_path / "r",
        "--split",
        "test",
        "--workers",
        "1",
    )
    assert code == 0 and "1 examples of openpose (1 test)" in out, err


BAD = {
    "no out": (["convert", "lsp", "--data", RAW / "lsp"], "--out"),
    "no data": (["convert", "lsp", "--out", "x"], "--data"),
    "no name": (["convert", "--out", "x"], "expected one of lsp"),
    "unknown option": (
        ["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--set", "fps=3"],
        "min_points, min_side, train_count",
    ),
    "bad value": (
        [
            "convert",
            "lsp",
            "--data",
            RAW / "lsp",
            "--out",
            "x",
            "--set",
            "min_side=big",
        ],
        "--set min_side=big: expected float",
    ),
    "bad workers": (
        ["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--workers", "zero"],
        "--workers",
    ),
    "split of a set without": (
        ["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--split", "test"],
        "--split: this dataset's converter has no such option; its own are min_points",
    ),
    "domain of photographs": (
        ["convert", "coco", "--data", RAW / "coco", "--out", "x", "--domain", "street"],
        "--domain: this dataset's converter has no such option",
    ),
    "count of photographs": (
        ["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--count", "4"],
        "--count: this dataset's converter has no such option",
    ),
    "seed of photographs": (
        ["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--seed", "4"],
        "--seed: this dataset's converter has no such option",
    ),
    "split given twice": (
        [
            "convert",
            "openpose",
            "--data",
            RAW / "lsp",
            "--out",
            "x",
            "--split",
            "test",
            "--set",
            "split=val",
        ],
        "--split test: given twice",
    ),
    "unknown split": (
        ["convert", "h36m", "--data", RAW / "lsp", "--out", "x", "--split", "tset"],
        "tset",
    ),
    "no pictures": (
        ["convert", "synthetic", "--count", "0", "--out", "x"],
        "expected count ≥ 1",
    ),
    "unknown domain": (
        ["convert", "synthetic", "--domain", "moon", "--out", "x"],
        "moon",
    ),
    "unknown split of a domain": (
        ["convert", "synthetic", "--split", "tset", "--count", "1", "--out", "x"],
        "tset",
    ),
    "no cluster": (
        [
            "convert",
            "lsp",
            "--data",
            RAW / "lsp",
            "--out",
            "x",
            "--workers",
            "dask://127.0.0.1:9",
        ],
        "no Dask scheduler answers",
    ),
    "read only": (
        [
            "convert",
            "lsp",
            "--data",
            RAW / "lsp",
            "--out",
            "/dev/full/x",
            "--workers",
            "1",
        ],
        "/dev/full/x",
    ),
    "no records": (
        ["convert", "hmr2_records", "--data", RAW / "lsp", "--out", "x"],
        "expected a folder with *.tfrecord",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=lambda c: c.replace(" ", "_"))
def test_bad_input_is_one_line(case, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hmr_nb.records.workers._DASK_PATIENCE", 0.2)
    words, says = BAD[case]
    code, _, err = run(*words)
    lines = [line for line in err.splitlines() if line.startswith("hmr_nb: ")]
    assert code != 0 and len(lines) == 1 and says in lines[0] and "Traceback" not in err
    assert not list(tmp_path.rglob("*.tfrecord"))


def test_every_listed_converter_can_be_called():
    listed = [
        line.split(":")[0] for line in list_converters() if not line.startswith(" ")
    ]
    assert set(listed) <= set(CONVERTERS) and {
        "lsp",
        "lsp_extended",
        "hr_lspet",
        "hmr_records",
        "hmr2_records",
        "synthetic",
    } <= set(listed)
    for name in listed:
        assert (
            find_converter(name).__doc__
            and read_settings(find_converter(name), []) == {}
        )
