"""What is said about a set: tables, viewpoints, warnings, the sheet, the commands."""

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
from hmr_nb.shell.convert import CONVERTERS, _options, find_converter

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
        "--min-points",
        "3",
        "--min-side",
        "10",
    )
    assert code == 0 and "8 examples of lsp" in out
    code, out, _ = run("card", tmp_path / "r")
    assert code == 0 and "person in the source, px" in out and "contact sheet" in out
    code, out, _ = run("convert", "--help")
    assert code == 0 and "Leeds Sports Pose" in out and "hmr2_records" in out
    code, out, _ = run("convert", "lsp", "--help")
    assert code == 0 and "--min-side" in out and "default: 60" in out


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
    "no name": (["convert", "--out", "x"], "--out"),
    "unknown option": (
        ["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--fps", "3"],
        "No such option: --fps",
    ),
    "bad value": (
        ["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--min-side", "big"],
        "Invalid value for '--min-side'",
    ),
    "bad workers": (
        ["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--workers", "zero"],
        "--workers",
    ),
    "split of a set without": (
        ["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--split", "test"],
        "No such option: --split",
    ),
    "domain of photographs": (
        ["convert", "coco", "--data", RAW / "coco", "--out", "x", "--domain", "street"],
        "No such option: --domain",
    ),
    "count of photographs": (
        ["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--count", "4"],
        "No such option: --count",
    ),
    "seed of photographs": (
        ["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--seed", "4"],
        "No such option: --seed",
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


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_converter_is_a_command_whose_options_say_what_they_are(name, run):
    code, out, err = run("convert", name, "--help")
    assert code == 0 and "Example:" in out, err
    options = set(_options(name))
    assert {"out", "workers", "resume"} <= options and "progress" not in options
    said = find_converter(name).__doc__
    if "Args:" in said:  # after `make export`
        assert "all cores" in out
    for option in options:
        assert f"--{option.replace('_', '-')}" in out


def test_a_list_is_given_by_repeating_and_none_by_its_name(run, monkeypatch, tmp_path):
    found = {}

    def convert_mocap(
        data: str, out: str, workers: int | None = None, resume: bool = False,
        fps: float | None = 10.0, exclude: tuple[str, ...] = ("S9",),
    ):  # fmt: skip
        "Nothing."
        found.update(fps=fps, exclude=exclude, resume=resume)
        return {"splits": {}, "written": 0, "dataset": "mocap", "shards": [],
                "read": 0, "dropped": {}, "keypoints": {}}  # fmt: skip

    monkeypatch.setattr("hmr_nb.records.mocap.convert_mocap", convert_mocap)
    where = ("convert", "mocap", "--data", tmp_path, "--out", tmp_path / "o")
    for words, wanted in (
        ((), (10.0, ("S9",), False)),
        (("--fps", "none", "--resume"), (None, ("S9",), True)),
        (("--exclude", "S1", "--exclude", "S2"), (10.0, ("S1", "S2"), False)),
    ):
        assert run(*where, *words)[0] == 0
        assert (found["fps"], found["exclude"], found["resume"]) == wanted
    code, _, err = run(*where, "--fps", "fast")
    assert code == 2 and "--fps" in err and err.count("\n") == 1
