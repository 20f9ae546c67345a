"""Recorded motion: both families of files, hostile and broken ones, one set of many,
interruption."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_data import bytes_of

from hmr_nb.records import mocap
from hmr_nb.records.mocap import _frame_step, _smpl_rotations, convert_mocap, load_mocap
from hmr_nb.shell.commands import main
from hmr_nb.training.experiment import Experiment

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "real"


def rows(n, width=72, start=0.0):
    out = np.random.default_rng([n, width]).normal(0, 0.3, (n, width))
    out[:, 0] = start + np.arange(n) / 1000
    return out


def put(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        path.write_bytes(
            pickle.dumps(arrays, protocol=2).replace(
                b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
            )
        )


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def data(tmp_path):
    d = tmp_path / "DiskS9" / "data"  # a disk whose name is like a subject's
    put(
        d / "ACCAD/s1/walk_poses.npz",
        poses=rows(240, 156),
        betas=np.ones(16),
        trans=np.zeros((240, 3)),
        gender="female",
        mocap_framerate=120.0,
    )
    put(d / "ACCAD/s1/shape.npz", betas=np.ones(16))
    put(
        d / "BMLmovi/a_stageii.npz",
        poses=rows(100, 165),
        mocap_frame_rate=100,
        surface_model_type="smplx",
        gender=np.bytes_(b"male"),
    )
    put(d / "BMLmovi/a_stagei.npz", betas=np.ones(16))
    put(
        d / "CMU/01/01_01.pkl",
        poses=rows(60),
        betas=np.arange(10.0),
        trans=np.zeros((60, 3)),
    )
    put(d / "CMU/01/01_02.pkl", new_poses=rows(61), betas=np.arange(10.0)[:, None])
    put(d / "H36M/S9/walk_cam0_aligned.pkl", new_poses=rows(30))
    put(d / "H36M/S11/walk_cam0_aligned.pkl", new_poses=rows(30))
    put(d / "H36M/S1/S9_walk_cam0_aligned.pkl", new_poses=rows(30))
    return d


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


def convert(source, out, **options):
    return convert_mocap(source, out, **{"workers": 1, "progress": False, **options})


def test_a_folder_becomes_one_set(data, tmp_path):
    facts = convert(data, tmp_path / "set")
    assert (
        facts["dropped"] == {"folder excluded": 2, "no motion in the file": 2}
        and facts["read"] == facts["written"] + 4 == 9
    )
    assert (
        facts["models"] == {"smpl": 3, "smplh": 1, "smplx": 1}
        and facts["frame_rate_assumed"] == 3
    )
    table = pd.read_csv(tmp_path / "set/motions.csv").set_index("file")
    assert table["written"].to_dict() == {
        "ACCAD/s1/walk_poses.npz": 20,
        "BMLmovi/a_stageii.npz": 10,
        "CMU/01/01_01.pkl": 5,
        "CMU/01/01_02.pkl": 6,
        "H36M/S1/S9_walk_cam0_aligned.pkl": 3,
    }
    assert table["gender"].to_dict()["BMLmovi/a_stageii.npz"] == "male"
    poses = load_mocap(tmp_path / "set").poses
    walk, new = rows(240, 156)[::12], rows(61)[::12]
    np.testing.assert_allclose(poses[:20, :22].reshape(20, 66), walk[:, :66], atol=1e-6)
    assert not poses[:20, 22:].any()  # not the index finger
    np.testing.assert_allclose(poses[35:41].reshape(6, 72), new, atol=1e-6)
    with np.load(tmp_path / "set/mocap_set.npz", allow_pickle=False) as arrays:
        assert (
            np.isnan(arrays["betas"][:2]).all()
            and (arrays["betas"][2:4] == np.arange(10)).all()
            and np.isnan(arrays["betas"][4]).all()
        )
        assert (
            arrays["motion"].tolist() == np.repeat(range(5), [20, 10, 5, 6, 3]).tolist()
        )
    assert (
        facts["frames"]["read"]
        == facts["frames"]["written"]
        + facts["frames"]["not_finite"]
        + facts["frames"]["between"]
        == 240 + 100 + 60 + 61 + 30
    )


def test_options(data, tmp_path):
    assert (
        convert(data, tmp_path / "all", fps=None, exclude=())["frames"]["written"]
        == 240 + 100 + 60 + 61 + 90
    )
    table = pd.read_csv(tmp_path / "all/motions.csv")
    assert set(table["fps"]) == {100, 120}
    assert load_mocap(tmp_path / "all").fps is None  # not the same for all
    assert (
        convert(data, tmp_path / "slow", assumed_fps=60.0)["frames"]["written"]
        == 20 + 10 + 10 + 11 + 5
    )
    thin = load_mocap(tmp_path / "all", fps=10).poses
    assert len(thin) == 20 + 10 + 5 + 6 + 3 * 3


@given(st.floats(1, 1000), st.floats(0.1, 500))
def test_thinning_is_the_rounded_ratio(rate, fps):
    n = _frame_step(rate, fps)
    assert n == max(1, round(rate / fps)) and isinstance(n, int)
    assert _frame_step(rate, None) == 1


@settings(max_examples=25)
@given(st.integers(1, 40), st.sampled_from([72, 156, 165]))
def test_rows_keep_the_first_22_joints(n, width):
    x = rows(n, width)
    R = _smpl_rotations(x).reshape(n, 72)
    np.testing.assert_array_equal(R[:, :66], x[:, :66])
    assert (R[:, 66:] == (x[:, 66:] if width == 72 else 0)).all()


def test_broken_and_hostile_files_are_counted_and_run_nothing(data, tmp_path):
    ran = tmp_path / "ran"
    put(data / "z/hostile.pkl", poses=rows(9), betas=Canary(ran))
    np.savez(data / "z/objects.npz", poses=np.array([Canary(ran)], object))
    put(data / "z/wrong_width.pkl", poses=rows(9, 70))
    put(data / "z/text.pkl", poses=np.array([["a"] * 72]))
    put(data / "z/none.pkl", poses=None)
    put(data / "z/empty.npz", poses=np.zeros((0, 156)))
    put(data / "z/nan.npz", poses=np.full((30, 156), np.nan), mocap_framerate=30.0)
    put(
        data / "z/some_nan.npz",
        poses=np.where(np.arange(30)[:, None] < 10, np.nan, rows(30, 156)),
        mocap_framerate=10.0,
    )
    put(data / "z/odd_rate.npz", poses=rows(24, 156), mocap_framerate=np.nan)
    (data / "z/list.pkl").write_bytes(pickle.dumps([1], protocol=2))
    (data / "z/cut.npz").write_bytes(
        (data / "ACCAD/s1/walk_poses.npz").read_bytes()[:4000]
    )
    (data / "z/cut.pkl").write_bytes((data / "CMU/01/01_01.pkl").read_bytes()[:4000])
    (data / "z/zero.pkl").write_bytes(b"")
    facts = convert(data, tmp_path / "set")
    assert facts["dropped"] == {
        "folder excluded": 2,
        "no motion in the file": 2,
        "no usable pose": 2,
        "refused: it asks for code to be run": 1,
        "unreadable": 8,
    }
    # of some_nan, and of what was kept of nan
    assert facts["frames"]["not_finite"] == 10 + 10
    assert (
        facts["written"] == 7 and facts["frame_rate_assumed"] == 4 and not ran.exists()
    )
    poses = load_mocap(tmp_path / "set").poses
    assert (
        len(poses) == facts["frames"]["written"] == 44 + 20 + 2
        and np.isfinite(poses).all()
    )
    assert facts["read"] == facts["written"] + sum(facts["dropped"].values())
    listed = pd.read_csv(tmp_path / "set/dropped.csv").set_index("file")["reason"]
    assert (
        listed["z/hostile.pkl"].startswith("refused")
        and listed["z/objects.npz"] == "unreadable"
        and len(listed) == 15
    )


def test_an_archive_that_swells_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (600_000, 156)}
    )
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("poses.npy", "w") as stream,
    ):
        stream.write(header.getvalue())
        for _ in range(600):
            stream.write(bytes(1000 * 156 * 8))
    with pytest.raises(ValueError, match="unpacks to 0.7 GiB"):
        load_mocap(tmp_path / "bomb.npz")


def test_nothing_to_convert(tmp_path, command, capsys):
    (tmp_path / "empty").mkdir()
    for folder, words in (("empty", "found nothing"), ("nowhere", "no such folder")):
        assert (
            command(
                "convert", "mocap", "--data", tmp_path / folder, "--out", tmp_path / "o"
            )
            != 0
        )
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said
    put(tmp_path / "shapes/shape.npz", betas=np.ones(16))
    with pytest.raises(ValueError, match="none of the 1 files gave a pose"):
        convert(tmp_path / "shapes", tmp_path / "set")
    assert (
        not (tmp_path / "set/card.json").exists()
        and not (tmp_path / "set/mocap_set.npz").exists()
    )


def test_workers_and_an_earlier_set_change_nothing(data, tmp_path):
    convert(data, data / "set")
    # the set below `data` is not taken for a recording
    convert(data, tmp_path / "two", workers=2)
    assert bytes_of(data / "set") == bytes_of(tmp_path / "two")


KILLED = """
import os, sys
from hmr_nb.records import mocap
mocap._PART_FILES, real, seen = 2, mocap._read_recording, []
def read_recording(source):
    seen.append(source)
    if len(seen) > {after}:
        os._exit(9)
    return real(source)
