"""Human3.6M: the official files and the three common forms of them, with their quirks;
bad input, workers and resume."""

import os
import pickle
import shutil
import sys
import zipfile
from dataclasses import replace

import cdflib.cdfwrite
import cv2
import h5py
import numpy as np
import pytest
from conftest import as_options
from scipy.spatial.transform import Rotation
from video_data import (
    bytes_of,
    dot_errors,
    dots,
    figure_motion,
    intrinsics,
    write_pictures,
    write_video,
)

from hmr_nb.basics.keypoints import keypoint_set, map_points
from hmr_nb.basics.values import Identity
from hmr_nb.records.datasets import h36m
from hmr_nb.records.datasets.h36m import (
    convert_h36m,
    read_cdf,
    read_metadata,
    read_object_npz,
)
from hmr_nb.records.reader import card, examples
from hmr_nb.shell.commands import main

CAMERAS = ("54138969", "55011271", "58860488", "60457274")
NAMES = keypoint_set("h36m32").names
PEOPLE = [f"S{i}" for i in range(1, 12)]
# f f c c k1 k2 k3 p1 p2, for 512 px
LENS = np.array(
    [[520.0, 519.0, 256.0, 258.0, -0.2071, 0.2478, -0.0031, -0.00142, -0.00098]] * 4
)
LENS[:, 0] += np.arange(4)
PLACES = np.array(
    [(2.0, 4.1, 1.6), (1.8, -4.1, 1.6), (-1.9, 4.2, 1.5), (-1.7, -4.0, 1.4)]
)
DISTORTION = np.array([-0.2071, 0.2478, -0.00142, -0.00098, -0.0031])  # OpenCV's order
SEVENTEEN = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]
ROWS = [  # action id, trial, S1, S9, S11
    (1, 1, "_ALL", "_ALL", "_ALL"),
    (1, 2, "_ALL 1", "_ALL 1", "_ALL 1"),
    (2, 1, "Directions 1", "Directions 1", "Directions 1"),
    (2, 2, "Directions", "Directions", "Directions"),
    (3, 1, "Greeting 1", "Greeting 1", "Greeting 2"),
    (3, 2, "Greeting", "Greeting", "Greeting"),
    (4, 1, "TakingPhoto 1", "Photo 1", "Photo 1"),
    (4, 2, "TakingPhoto", "Photo", "Photo"),
    (5, 1, "Waiting 1", "Waiting 1", "Waiting 1"),
    (5, 2, "Waiting", "Waiting", "Waiting"),
]


def rotation(camera):
    z = np.array([0, 0, 0.9]) - PLACES[camera]
    z /= np.linalg.norm(z)
    x = np.cross(z, [0, 0, 1.0])
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


def seen(X, camera):
    return (X - PLACES[camera]) @ rotation(camera).T


def project(x, camera):
    "By the formula, not by the library's call."
    fx, fy, cx, cy, k1, k2, k3, p1, p2 = LENS[camera]
    u, v = x[..., 0] / x[..., 2], x[..., 1] / x[..., 2]
    r2 = u * u + v * v
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    return np.stack(
        [
            fx * (u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u)) + cx,
            fy * (v * radial + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v) + cy,
        ],
        -1,
    )


def world(count):
    x, down, away = np.moveaxis(figure_motion(NAMES, count), -1, 0)
    X = np.stack([-x, 4 - away, 0.95 - down], -1)
    X[:, 11], X[:, 16], X[:, 24] = X[:, 0], X[:, 13], X[:, 13]
    return X


def metadata_xml():
    w0 = np.zeros((4, 11, 6))
    for c in range(4):
        w0[c, :] = [
            *Rotation.from_matrix(rotation(c)).as_euler("XYZ"),
            *(1000 * PLACES[c]),
        ]

    def tr(*values):
        return "<tr>" + "".join(f"<td>{v}</td>" for v in values) + "</tr>\n"

    rows = "".join(
        tr(a, t, *[{"S1": s1, "S9": s9, "S11": s11}.get(p, s1) for p in PEOPLE])
        for a, t, s1, s9, s11 in ROWS
    )
    # the mapping is followed by rows of another kind
    rows += "<tr/>" * 40 + tr("notes")
    words = "".join(
        f"<i>{w}</i>" for w in ("ALL", "Directions", "Greeting", "Photo", "Waiting")
    )
    numbers = " ".join(repr(float(v)) for v in [*w0.ravel(), *LENS.ravel()])
    ids = "".join(f"<i>{c}</i>" for c in CAMERAS)
    return (
        '<?xml version="1.0"?>\n<metadata>\n'
        f"<mapping>{tr('', '', *PEOPLE)}{rows}</mapping>"
        f"<actionnames>{words}</actionnames>"
        f"<dbcameras><index2id>{ids}</index2id></dbcameras>"
        f"<w0>[{numbers}]</w0></metadata>"
    )


