"""MPI-INF-3DHP: the official containers with their quirks, bad input, workers and
resume."""

import shutil
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import scipy.io
from conftest import as_options
from video_data import (
    bytes_of,
    dot_errors,
    dots,
    figure_motion,
    intrinsics,
    seen_by,
    write_pictures,
    write_video,
)

from hmr_nb.basics.keypoints import keypoint_set, map_points
from hmr_nb.basics.values import Identity
from hmr_nb.records.datasets import mpi_inf_3dhp
from hmr_nb.records.datasets.mpi_inf_3dhp import (
    OFFICIAL_FRAMES,
    convert_mpi_inf_3dhp,
    moving_frames,
    read_annotations,
    read_calibration,
    read_test_labels,
)
from hmr_nb.records.reader import card, examples
from hmr_nb.shell.commands import main

TRAIN, TEST = keypoint_set("mpi_inf_3dhp28").names, keypoint_set("mpi_inf_3dhp17").names
K0 = np.array([[1497.693, 0, 1024.704], [0, 1497.103, 1051.394], [0, 0, 1]])
SMALL = np.diag([0.25, 0.25, 1]) @ K0  # the videos here have 512 px
OFF = [TRAIN.index(n) for n in ("hip_l", "hip_r", "mpi_spine")]


def motion(camera, count, names=TRAIN):
    return figure_motion(names, count) + [0.1 * camera, 0, 0.05 * camera]


def write_calibration(path, K=SMALL, size=512):
    lines = ["Skeletool Camera Calibration File V1.0"]
    for c in range(14):
        K4, E4 = np.eye(4), np.eye(4)
        K4[:3, :3], E4[:3, 3] = K, [0, 900.5, 4000]

        def row(A):
            return " ".join(repr(float(v)) for v in A.ravel()) + " "

        lines += [
            f"name          {c}",
            "  sensor      10 10 ",
            f"  size        {size} {size} ",
            "  animated    0",
            f"  intrinsic   {row(K4)}",
            f"  extrinsic   {row(E4)}",
            "  radial      0",
        ]
    path.write_text("\n".join(lines) + "\n")


def write_sequence(
    folder, rows=14, frames=12, filmed=(0, 2), ids=range(14), calibrated=True
):
    folder.mkdir(parents=True)
    cells = {k: np.empty((14, 1), object) for k in ("annot2", "annot3", "univ_annot3")}
    for place, camera in enumerate(ids):
        X = motion(camera, rows)
        px = seen_by(SMALL, X)
        if camera in filmed:
            write_video(
                folder / f"imageSequence/video_{camera}.avi",
                [dots(kp, (512, 512), 2.5) for kp in px[:frames]],
                "MJPG",
            )
        px[:, OFF] += [1, -1]
        for key, x in (("annot2", px), ("annot3", 1000 * X), ("univ_annot3", 900 * X)):
            cells[key][place, 0] = x.reshape(rows, -1)
    scipy.io.savemat(
        folder / "annot.mat",
        {
            **cells,
            "cameras": np.array([list(ids)], np.uint8),
            "frames": np.arange(rows)[:, None],
        },
    )
    if calibrated:
        write_calibration(folder / "camera.calibration")


def write_test_video(folder, valid, size=(1080, 1920), offset=(0.0, 0.0, 0.0)):
    count = len(valid)
    K = np.array([[1683.48, 0, 939.93], [0, 1671.93, 560.21], [0, 0, 1]])
    X = figure_motion(TEST, count) + offset
    # one more than rows
    write_pictures(
        folder / "imageSequence" / "img_%06d.jpg",
        [dots(kp, size) for kp in seen_by(K, X)] + [dots(np.zeros((0, 2)), size)],
        1,
    )
    with h5py.File(folder / "annot_data.mat", "w", userblock_size=512) as f:
        f["annot2"], f["annot3"], f["univ_annot3"] = (
            seen_by(K, X)[:, None],
            1000 * X[:, None],
            920 * X[:, None],
        )
        f["valid_frame"], f["activity_annotation"] = (
            np.array(valid, float)[:, None],
            np.full((count, 1), 4.0),
        )
        f["bb_crop"] = np.zeros((count, 4))
    return X


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("3dhp")
    write_sequence(root / "S1" / "Seq1")
    # cells in another order
    write_sequence(
        root / "S1" / "Seq2", rows=9, frames=9, ids=[*range(1, 14), 0], calibrated=False
    )
    write_sequence(root / "S8" / "Seq1", filmed=(0,))
    return root


