"""TotalCapture: the official text files and videos, bad input, workers and resume."""

import shutil
import sys

import numpy as np
import pytest
from conftest import as_options
from video_data import (
    bytes_of,
    dot_errors,
    dots,
    figure_motion,
    intrinsics,
    write_video,
)

from hmr_nb.basics.keypoints import keypoint_set, map_points
from hmr_nb.records.datasets import total_capture
from hmr_nb.records.datasets.total_capture import (
    _JOINTS,
    convert_total_capture,
    read_calibration,
    read_skeleton,
)
from hmr_nb.records.reader import card, examples
from hmr_nb.shell.commands import main

SIZE = (360, 640)
POINTS = keypoint_set("total_capture21")
LENS = np.array([[350.0 + c, 351.0 + c, 320.5, 180.2, -0.18] for c in range(8)])


def camera(c):
    angle = np.pi / 4 * c + 0.3
    place = np.array([4.2 * np.sin(angle), 1.6, 4.2 * np.cos(angle)])
    z = np.array([0, 0.9, 0]) - place
    z /= np.linalg.norm(z)
    x = np.cross(z, [0, 1.0, 0])
    x /= np.linalg.norm(x)
    R = np.stack([x, np.cross(z, x), z])
    return R, -R @ place


def world(count):
    return figure_motion(POINTS.names, count) * [1, -1, -1] + [0, 0.95, 4]


def seen(X, c):
    R, t = camera(c)
    return X @ R.T + t


def project(x, c):
    u = x[..., :2] / x[..., 2:]
    return (
        u * (1 + LENS[c, 4] * (u**2).sum(-1, keepdims=True)) * LENS[c, :2]
        + LENS[c, 2:4]
    )


def calibration():
    lines = ["8 1"]
    for c in range(8):
        R, t = camera(c)
        lines += [
            f"0 {SIZE[0] - 1} 0 {SIZE[1] - 1}",
            *(
                " ".join(map(repr, map(float, v)))
                for v in (LENS[c, :4], LENS[c, 4:], *R, t)
            ),
        ]
    return "\n".join(lines) + "\n"


def write_skeleton(path, x, words=_JOINTS):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        "\t".join(" ".join(repr(float(v)) for v in joint) for joint in frame) + "\t"
        for frame in x
    ]
    path.write_text("\t".join(words) + "\t\n" + "\n".join(rows) + "\n")


def write_recording(
    folder, films, person, action, rows=13, turns=13, frames=12, cameras=(1, 4)
):
    write_skeleton(folder / "gt_skel_gbl_pos.txt", world(rows) / 0.0254)
    write_skeleton(
        folder / "gt_skel_gbl_ori.txt", np.tile([0, 0, 0, 1.0], (turns, 21, 1))
    )
    for c in cameras:
        write_video(
            films / f"TC_{person}_{action}_cam{c}.mp4",
            [dots(kp, SIZE, 2.5) for kp in project(seen(world(frames), c - 1), c - 1)],
            "mp4v",
            60,
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("tc")
    (root / "calibration.cal").write_text(calibration())
    # as the toolbox lays it out
    write_recording(root / "s1" / "acting1", root / "s1" / "acting1", "S1", "acting1")
    # as downloaded
    write_recording(
        root / "vicon" / "S2" / "walking2",
        root / "video" / "s2" / "s2_walking2",
        "S2",
        "walking2",
        rows=16,
        turns=8,
        cameras=(4,),
    )
    write_recording(
        root / "vicon" / "S4" / "freestyle1",
        root / "video" / "s4",
        "S4",
        "freestyle1",
        cameras=(1,),
    )
    return root


def convert(source, out, **options):
    return convert_total_capture(
        source,
        out,
        **{"workers": 1, "progress": False, "step": 1, "cameras": (1, 4), **options},
    )


@pytest.fixture(scope="module")
def converted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "r"
    convert(data, out)
    return out


def test_counts_and_protocol(data, converted, tmp_path):
    facts = card(converted)
    assert facts["splits"] == {"train": 24, "test": 8} and facts["names"] == list(
        POINTS.names
    )
    assert facts["dropped"] == {
        "past the end of the orientations": 16,
        "video ends before this frame": 2,
        "video missing": 8,
    }
    assert facts["read"] == facts["written"] + 26 == 2 * 13 + 2 * 16
    people = [e.identity for e in examples(converted)]
    assert {(i.subject, i.sequence, i.camera) for i in people} == {
        ("S1", "acting1", "cam1"),
        ("S1", "acting1", "cam4"),
        ("S2", "walking2", "cam4"),
    }
    # two cameras of one recording are one cluster
    assert len({i.cluster for i in people}) == 2
    more = convert(data, tmp_path / "more", train_subjects=("S1", "S4"), split="train")
    assert more["splits"] == {"train": 36}
    assert convert(data, tmp_path / "some", step=6, split="train")["written"] == 4


def test_points_lie_on_the_dots_and_the_camera_sees_them(converted):
    for e in examples(converted):
        c = int(e.identity.camera[-1]) - 1
        np.testing.assert_allclose(e.kp3d, seen(world(16), c)[e.frame], atol=1e-5)
        np.testing.assert_allclose(
            e.crop.undo(e.kp2d), project(seen(world(16), c), c)[e.frame], atol=0.01
        )
        np.testing.assert_allclose(intrinsics(e), LENS[c, :4])
        np.testing.assert_allclose(e.camera.distortion, [-0.18, 0, 0, 0, 0], atol=1e-7)
        found = dot_errors(e)
        assert len(found) >= 3 and found.max() < 0.6


def test_columns_go_by_name(tmp_path):
    order = np.random.default_rng(0).permutation(21)
    write_skeleton(
        tmp_path / "a.txt", world(3)[:, order] / 0.0254, [_JOINTS[i] for i in order]
    )
    np.testing.assert_allclose(read_skeleton(tmp_path / "a.txt"), world(3), atol=1e-9)
    lsp = map_points(
        np.arange(21.0)[:, None] * [1, 1],
        keypoint_set("total_capture21"),
        keypoint_set("lsp14"),
    )[:, 0]
    assert lsp[:13].tolist() == [
        17,
        16,
        15,
        18,
        19,
        20,
        10,
        9,
        8,
        12,
        13,
        14,
        5,
    ] and np.isnan(lsp[13])


def test_calibration_as_a_page_of_numbers(tmp_path):
    (tmp_path / "a.cal").write_text(" ".join(calibration().split()))
    (tmp_path / "b.cal").write_text(
        calibration().replace("8 1", "8 2", 1).replace("\n-0.18\n", "\n-0.18 0.05\n")
    )
    for name, k2 in (("a.cal", 0), ("b.cal", 0.05)):
        cameras = read_calibration(tmp_path / name)
        assert (
            list(cameras) == [*range(1, 9)]
            and cameras[3][1] == SIZE
            and cameras[3][0].distortion.tolist() == [-0.18, k2, 0, 0, 0]
        )
        np.testing.assert_allclose(
            cameras[3][0].see(world(2)), seen(world(2), 2), atol=1e-12
        )
    flat, _ = read_calibration(tmp_path / "a.cal")[3]
    np.testing.assert_allclose(
        flat.project(flat.see(world(2))), project(seen(world(2), 2), 2), atol=1e-9
    )


def test_two_workers_and_resume_give_the_same_bytes(
    data, converted, tmp_path, monkeypatch
):
    convert(data, tmp_path / "two", workers=2)
    assert bytes_of(tmp_path / "two") == bytes_of(converted)
    honest, count = total_capture.convert_clip, iter(range(100))
    writer = total_capture.RecordWriter
    monkeypatch.setattr(
        total_capture, "RecordWriter", lambda *a, **k: writer(*a, shard_size=5, **k)
    )
    convert(data, tmp_path / "whole")

    def fails(clip):
        if next(count) == 2:
            raise KeyboardInterrupt
        return honest(clip)

    monkeypatch.setattr(total_capture, "convert_clip", fails)
    with pytest.raises(KeyboardInterrupt):
        convert(data, tmp_path / "resumed")
    assert len(list((tmp_path / "resumed").glob("*.tfrecord"))) >= 2
    convert(data, tmp_path / "resumed", resume=True)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "resumed")