def write_cdf(path, x):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    flat = np.asarray(x, np.float32).reshape(1, len(x), -1)
    file = cdflib.cdfwrite.CDF(
        str(path), cdf_spec={"Majority": "row_major", "Compressed": 0}
    )
    file.write_var(
        {
            "Variable": "Pose",
            "Data_Type": 44,
            "Num_Elements": 1,
            "Rec_Vary": True,
            "Dim_Sizes": list(flat.shape[1:]),
            "Dim_Vary": [True, True],
            "Compress": 0,
        },
        var_data=flat,
    )
    file.close()


def write_recording(
    root,
    person,
    name,
    rows=11,
    frames=None,
    displaced=0.0,
    cameras=range(4),
    folders="MyPoseFeatures/",
    features=("D2_Positions", "D3_Positions_mono", "D3_Positions"),
):
    X = world(rows)
    labels = X + [displaced, 0, 0]
    base = root / person
    if "D3_Positions" in features:
        write_cdf(base / f"{folders}D3_Positions" / f"{name}.cdf", 1000 * labels)
    for c in cameras:
        for feature, x in (
            ("D2_Positions", project(seen(labels, c), c)),
            ("D3_Positions_mono", 1000 * seen(labels, c)),
            ("D3_Positions_mono_universal", 910 * seen(labels, c)),
        ):
            if feature in features:
                write_cdf(base / f"{folders}{feature}" / f"{name}.{CAMERAS[c]}.cdf", x)
        kp = project(seen(X, c), c)[:frames, sorted(set(range(32)) - {11, 16, 24})]
        write_video(
            base / "Videos" / f"{name}.{CAMERAS[c]}.mp4",
            [dots(p, (514 if c in (0, 3) else 512, 512), 2.5) for p in kp],
            "mp4v",
            50,
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("h36m")
    (root / "metadata.xml").write_text(metadata_xml())
    write_recording(root, "S1", "TakingPhoto 1")
    write_recording(root, "S9", "Directions 1", cameras=(0, 3))
    write_recording(root, "S9", "Waiting 1", displaced=0.2)
    write_recording(root, "S11", "Directions", cameras=(0, 3))
    write_recording(root, "S11", "Greeting 2", rows=18, frames=11, cameras=(0, 3))
    write_video(
        root / "S9" / "Videos" / f"_ALL.{CAMERAS[0]}.mp4",
        [dots(np.zeros((0, 2)), (512, 512))],
        "mp4v",
    )
    return root


def convert(source, out, **options):
    return convert_h36m(source, out, **{"workers": 1, "progress": False, **options})


@pytest.fixture(scope="module")
def converted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "r"
    convert(data, out)
    return out


def test_metadata(data):
    meta = read_metadata(data / "metadata.xml")
    assert (
        meta.trials["S1", "TakingPhoto 1"]
        == meta.trials["S9", "Photo 1"]
        == ("Photo", 1)
    )
    assert (
        meta.trials["S11", "Greeting 2"] == ("Greeting", 1)
        and ("S9", "_ALL") not in meta.trials
    )
    for i, c in enumerate(CAMERAS):
        for person in ("S1", "S9", "S11"):
            cam = meta.cameras[person, c]
            np.testing.assert_allclose(cam.R, rotation(i), atol=1e-12)
            np.testing.assert_allclose(-cam.R.T @ cam.t, PLACES[i], atol=1e-12)
            np.testing.assert_allclose(cam.distortion, DISTORTION)
            np.testing.assert_allclose(
                cam.project(cam.see(world(3))), project(seen(world(3), i), i), atol=1e-9
            )


def test_each_person_has_own_cameras(tmp_path):
    w0 = np.arange(300.0)
    text = metadata_xml()
    (tmp_path / "m.xml").write_text(
        text[: text.index("<w0>")]
        + "<w0>["
        + " ".join(map(str, w0))
        + "]</w0></metadata>"
    )
    meta = read_metadata(tmp_path / "m.xml")
    for person, camera in (("S1", 0), ("S9", 2), ("S11", 3)):
        start = 6 * (11 * camera + int(person[1:]) - 1)
        cam = meta.cameras[person, CAMERAS[camera]]
        np.testing.assert_allclose(
            -cam.R.T @ cam.t, w0[start + 3 : start + 6] / 1000, atol=1e-12
        )
        a, b, c = w0[start : start + 3]
        rx, ry, rz = (
            Rotation.from_euler(axis, v).as_matrix()
            for axis, v in (("x", a), ("y", b), ("z", c))
        )
        np.testing.assert_allclose(cam.R, rx @ ry @ rz, atol=1e-12)
        f = w0[264 + 9 * camera :][:9]
        assert (
            cam.K[0, 0] == f[0]
            and cam.K[1, 2] == f[3]
            and cam.distortion.tolist() == [f[4], f[5], f[7], f[8], f[6]]
        )


def test_points_have_their_names():
    lsp = map_points(
        np.arange(32.0)[:, None] * [1, 1], keypoint_set("h36m32"), keypoint_set("lsp14")
    )[:, 0]
    assert lsp.tolist() == [3, 2, 1, 6, 7, 8, 27, 26, 25, 17, 18, 19, 13, 15]
    assert [NAMES[i] for i in SEVENTEEN] == list(keypoint_set("h36m17").names)


def test_cdf_with_and_without_the_leading_axis(data, monkeypatch):
    file = data / "S9/MyPoseFeatures/D3_Positions/Directions 1.cdf"
    whole = read_cdf(file, 3)
    np.testing.assert_allclose(whole, world(11), atol=1e-6)
    assert (
        (whole[:, 11] == whole[:, 0]).all()
        and (whole[:, 16] == whole[:, 13]).all()
        and (whole[:, 24] == whole[:, 13]).all()
    )
    honest = cdflib.CDF
    monkeypatch.setattr(h36m.cdflib, "CDF", lambda f: {"Pose": honest(f)["Pose"][0]})
    np.testing.assert_array_equal(read_cdf(file, 3), whole)


def test_counts_and_names(converted):
    facts = card(converted)
    # of three recordings two cameras have world labels alone
    assert facts["dropped"] == {
        "video known to be broken": 3,
        "video ends before this frame": 2,
        "video missing": 20,
    }
    assert facts["read"] == facts["written"] + 25 == 3 * 4 * 4 + 4 * 4
    assert facts["splits"] == {"train": 12, "test": 3 * (2 + 4 + 1) + 3 * 2} and facts[
        "names"
    ] == list(NAMES)
    people = {e.source: e for e in examples(converted)}
    e = people["S11/Greeting 2.60457274#10"]
    assert e.identity == Identity("h36m", "test", "S11", "Greeting_1", "60457274", 10)
    photo = people["S1/TakingPhoto 1.54138969#0"].identity
    assert (photo.sequence, photo.camera) == ("Photo_1", "54138969")
    # one recording of four cameras is one cluster
    assert len({e.identity.cluster for e in people.values()}) == 5
    assert {e.frame for e in people.values()} == {0, 5, 10}


def test_points_lie_on_the_dots_and_the_camera_sees_them(converted):
    for e in examples(converted):
        c = CAMERAS.index(e.identity.camera)
        X = seen(world(18), c)[e.frame]
        np.testing.assert_allclose(e.kp3d, X, atol=2e-6)
        source = e.crop.undo(e.kp2d)
        np.testing.assert_allclose(source, project(X, c), atol=0.01)
        fx, fy, cx, cy = intrinsics(e)
        again = cv2.projectPoints(
            e.kp3d.astype(float),
            np.zeros(3),
            np.zeros(3),
            np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
            e.camera.distortion,
        )[0][:, 0]
        np.testing.assert_allclose(again, source, atol=0.01)
        kp2d = e.kp2d.copy()
        kp2d[[11, 16, 24]] = np.nan
        found = dot_errors(replace(e, kp2d=kp2d, state=None))
        assert len(found) >= 4 and found.max() < 0.6


def test_a_displaced_sequence_goes_back_onto_the_person(data, tmp_path):
    for way in ("fix", "keep", "drop"):
        facts = convert(data, tmp_path / way, s9=way, subjects=("S9",))
        assert facts["dropped"] == {
            "video missing": 6,
            **({"labels known to be displaced": 12} if way == "drop" else {}),
        }
    pairs = zip(examples(tmp_path / "fix"), examples(tmp_path / "keep"), strict=True)
    for fixed, kept in pairs:
        c, beside = (
            CAMERAS.index(fixed.identity.camera),
            fixed.sequence.startswith("Waiting"),
        )
        difference = (kept.kp3d - fixed.kp3d) @ rotation(c)  # in the world
        np.testing.assert_allclose(
            difference, np.tile([0.2 * beside, 0, 0], (32, 1)), atol=1e-5
        )
        # the aligned error is the same
        np.testing.assert_allclose(
            fixed.kp3d - fixed.kp3d[0], kept.kp3d - kept.kp3d[0], atol=1e-5
        )


def test_protocols(data, tmp_path):
    videos = {}
    for protocol in ("p1", "p2", "p2_first_trial"):
        convert(data, tmp_path / protocol, protocol=protocol)
        videos[protocol] = {
            (e.subject, e.sequence, e.identity.camera)
            for e in examples(tmp_path / protocol, "test")
        }
        # all that is there, in each
        assert sum(1 for _ in examples(tmp_path / protocol, "train")) == 12
    front = {v for v in videos["p1"] if v[2] == "60457274"}
    first = {v for v in front if v[1].endswith("_1")}
    assert videos["p2"] == front and videos["p2_first_trial"] == first
    assert len(videos["p1"]) == 9 and len(front) == 4
    assert front - first == {("S11", "Directions_2", "60457274")}


def test_no_video_is_lost_to_its_name(converted):
    videos = {e.source.split("#")[0] for e in examples(converted, "test")}
    old = {
        f
        for f in videos
        if " 2_" not in f.replace(".", "_") and " 3_" not in f.replace(".", "_")
    }
    assert videos - old == {"S11/Greeting 2.54138969", "S11/Greeting 2.60457274"}


def test_the_broken_video(data, tmp_path):
    facts = convert(data, tmp_path / "r", drop_broken=False, subjects=("S11",))
    assert (
        facts["dropped"] == {"video ends before this frame": 2, "video missing": 14}
        and facts["written"] == 6 + 6
    )


def test_steps(data, tmp_path):
    convert(data, tmp_path / "r", step=1, subjects=("S9",), split="test", protocol="p2")
    assert [e.frame for e in examples(tmp_path / "r")] == [
        *range(11)
    ] * 2  # the last frame, too


def test_without_d2_the_pixels_are_projected(data, tmp_path):
    (tmp_path / "metadata.xml").write_text(metadata_xml())
    write_recording(
        tmp_path, "S9", "Directions 1", cameras=(3,), features=("D3_Positions",)
    )
    convert(tmp_path, tmp_path / "r")
    for e in examples(tmp_path / "r"):
        np.testing.assert_allclose(
            e.crop.undo(e.kp2d), project(seen(world(11), 3), 3)[e.frame], atol=0.01
        )


def test_folders_as_h36m_fetch_unpacks_them(tmp_path):
    inner = tmp_path / "extracted"
    write_recording(
        inner,
        "S1",
        "Directions 1",
        cameras=(0,),
        folders="Poses_",
        features=("D2_Positions", "D3_Positions_mono_universal"),
    )
    (tmp_path / "metadata.xml").write_text(metadata_xml())
    with pytest.raises(FileNotFoundError, match="set pose3d to mono_universal"):
        convert(tmp_path, tmp_path / "r")
    facts = convert(tmp_path, tmp_path / "r", pose3d="mono_universal")
    assert facts["written"] == 3 and facts["options"]["pose3d"] == "mono_universal"
    np.testing.assert_allclose(
        next(examples(tmp_path / "r")).kp3d, 0.91 * seen(world(1), 0)[0], atol=1e-5
    )


def test_annot_h5(tmp_path):
    folder = tmp_path / "processed" / "S9" / "Directions"
    frames = np.arange(0, 11, 5)
    folder.mkdir(parents=True)
    with h5py.File(folder / "annot.h5", "w") as f:
        f["pose/2d"] = np.concatenate(
            [project(seen(world(11), c), c)[::5] for c in range(4)]
        )
        f["pose/3d-univ"] = np.concatenate(
            [1000 * seen(world(11), c)[::5] for c in range(4)]
        )
        f["frame"], f["camera"] = (
            np.tile(frames + 1, 4),
            np.repeat([int(c) for c in CAMERAS], 3),
        )
        f["subject"], f["action"] = np.full(12, 9), np.full(12, 1)
        for c, name in enumerate(CAMERAS):
            f[f"intrinsics/{name}"] = LENS[c, [0, 2, 1, 3]]
    for c, name in enumerate(CAMERAS):
        for i in frames:
            write_pictures(
                folder / "imageSequence" / name / "img_%06d.jpg",
                [dots(project(seen(world(11), c), c)[i], (512, 512), 2.5)],
                i + 1,
            )
    facts = convert(tmp_path, tmp_path / "r")
    assert facts["written"] == 12 and facts["names"] == list(NAMES)
    for e in examples(tmp_path / "r"):
        c = CAMERAS.index(e.identity.camera)
        np.testing.assert_allclose(e.kp3d, seen(world(11), c)[e.frame], atol=1e-5)
        np.testing.assert_allclose(intrinsics(e), LENS[c, :4])
        assert e.frame % 5 == 0 and e.camera.distortion is None
        assert dot_errors(e).max() < 0.6
    with h5py.File(folder / "annot.h5", "a") as f:
        del f["pose/3d-univ"]
    with pytest.raises(ValueError, match="annot.h5: expected h36m-fetch's"):
        convert(tmp_path, tmp_path / "other")


def test_videopose3d(data, tmp_path):
    root = tmp_path / "d"
    root.mkdir()
    shutil.copy(data / "metadata.xml", root)
    for person in ("S1", "S9"):
        shutil.copytree(data / person / "Videos", root / person / "Videos")
    moved = world(11) + [0.2, 0, 0]
    np.savez(
        root / "data_3d_h36m.npz",
        positions_3d={
            "S1": {"Photo 1": world(11).astype(np.float32)},
            "S9": {
                "Directions 1": world(11).astype(np.float32),
                "Waiting 1": moved.astype(np.float32),
            },
        },
    )
    facts = convert(root, tmp_path / "r")
    # two cameras of Directions 1 have no video
    assert facts["written"] == 12 + 6 + 12 and facts["dropped"] == {"video missing": 6}
    for e in examples(tmp_path / "r"):
        c = CAMERAS.index(e.identity.camera)
        np.testing.assert_allclose(e.kp3d, seen(world(11), c)[e.frame], atol=1e-5)
        np.testing.assert_allclose(
            e.crop.undo(e.kp2d), project(seen(world(11), c), c)[e.frame], atol=0.01
        )


def test_object_npz_runs_nothing(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'opened'}",)

    np.savez(tmp_path / "trap.npz", positions_3d=np.array({"S1": Trap()}, object))
    with pytest.raises(ValueError, match="refused"):
        read_object_npz(tmp_path / "trap.npz", "positions_3d")
    assert not (tmp_path / "opened").exists()
    for protocol in (2, 4):  # as old and new NumPy write them
        header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
        header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
        body = pickle.dumps(
            np.array({"S1": {"Walking": np.ones((2, 32, 3), np.float32)}}, object),
            protocol=protocol,
        )
        with zipfile.ZipFile(tmp_path / "made.npz", "w") as z:
            z.writestr(
                "positions_3d.npy",
                b"\x93NUMPY\x01\x00"
                + len(header).to_bytes(2, "little")
                + header
                + body,
            )
        assert read_object_npz(tmp_path / "made.npz", "positions_3d")["S1"][
            "Walking"
        ].shape == (2, 32, 3)
    for bad in (b"", b"PK\x03\x04 cut", (tmp_path / "made.npz").read_bytes()[:300]):
        (tmp_path / "bad.npz").write_bytes(bad)
        with pytest.raises(
            ValueError, match="bad.npz: expected an npz file with one object"
        ):
            read_object_npz(tmp_path / "bad.npz", "positions_3d")


def test_mmpose(tmp_path):
    rows, c = [0, 5, 10], 0
    px, m = (
        project(seen(world(11), c), c)[rows][:, SEVENTEEN],
        seen(world(11), c)[rows][:, SEVENTEEN],
    )
    names = [
        f"S9/S9_Directions_2.54138969/S9_Directions_2.54138969_{i + 1:06d}.jpg"
        for i in rows
    ]
    for i, name, kp in zip(rows, names, px):
        write_pictures(
            tmp_path / "images" / name.replace(f"{i + 1:06d}", "%06d"),
            [dots(kp, (514, 512), 2.5)],
            i + 1,
        )
    one = np.ones((3, 17, 1))
    one[1, 4] = 0  # a point without a label
    order = [2, 0, 1]
    part, S = np.concatenate([px, one], -1), np.concatenate([m, one], -1)
    (tmp_path / "annotations").mkdir()
    arrays = {
        "imgname": np.array(names)[order],
        "center": np.zeros((3, 2)),
        "scale": np.ones(3),
        "part": part[order],
        "S": S[order],
    }
    np.savez(tmp_path / "annotations" / "h36m_test.npz", **arrays)
    facts = convert(tmp_path, tmp_path / "r")
    people = list(examples(tmp_path / "r"))
    assert (
        facts["written"] == 3
        and facts["names"] == list(keypoint_set("h36m17").names)
        and [e.frame for e in people] == rows
    )
    assert (
        people[1].state.tolist() == [2] * 4 + [0] + [2] * 12
        and people[0].sequence == "Directions_2"
        and people[0].identity.camera == "54138969"
        and people[0].split == "test"
    )
    for e, kp, X in zip(people, px, m):
        seen_here = e.state > 0
        np.testing.assert_allclose(e.kp3d[seen_here], X[seen_here], atol=1e-5)
        np.testing.assert_allclose(
            e.crop.undo(e.kp2d)[seen_here], kp[seen_here], atol=0.01
        )
        # a pinhole fitted to a distorted camera
        assert dot_errors(e).max() < 0.6 and abs(intrinsics(e)[0] - 520) < 12
    convert(tmp_path, tmp_path / "p2", protocol="p1", split="test")
    np.savez(
        tmp_path / "annotations" / "h36m_test.npz",
        imgname=np.array(["a.jpg"]),
        part=part[:1],
        S=S[:1],
    )
    with pytest.raises(ValueError, match="expected names such as .*a.jpg"):
        convert(tmp_path, tmp_path / "other")
    np.savez(
        tmp_path / "annotations" / "h36m_test.npz",
        imgname=arrays["imgname"],
        part=part[:, :14],
        S=S,
    )
    with pytest.raises(ValueError, match="expected mmpose's imgname"):
        convert(tmp_path, tmp_path / "other")


def test_two_workers_and_resume_give_the_same_bytes(
    data, converted, tmp_path, monkeypatch
):
    convert(data, tmp_path / "two", workers=2)
    assert bytes_of(tmp_path / "two") == bytes_of(converted)
    honest, count = h36m.convert_clip, iter(range(100))
    writer = h36m.RecordWriter
    monkeypatch.setattr(
        h36m, "RecordWriter", lambda *a, **k: writer(*a, shard_size=7, **k)
    )
    convert(data, tmp_path / "whole")

    def fails(clip):
        if next(count) == 6:
            raise KeyboardInterrupt
        return honest(clip)

    monkeypatch.setattr(h36m, "convert_clip", fails)
    with pytest.raises(KeyboardInterrupt):
        convert(data, tmp_path / "resumed")
    assert len(list((tmp_path / "resumed").glob("*.tfrecord"))) >= 2
    convert(data, tmp_path / "resumed", resume=True)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "resumed")
    with pytest.raises(ValueError, match="begun with other settings"):
        convert(data, tmp_path / "whole", resume=True, s9="keep")