@pytest.fixture(scope="module")
def tests(tmp_path_factory):
    root = tmp_path_factory.mktemp("tests")
    inner = root / "mpi_inf_3dhp_test_set" / "mpi_inf_3dhp_test_set"
    write_test_video(inner / "TS5", [1, 0, 1, 1, 1, 0, 1])
    # half of the person outside the picture
    write_test_video(inner / "TS6", [1, 1, 0], offset=(2.1, 0, 0))
    return root


def convert(source, out, **options):
    return convert_mpi_inf_3dhp(
        source,
        out,
        **{
            "workers": 1,
            "progress": False,
            "cameras": (0, 2),
            "min_move": 0,
            **options,
        },
    )


@pytest.fixture(scope="module")
def converted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "r"
    convert(data, out)
    return out


def test_cells_go_by_camera_number(data):
    for sequence, rows in (("Seq1", 14), ("Seq2", 9)):
        for camera, (px, m) in read_annotations(
            data / "S1" / sequence / "annot.mat"
        ).items():
            np.testing.assert_allclose(m, motion(camera, rows), atol=1e-6)
            assert px.dtype == m.dtype == np.float32 and camera in (
                0,
                1,
                2,
                4,
                5,
                6,
                7,
                8,
            )


def test_numbers_known_from_the_real_files(tmp_path):
    write_calibration(tmp_path / "camera.calibration", K0, 2048)
    camera, size = read_calibration(tmp_path / "camera.calibration")[0]
    np.testing.assert_allclose(
        seen_by(camera.K, np.array([-18.0923, 102.071, 3726.17])),
        [1017.43, 1092.40],
        atol=0.006,
    )
    assert (
        size == (2048, 2048)
        and camera.t.tolist() == [0, 0.9005, 4]
        and (np.eye(3) == camera.R).all()
    )
    assert (
        len(OFFICIAL_FRAMES) == 16
        and OFFICIAL_FRAMES[6, 2] == 6145
        and OFFICIAL_FRAMES[3, 1] == 12488
    )
    lsp = np.array([25, 24, 23, 18, 19, 20, 16, 15, 14, 9, 10, 11, 5, 7])
    numbers = map_points(
        np.arange(28.0)[:, None] * [1, 1],
        keypoint_set("mpi_inf_3dhp28"),
        keypoint_set("lsp14"),
    )[:, 0]
    assert (numbers == lsp).all()
    test = map_points(
        np.arange(17.0)[:, None] * [1, 1],
        keypoint_set("mpi_inf_3dhp17"),
        keypoint_set("lsp14"),
    )[:, 0]
    assert (test == [10, 9, 8, 11, 12, 13, 4, 3, 2, 5, 6, 7, 1, 0]).all()


def test_counts_splits_and_names(converted):
    facts = card(converted)
    assert (
        facts["read"]
        == facts["written"] + sum(facts["dropped"].values())
        == 2 * 14 + 2 * 9 + 2 * 14
    )
    assert facts["dropped"] == {
        "video ends before this frame": 3 * 2,
        "video missing": 14,
    }
    assert facts["splits"] == {"train": 2 * 12 + 2 * 9, "val": 12} and facts[
        "names"
    ] == list(TRAIN)
    seen = [(e.source, e.identity) for e in examples(converted, "train")]
    who = "mpi_inf_3dhp", "train", "S1"
    assert seen[0] == ("S1/Seq1/video_0#0", Identity(*who, "Seq1", "0", 0))
    assert seen[-1] == ("S1/Seq2/video_2#8", Identity(*who, "Seq2", "2", 8))
    assert len(set(seen)) == len(seen)
    # two cameras of one recording are one cluster
    assert len({identity.cluster for _, identity in seen}) == 2


