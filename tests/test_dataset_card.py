"""What is said about a set: tables, viewpoints, warnings, the sheet, and the commands convert and card."""

import numpy as np
import pytest

from hmr_nb.body_data import shipped
from hmr_nb.cli import CONVERTERS, find_converter, list_converters, main, read_settings
from hmr_nb.dataset_card import card_warnings, contact_sheet, people_table
from hmr_nb.records import Dropped, Example, RecordWriter, examples

RAW = shipped("goldens") / "raw"
STUDIO = shipped("samples/studio")


@pytest.fixture
def run(monkeypatch, capsys):
    "Run a command in this process: exit code, stdout, stderr."

    def call(*words):
        monkeypatch.setattr("sys.argv", ["hmr_nb", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def changed(folder, change):
    with RecordWriter(folder, "changed") as writer:
        for i, e in enumerate(examples(STUDIO)):
            change(i, e)
            writer.write(e)
    return folder


def test_a_good_set_has_no_warnings_and_a_spoiled_one_has_its_own(tmp_path):
    assert card_warnings(STUDIO) == []

    def mirror_pixels_only(i, e):  # the picture turned over, the names left as they were
        e.kp3d = e.kp3d * [-1, 1, 1]
        e.kp2d = [e.image.shape[1] - 1, 0] + e.kp2d * [-1, 1]

    def all_mm(i, e):
        e.kp3d = e.kp3d * 1000

    assert any("knees bend backward" in w for w in card_warnings(changed(tmp_path / "a", mirror_pixels_only)))
    assert any("do not look like metres" in w for w in card_warnings(changed(tmp_path / "b", all_mm)))


def test_people_in_numbers():
    table = people_table(STUDIO)
    for row, e in zip(table.itertuples(), examples(STUDIO)):
        assert row.stored_px == max(e.image.shape[:2]) and row.labelled == (e.state > 0).sum() and row.occluded == (e.state == 1).sum()
        np.testing.assert_allclose([row.person_px, row.source_px], [max(e.box[2:]), max(e.box[2:]) / e.crop[0, 0]], rtol=1e-4)


def test_an_empty_set(tmp_path, run):
    with RecordWriter(tmp_path / "r", "nobody") as writer:
        writer.write(Dropped("a.jpg", "too small"))
    code, out, _ = run("card", tmp_path / "r")
    assert code == 0 and "0 examples" in out and "warning: no examples at all" in out and "1 too small" in out


def test_a_set_with_one_person_and_two_points(tmp_path, run):
    with RecordWriter(tmp_path / "r", "one") as writer:
        writer.write(Example(["paw", "tail"], [[3, 4], [9, 9]], image=np.zeros((12, 12, 3), np.uint8)))
    code, out, _ = run("card", tmp_path / "r")
    assert code == 0 and "paw" in out and (tmp_path / "r" / "contact_sheet.png").stat().st_size > 50
    assert contact_sheet(tmp_path / "r").ndim == 3


def test_convert_and_card_from_the_command_line(tmp_path, run):
    code, out, _ = run("convert", "lsp", "--data", RAW / "lsp", "--out", tmp_path / "r", "--workers", "1", "--set", "min_points=3", "--set", "min_side=10")
    assert code == 0 and "8 examples of lsp" in out
    code, out, _ = run("card", tmp_path / "r")
    assert code == 0 and "person in the source, px" in out and "contact sheet" in out
    code, out, _ = run("convert", "--list")
    assert code == 0 and "--set min_side=60" in out and "hmr2_records" in out


BAD = {
    "no out": (["convert", "lsp", "--data", RAW / "lsp"], "--out"),
    "no data": (["convert", "lsp", "--out", "x"], "--data"),
    "no name": (["convert", "--out", "x"], "expected one of lsp"),
    "unknown option": (["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--set", "fps=3"], "min_points, min_side, train_count"),
    "bad value": (["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--set", "min_side=big"], "--set min_side=big: expected float"),
    "bad workers": (["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--workers", "zero"], "--workers"),
    "no cluster": (["convert", "lsp", "--data", RAW / "lsp", "--out", "x", "--workers", "dask://127.0.0.1:9"], "no Dask scheduler answers"),
    "read only": (["convert", "lsp", "--data", RAW / "lsp", "--out", "/dev/full/x", "--workers", "1"], "/dev/full/x"),
    "no records": (["convert", "hmr2_records", "--data", RAW / "lsp", "--out", "x"], "expected a folder with *.tfrecord"),
}


@pytest.mark.parametrize("case", BAD, ids=lambda c: c.replace(" ", "_"))
def test_bad_input_is_one_line(case, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hmr_nb.records.DASK_PATIENCE", 0.2)
    words, says = BAD[case]
    code, _, err = run(*words)
    lines = [line for line in err.splitlines() if line.startswith("hmr_nb: ")]
    assert code != 0 and len(lines) == 1 and says in lines[0] and "Traceback" not in err
    assert not list(tmp_path.rglob("*.tfrecord"))


def test_every_listed_converter_can_be_called():
    listed = [line.split(":")[0] for line in list_converters() if not line.startswith(" ")]
    assert set(listed) <= set(CONVERTERS) and {"lsp", "lsp_extended", "hr_lspet", "hmr_records", "hmr2_records", "synthetic"} <= set(listed)
    for name in listed:
        assert find_converter(name).__doc__ and read_settings(find_converter(name), []) == {}