def broken(kind, root):
    "Damage a copy of the official files; the options to convert it with."
    label = root / "S9/MyPoseFeatures/D3_Positions_mono/Directions 1.54138969.cdf"
    if kind == "no metadata":
        (root / "metadata.xml").unlink()
    elif kind == "metadata is a page":
        (root / "metadata.xml").write_text("<html><body>log in</body></html>")
    elif kind == "w0 cut short":
        (root / "metadata.xml").write_text(metadata_xml().replace("-0.00098]", "]"))
    elif kind == "cdf cut short":
        label.write_bytes(label.read_bytes()[:3000])
    elif kind == "cdf of another kind":
        shutil.copy(
            root / "S9/MyPoseFeatures/D2_Positions/Directions 1.54138969.cdf", label
        )
    elif kind == "frames differ":
        write_cdf(label, 1000 * seen(world(9), 0))
    elif kind == "3D not downloaded":
        label.unlink()
        (root / "S9/MyPoseFeatures/D3_Positions/Directions 1.cdf").unlink()
    elif kind == "no videos":
        for person in ("S1", "S9", "S11"):
            shutil.rmtree(root / person / "Videos")
    elif kind == "empty":
        for f in list(root.iterdir()):
            shutil.rmtree(f) if f.is_dir() else f.unlink()
    return {
        "another subject": {"subjects": "S7"},
        "another protocol": {"protocol": "p3"},
        "another form": {"form": "mmpose"},
        "step 0": {"step": 0},
        "unknown option": {"frames": 3},
    }.get(kind, {})


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no metadata", "no metadata.xml; it is in code-v1.2.zip"),
        ("metadata is a page", "expected Human3.6M's metadata.xml"),
        ("w0 cut short", "expected 300 numbers in w0"),
        ("cdf cut short", "Directions 1.54138969.cdf: expected a CDF file"),
        ("cdf of another kind", "expected Pose of (1, frames, 96), got (1, 11, 64)"),
        ("frames differ", "has 11 frames, D3_Positions_mono has 9"),
        ("3D not downloaded", "there are other files of this recording"),
        ("no videos", "has labels, but no videos"),
        ("empty", "expected S1/MyPoseFeatures/D2_Positions and so on"),
        ("another subject", "has no labels of S7"),
        ("another protocol", "'p3' is not one of 'p1', 'p2', 'p2_first_trial'"),
        ("another form", "expected mmpose"),
        ("step 0", "step: expected 1 or more"),
        ("unknown option", "No such option: --frames"),
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
            "h36m",
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