mocap._read_recording = read_recording
mocap.convert_mocap({data!r}, {out!r}, workers=1, progress=False, resume=True)
"""


def test_killed_at_several_moments_then_resumed_is_the_same(data, tmp_path):
    convert(data, tmp_path / "calm")
    out = tmp_path / "killed"
    for after in (1, 3, 4):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                KILLED.format(after=after, data=str(data), out=str(out)),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 9, done.stderr
        assert not (out / "card.json").exists()
    assert mocap._PoseWriter(
        out, json.loads((out / "unfinished/plan.json").read_text()), resume=True
    ).place == (6, 0)
    # as a kill in the middle of writing leaves it
    (out / "unfinished" / ".000003.99.part.npz").write_bytes(b"half")
    (out / ".mocap_set.99.part.npz").write_bytes(b"half")
    convert(data, out, resume=True)
    assert bytes_of(out) == bytes_of(tmp_path / "calm")


def test_resume_notices_other_settings_and_other_files(data, tmp_path):
    convert(data, tmp_path / "set")
    with pytest.raises(ValueError, match="already holds mocap"):
        convert(data, tmp_path / "set")
    with pytest.raises(ValueError, match="begun with other settings"):
        convert(data, tmp_path / "set", resume=True, fps=20)
    put(data / "more/one_poses.npz", poses=rows(9, 156))
    with pytest.raises(ValueError, match="begun with other settings"):
        convert(data, tmp_path / "set", resume=True)


def test_an_unwritable_place_is_named(data, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file.*could not be written"):
        convert(data, tmp_path / "file" / "set")


def test_the_critic_learns_from_a_set(data, tmp_path):
    from hmr_nb.training.trainer import real_poses

    convert(data, tmp_path / "set")
    for path in (tmp_path / "set", tmp_path / "set/mocap_set.npz"):
        poses = real_poses(Experiment(poses=str(path)))
        assert poses.shape == (44, 24, 3) and poses.dtype == np.float32


def test_command_line(data, tmp_path, command, capsys):
    assert (
        command(
            "convert",
            "mocap",
            "--data",
            data,
            "--out",
            tmp_path / "set",
            "--workers",
            "1",
            *("--fps", "5", "--exclude", "S1", "--exclude", "S9", "--exclude", "S11"),
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "4 examples of mocap" in said and "3 folder excluded" in said
    assert load_mocap(tmp_path / "set").fps == 5


def test_a_real_recording_equals_the_old_converters_rows(tmp_path):
    file, golden = (
        SHARED / "smpl_poses/cmu_smpl_01_01.pkl",
        SHARED / "goldens/converter_smpl_cmu.npz",
    )
    if not file.is_file() or not golden.is_file():
        pytest.skip(
            "no recorded motion beside the checkout (shared/real): licensed, not"
            " shipped"
        )
    facts = convert(file, tmp_path / "set", fps=None)
    assert facts["frames"]["written"] == 2751  # the old converter lost the last one
    with (
        np.load(tmp_path / "set/mocap_set.npz", allow_pickle=False) as arrays,
        np.load(golden, allow_pickle=False) as old,
    ):
        mine = np.concatenate(
            [arrays["poses"], np.repeat(arrays["betas"], len(arrays["poses"]), 0)], 1
        )[:-1]
        np.testing.assert_array_equal(mine[:3], old["first3"])
        np.testing.assert_array_equal(mine[-3:], old["last3"])
        np.testing.assert_allclose(
            mine.sum(0, dtype=np.float64), old["sum_per_column"], rtol=1e-9, atol=1e-6
        )