def test_points_lie_on_the_dots_and_the_camera_sees_them(converted):
    for e in examples(converted):
        X = motion(int(e.identity.camera), 14)[e.frame]
        np.testing.assert_allclose(e.kp3d, X, atol=1e-6)
        fx, fy, cx, cy = intrinsics(e)
        gap = np.linalg.norm(
            X[:, :2] / X[:, 2:] * [fx, fy] + [cx, cy] - e.crop.undo(e.kp2d), axis=1
        )
        # no calibration there: the three odd points pull a little
        fitted = e.sequence == "Seq2"
        assert (
            np.delete(gap, OFF).max() < (1.0 if fitted else 0.01)
            and 1 < gap[OFF].mean() < 2
        )
        moved = e.kp2d.copy()
        moved[OFF] = np.nan
        found = dot_errors(replace(e, kp2d=moved, state=None))
        assert len(found) >= 5 and found.max() < 0.6
        assert (e.state == 2).all()


def test_a_row_past_the_official_end_is_counted(data, tmp_path, monkeypatch):
    monkeypatch.setitem(OFFICIAL_FRAMES, (1, 1), 10)
    facts = convert(data, tmp_path / "r", subjects=(1,), cameras=(0,))
    assert (
        facts["dropped"] == {"past the official end": 4} and facts["written"] == 10 + 9
    )


def test_the_short_video(tmp_path):
    write_sequence(tmp_path / "S6" / "Seq2", rows=14, frames=14)
    video = tmp_path / "S6/Seq2/imageSequence/video_2.avi"
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    facts = convert(tmp_path, tmp_path / "r")
    lost = facts["dropped"]["video ends before this frame"]
    assert 4 <= lost <= 9 and facts["written"] == 28 - lost
    assert [
        e.frame for e in examples(tmp_path / "r") if e.identity.camera == "2"
    ] == list(range(14 - lost))


NAMES_IN_USE = [
    "S1/Seq1/imageFrames/video_0/frame_%06d.jpg",
    "S1/Seq1/video_0/%06d.jpg",
    "S1/Seq1/imageSequence/img_0_%06d.jpg",
    "S1/Seq1/imageFrames/video_0/%06d.jpg",
    "images/S1_Seq1_Cam0_%06d.jpg",
    "S1/Seq1/imageSequence/video_0/img_%06d.jpg",
]


@pytest.mark.parametrize(
    ("name", "first"),
    [(n, 1) for n in NAMES_IN_USE] + [(NAMES_IN_USE[0], 0), (NAMES_IN_USE[1], 0)],
)
def test_unpacked_videos_under_the_usual_names(data, tmp_path, name, first):
    (tmp_path / "S1" / "Seq1").mkdir(parents=True)
    for file in ("annot.mat", "camera.calibration"):
        shutil.copy(data / "S1" / "Seq1" / file, tmp_path / "S1" / "Seq1")
    write_pictures(
        tmp_path / name,
        [dots(seen_by(SMALL, X), (512, 512), 2.5) for X in motion(0, 14)[:5]],
        first,
    )
    facts = convert(tmp_path, tmp_path / "r", cameras=(0,))
    assert facts["written"] == 5 and facts["dropped"] == {"image missing": 9}
    for e in examples(tmp_path / "r"):
        kp2d = e.kp2d.copy()
        kp2d[OFF] = np.nan
        e = replace(e, kp2d=kp2d, state=None)
        assert dot_errors(e).max() < 0.6  # one frame off and the hands would miss


def test_movement_is_compared_within_a_sequence_and_camera(tmp_path):
    X = motion(0, 1)
    assert moving_frames(np.repeat(X, 5, 0)).tolist() == [0]
    step = np.repeat(X, 6, 0)
    step[:, 11, 0] += 0.05 * np.arange(6)  # 50 mm a frame: 200 mm after four
    assert moving_frames(step).tolist() == [0, 4] and moving_frames(
        step, 0.06
    ).tolist() == [0, 2, 4]
    for sequence in ("Seq1", "Seq2"):
        write_sequence(tmp_path / "S1" / sequence, rows=12, frames=12)
    convert(tmp_path, tmp_path / "r", min_move=0.2)
    frames = {}
    for e in examples(tmp_path / "r"):
        frames.setdefault((e.sequence, e.identity.camera), []).append(e.frame)
    assert len(frames) == 4 and all(
        f[0] == 0 and 1 < len(f) < 12 for f in frames.values()
    )
    assert (
        frames["Seq1", "0"]
        == frames["Seq2", "0"]
        == moving_frames(motion(0, 12).astype(np.float32)).tolist()
    )