def test_videos_that_are_missing_or_damaged_are_counted(data, tmp_path):
    root = tmp_path / "d"
    shutil.copytree(data, root)
    videos = root / "S9" / "Videos"
    (videos / f"Waiting 1.{CAMERAS[0]}.mp4").unlink()
    (videos / f"Waiting 1.{CAMERAS[1]}.mp4").write_bytes(b"")
    cut = videos / f"Waiting 1.{CAMERAS[2]}.mp4"
    # an mp4 has its table at the end: nothing reads
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    label = root / f"S9/MyPoseFeatures/D3_Positions_mono/Directions 1.{CAMERAS[0]}.cdf"
    x = 1000 * seen(world(11), 0)
    x[5] = np.nan
    write_cdf(label, x)
    write_cdf(
        root / f"S9/MyPoseFeatures/D2_Positions/Directions 1.{CAMERAS[0]}.cdf",
        np.where(np.isnan(x[..., :1]), np.nan, project(x / 1000, 0)),
    )
    facts = convert(root, tmp_path / "r", subjects=("S9",))
    assert facts["dropped"] == {
        "video missing": 3 + 6,
        "video unreadable": 6,
        "no labels": 1,
    }
    assert facts["read"] == facts["written"] + 16 == 24


def test_the_command(data, tmp_path, monkeypatch, capsys):
    words = [
        *("--protocol", "p2_first_trial", "--split", "test"),
        *("--subjects", "S9", "--subjects", "S11"),
    ]
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "hmr_nb",
            "convert",
            "h36m",
            "--data",
            str(data),
            "--out",
            str(tmp_path / "r"),
            "--workers",
            "1",
            *words,
        ],
    )
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
    out = capsys.readouterr().out
    assert "h36m" in out and "head_top" in out
    facts = card(tmp_path / "r")
    assert facts["options"]["protocol"] == "p2_first_trial" and facts["splits"] == {
        "test": 9
    }