def broken(kind, root):
    "Damage a copy; the options to convert it with."
    pos = root / "s1" / "acting1" / "gt_skel_gbl_pos.txt"
    if kind == "no calibration":
        (root / "calibration.cal").unlink()
    elif kind == "calibration is a page":
        (root / "calibration.cal").write_text("<html>8 1</html>")
    elif kind == "calibration cut short":
        (root / "calibration.cal").write_text(calibration()[:500])
    elif kind == "no labels":
        for f in list(root.rglob("gt_skel_gbl_pos.txt")):
            f.unlink()
    elif kind == "labels cut short":
        pos.write_text(pos.read_text()[:-700])
    elif kind == "another skeleton":
        pos.write_text(pos.read_text().replace("RightUpLeg", "RightThigh"))
    elif kind == "words among the numbers":
        pos.write_text(pos.read_text() + "end of file\n")
    elif kind == "no videos":
        for f in list(root.rglob("*.mp4")):
            f.unlink()
    return {
        "another subject": {"subjects": "S5"},
        "another camera": {"cameras": "9"},
        "another split": {"split": "val"},
    }.get(kind, {})


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no calibration", "expected calibration.cal"),
        ("calibration is a page", "save the site's page of numbers"),
        ("calibration cut short", "save the site's page of numbers"),
        ("no labels", "expected gt_skel_gbl_pos.txt"),
        ("labels cut short", "is it complete?"),
        ("another skeleton", "no RightUpLeg in the first line"),
        ("words among the numbers", "expected numbers after the first line"),
        ("no videos", "has labels, but no videos"),
        ("another subject", "no recording of S5"),
        ("another camera", "has no camera 9"),
        ("another split", "'val' is not one of 'all', 'train', 'test'"),
    ],
)
def test_bad_input_is_one_clear_line(data, tmp_path, monkeypatch, capsys, kind, says):
    root = tmp_path / "d"
    shutil.copytree(data, root)
    settings = as_options(**broken(kind, root))
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "hmr_nb",
            "convert",
            "total_capture",
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


def test_the_command(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "hmr_nb",
            "convert",
            "total_capture",
            "--data",
            str(data),
            "--out",
            str(tmp_path / "r"),
            "--workers",
            "1",
            *("--cameras", "4", "--split", "test"),
        ],
    )
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
    assert "total_capture" in capsys.readouterr().out
    facts = card(tmp_path / "r")
    assert (
        facts["options"]["cameras"] == [4]
        and facts["options"]["step"] == 6
        and facts["splits"] == {"test": 2}
    )