def test_all_valid_test_frames(tests, tmp_path):
    facts = convert(tests, tmp_path / "r", split="test")
    assert (facts["read"], facts["written"], facts["splits"], facts["dropped"]) == (
        7,
        7,
        {"test": 7},
        {},
    )
    people = list(examples(tmp_path / "r"))
    assert [(e.sequence, e.frame) for e in people] == [
        ("TS5", i) for i in (0, 2, 3, 4, 6)
    ] + [("TS6", 0), ("TS6", 1)]
    assert (
        people[0].names == list(TEST)
        and (people[-1].state == 1).any()
        and (people[-1].state > 0).all()
    )
    np.testing.assert_allclose(
        intrinsics(people[0]), [1683.48, 1671.93, 939.93, 560.21], atol=0.1
    )
    for e in people[:5]:
        found = dot_errors(e)
        assert len(found) >= 5 and found.max() < 0.6


def test_both_kinds_of_metres(tests, tmp_path):
    for kind, factor in (("annot3", 1), ("univ_annot3", 0.92)):
        convert(tests, tmp_path / kind, split="test", test_3d=kind)
        first = next(examples(tmp_path / kind))
        np.testing.assert_allclose(
            first.kp3d, factor * figure_motion(TEST, 7)[0], atol=1e-5
        )


def test_an_old_test_set_is_refused(tests, tmp_path, monkeypatch):
    monkeypatch.setitem(mpi_inf_3dhp.TEST_FRAMES, "TS5", (7, 6))
    with pytest.raises(ValueError, match="expected 6 valid frames, found 5"):
        convert(tests, tmp_path / "r", split="test")


def test_hdf5_axes_are_never_guessed_by_size(tmp_path):
    with h5py.File(tmp_path / "annot_data.mat", "w") as f:
        f["annot2"], f["annot3"], f["univ_annot3"] = (
            np.zeros((17, 1, 17, 2)),
            np.zeros((17, 1, 17, 3)),
            np.ones((17, 1, 17, 3)),
        )
        f["valid_frame"], f["activity_annotation"] = np.ones((17, 1)), np.ones((17, 1))
    assert read_test_labels(tmp_path / "annot_data.mat").kp.shape == (17, 17, 2)
    with h5py.File(tmp_path / "annot_data.mat", "a") as f:
        del f["annot2"]
        f["annot2"] = np.zeros((2, 1, 17, 17))
    with pytest.raises(
        ValueError, match=r"annot2: expected \(17, 1, 17, 2\), got \(2, 1, 17, 17\)"
    ):
        read_test_labels(tmp_path / "annot_data.mat")


def test_two_workers_and_resume_give_the_same_bytes(
    data, converted, tmp_path, monkeypatch
):
    convert(data, tmp_path / "two", workers=2)
    assert bytes_of(tmp_path / "two") == bytes_of(converted)
    honest, count = mpi_inf_3dhp.convert_clip, iter(range(100))
    writer = mpi_inf_3dhp.RecordWriter
    monkeypatch.setattr(
        mpi_inf_3dhp, "RecordWriter", lambda *a, **k: writer(*a, shard_size=5, **k)
    )
    convert(data, tmp_path / "whole")

    def fails(clip):
        if next(count) == 3:
            raise KeyboardInterrupt
        return honest(clip)

    monkeypatch.setattr(mpi_inf_3dhp, "convert_clip", fails)
    with pytest.raises(KeyboardInterrupt):
        convert(data, tmp_path / "resumed")
    assert len(list((tmp_path / "resumed").glob("*.tfrecord"))) >= 4
    convert(data, tmp_path / "resumed", resume=True)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "resumed")


def copied(data, tmp_path):
    shutil.copytree(data / "S1" / "Seq1", tmp_path / "d" / "S1" / "Seq1")
    return tmp_path / "d", tmp_path / "d" / "S1" / "Seq1"


def broken(kind, data, tmp_path):
    "A damaged copy; the options to convert it with."
    root, folder = copied(data, tmp_path)
    annot = scipy.io.loadmat(folder / "annot.mat")
    if kind == "no annot.mat":
        (folder / "annot.mat").unlink()
    elif kind == "annot.mat cut short":
        (folder / "annot.mat").write_bytes((folder / "annot.mat").read_bytes()[:20000])
    elif kind == "keys of another file":
        scipy.io.savemat(folder / "annot.mat", {"joints": np.zeros((3, 14, 5))})
    elif kind == "pixels without metres":
        scipy.io.savemat(
            folder / "annot.mat",
            {"annot2": annot["annot2"], "cameras": annot["cameras"]},
        )
    elif kind == "rows differ":
        annot["annot3"][0, 0] = annot["annot3"][0, 0][:-1]
        scipy.io.savemat(
            folder / "annot.mat", {k: annot[k] for k in ("annot2", "annot3", "cameras")}
        )
    elif kind == "an HDF5 file":
        with h5py.File(folder / "annot.mat", "w") as f:
            f["annot2"] = np.zeros(3)
    elif kind == "no videos":
        shutil.rmtree(folder / "imageSequence")
    elif kind == "calibration of another program":
        (folder / "camera.calibration").write_text("camera 0\n")
    elif kind == "calibration cut short":
        (folder / "camera.calibration").write_text(
            "\n".join((folder / "camera.calibration").read_text().splitlines()[:5])
        )
    elif kind == "empty":
        shutil.rmtree(folder.parent)
    return root, {
        "camera not there": {"cameras": (77,)},
        "another subject": {"subjects": (5,)},
        "another split": {"split": "val"},
        "another 3D": {"split": "test", "test_3d": "mono"},
    }.get(kind, {})


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no annot.mat", "annot.mat: no such file"),
        ("annot.mat cut short", "expected a MATLAB 5 file"),
        ("keys of another file", "annot2 and annot3"),
        ("pixels without metres", "annot2 and annot3"),
        ("rows differ", "expected rows of 56 and of 84"),
        ("an HDF5 file", "expected a MATLAB 5 file"),
        ("no videos", "no imageSequence/video_N.avi"),
        ("calibration of another program", "expected 'Skeletool"),
        ("calibration cut short", "camera 0: expected size"),
        ("empty", "expected the training set's folders S1/Seq1"),
        ("camera not there", "no labels of camera 77"),
        ("another subject", "none of the subjects S5"),
        ("another split", "'val' is not one of 'train', 'test'"),
        ("another 3D", "'mono' is not one of 'annot3', 'univ_annot3'"),
    ],
)
def test_bad_input_is_one_clear_line(data, tmp_path, monkeypatch, capsys, kind, says):
    root, options = broken(kind, data, tmp_path)
    settings = as_options(**options)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "hmr_nb",
            "convert",
            "mpi_inf_3dhp",
            "--data",
            str(root),
            "--out",
            str(tmp_path / "r"),
            "--workers",
            "1",
            *settings,
        ],
    )
    with pytest.raises(SystemExit) as stop:
        main()
    err = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("hmr_nb: ")
    ]
    # 2: a word that the command does not know
    code = 2 if "is not one of" in says or "No such option" in says else 1
    assert stop.value.code == code and len(err) == 1 and says in err[0], err
    assert not (tmp_path / "r" / "card.json").exists()


def test_labels_that_are_nan_are_counted(data, tmp_path):
    root, folder = copied(data, tmp_path)
    annot = scipy.io.loadmat(folder / "annot.mat")
    annot["annot2"][0, 0][3], annot["annot3"][0, 0][3] = np.nan, np.nan
    annot["annot2"][0, 0][5, :2] = np.nan
    scipy.io.savemat(
        folder / "annot.mat", {k: annot[k] for k in ("annot2", "annot3", "cameras")}
    )
    for least in (0, 0.2):
        facts = convert(root, tmp_path / f"r{least}", cameras=(0,), min_move=least)
        assert facts["dropped"]["no labels"] == 1 and facts["read"] == facts[
            "written"
        ] + sum(facts["dropped"].values())
    fifth = next(e for e in examples(tmp_path / "r0") if e.frame == 5)
    assert fifth.state[0] == 0 and (fifth.state[1:] == 2).all()


def test_the_command(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "hmr_nb",
            "convert",
            "mpi_inf_3dhp",
            "--data",
            str(data),
            "--out",
            str(tmp_path / "r"),
            "--workers",
            "1",
            *("--cameras", "0", "--cameras", "2", "--step", "4", "--min-move", "0"),
        ],
    )
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
    out = capsys.readouterr().out
    assert (
        "mpi_inf_3dhp" in out
        and "left out" in out
        and card(tmp_path / "r")["options"]["step"] == 4
    )
    assert {e.frame % 4 for e in examples(tmp_path / "r")} == {0}
