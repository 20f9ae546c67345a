"""Finding people: networks that are whole or refused, turned, small and several people,
boxes, bad input, and what the commands say."""

import io
import os
import shutil
import tarfile
import zipfile
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from bench_landmarks import measure, read_coco
from PIL import Image

from hmr_nb.basics.camera import apply_affine
from hmr_nb.basics.files import shipped
from hmr_nb.inference import landmarks
from hmr_nb.inference.landmarks import (
    LANDMARKS,
    NetworkMissingError,
    fetch_networks,
    find_people,
    import_networks,
    network_file,
)
from hmr_nb.records.photos import load_photo

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
TRUTH = np.load(shipped("samples/truth.npz"))
PHOTOS = [shipped("samples") / str(name) for name in TRUTH["image"]]
LIMBS = [
    f"{joint}_{side}"
    for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    for side in "lr"
]


@pytest.fixture(scope="module")
def networks():
    "Detector and `full`; without them there is nothing to test."
    try:
        return fetch_networks()
    except NetworkMissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def alone(monkeypatch, tmp_path):
    "An empty cache, and pip without any index."
    monkeypatch.setenv("HMR_NB_CACHE", str(tmp_path / "cache"))
    for name in [n for n in os.environ if n.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "cache"


def wheel_of(files, folder, name="mediapipe-0.10.21-cp311-cp311-manylinux_2_28_x86_64"):
    "A wheel that pip takes, with files in it."
    path = folder / f"{name}.whl"
    info = "mediapipe-0.10.21.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in files.items():
            archive.writestr(f"mediapipe/modules/{file}", data)
        about = "Metadata-Version: 2.1\nName: mediapipe\nVersion: 0.10.21\n"
        archive.writestr(f"{info}/METADATA", about)
        tag = "Tag: cp311-cp311-manylinux_2_28_x86_64\n"
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\n{tag}")
        archive.writestr(f"{info}/RECORD", "")
    return path


def apart(person, kp, size):
    "Mean distance of the limbs' joints, shares of the box."
    rows = [LANDMARKS.index(n) for n in LIMBS]
    goal = kp[[list(TRUTH["names"]).index(n) for n in LIMBS]]
    return np.nanmean(np.linalg.norm(person.xy[rows] - goal, axis=1)) / size


# --- the networks' files


def test_without_a_network_one_line_says_what_to_do(alone):
    with pytest.raises(NetworkMissingError) as caught:
        fetch_networks()
    said = str(caught.value)
    assert "hmr_nb import-weights blazepose FILE.whl" in said and "\n" not in said
    assert "--landmarks none" in said and len(said) < 400 and not alone.exists()
    with pytest.raises(NetworkMissingError, match="npm pack @mediapipe/pose"):
        network_file("heavy")


def test_pip_brings_the_wheel_and_nothing_damaged_stays(
    networks, alone, tmp_path, monkeypatch, capsys
):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    good = {file.name: file.read_bytes() for file in networks}
    bad = good | {networks[1].name: good[networks[1].name][:-1] + b"?"}
    wheel_of(bad, shelf)
    with pytest.raises(NetworkMissingError, match="holds no full"):
        fetch_networks()
    assert sorted(p.name for p in alone.iterdir()) == [networks[0].name]
    wheel_of(good, shelf)
    assert [f.read_bytes() for f in fetch_networks()] == list(good.values())
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "Apache-2.0" in said[0] and "36 MB" in said[0]
    shutil.rmtree(shelf)  # never again on the network
    assert fetch_networks() and capsys.readouterr().err == ""
    (alone / networks[1].name).write_bytes(b"damaged")
    with pytest.raises(NetworkMissingError):
        network_file("full")


def test_networks_out_of_files(networks, alone, tmp_path):
    full = networks[1].read_bytes()
    path = tmp_path / "pose.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in {"package/a.js": b"x", "package/full.tflite": full}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert import_networks(path) == ["full"] and network_file("full").is_file()
    assert import_networks(networks[0]) == ["detector"]
    whole = path.read_bytes()
    wheel = wheel_of({"full.tflite": full}, tmp_path).read_bytes()
    for name, data in {
        "cut.tgz": whole[: len(whole) // 2],
        "noise.tgz": bytes(range(256)) * 9,
        "cut.whl": wheel[:-1000],
        "crc.whl": wheel[:5000] + b"??" + wheel[5002:],
        "text.whl": b"no wheel",
        "other.tflite": full[:8] + bytes(len(full) - 8),
        "none.whl": wheel_of({}, tmp_path, "empty").read_bytes(),
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            import_networks(tmp_path / name)


def test_a_damaged_network_of_ones_own_cannot_end_this_process(networks, tmp_path):
    data, rng = bytearray(networks[1].read_bytes()), np.random.default_rng(0)
    path = tmp_path / "mine.tflite"
    for place in rng.integers(8, 400, 60):
        data[place] = int(rng.integers(256))
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"mine\.tflite: expected lite, full, heavy"):
        find_people(PHOTOS[0], path)
    path.write_bytes(b"no network")
    with pytest.raises(ValueError, match="a file of another kind"):
        find_people(PHOTOS[0], path)


def test_both_runtimes_agree(networks):
    tf = pytest.importorskip("tensorflow")
    view = load_photo(PHOTOS[5])
    mine = landmarks._Network(networks[1], 0, 1).run(view)
    other = tf.lite.Interpreter(os.fspath(networks[1]))
    other.allocate_tensors()
    other.set_tensor(
        other.get_input_details()[0]["index"], view[None] / np.float32(255)
    )
    other.invoke()
    details = sorted(other.get_output_details(), key=lambda d: d["name"])
    theirs = [other.get_tensor(detail["index"])[0] for detail in details]
    for i, atol in {0: 0.05, 1: 1e-3, 4: 1e-3}.items():  # px, probability, m
        np.testing.assert_allclose(mine[i], theirs[i], atol=atol)
    heat = [landmarks._sigmoid(outputs[3]) for outputs in (mine, theirs)]
    np.testing.assert_allclose(*heat, atol=1e-3)


# --- people


@pytest.mark.parametrize("turns", range(4))
def test_turned_people(networks, turns):
    "A render and its metres turn with the picture."
    i = 5
    image, kp = load_photo(PHOTOS[i]), TRUTH["kp2d"][i]
    x, y, w, h = TRUTH["box"][i]
    n = len(image) - 1
    turn = np.array([[[1, 0, 0], [0, 1, 0]], [[0, 1, 0], [-1, 0, n]]], float)[1]
    box = np.array([[x, y], [x + w, y + h]])
    upright = find_people(image)[0]
    world = upright.world[:, :2]
    for _ in range(turns):
        image, kp, box = (
            np.rot90(image),
            apply_affine(turn, kp),
            apply_affine(turn, box),
        )
        world = world @ turn[:, :2].T
    image = np.ascontiguousarray(image)
    (person,) = find_people(image)
    assert apart(person, kp, max(w, h)) < 0.04 and person.score > 0.7
    np.testing.assert_allclose(person.world[:, :2], world, atol=0.12)
    low, high = box.min(0), box.max(0)
    (boxed,) = find_people(image, boxes=[[*low, *(high - low)]])
    assert apart(boxed, kp, max(w, h)) < 0.04


def test_small_people_in_a_large_picture(networks):
    image = np.full((1100, 1600, 3), 150, np.uint8)
    places = {0: (120, 100), 5: (1350, 800), 9: (700, 500)}
    for i, (x, y) in places.items():
        small = Image.fromarray(load_photo(PHOTOS[i])).resize((192, 192), 3)
        image[y : y + 192, x : x + 192] = small
    people = find_people(image, levels=3)
    for i, (x, y) in places.items():
        kp = (TRUTH["kp2d"][i] + 0.5) * 0.75 - 0.5 + [x, y]
        size = 0.75 * max(TRUTH["box"][i][2:])
        assert min(apart(p, kp, size) for p in people) < 0.05, i
    assert len(people) == 3


def test_what_a_detection_is(networks):
    (person,) = find_people(PHOTOS[5])
    assert person.names == LANDMARKS and person.xy.shape == (33, 2)
    assert person.world.shape == (33, 3) and person.visibility.shape == (33,)
    low, high = person.xy.min(0), person.xy.max(0)
    np.testing.assert_allclose(person.box, [*low, *(high - low)])
    assert person.visibility.min() > 0 and person.visibility.max() <= 1
    with pytest.raises(FrozenInstanceError):
        person.score = 1
    with pytest.raises(ValueError, match="read-only"):
        person.xy[0] = 0
    hips = [LANDMARKS.index("hip_l"), LANDMARKS.index("hip_r")]
    assert np.abs(person.world[hips].mean(0)).max() < 0.05
    frames = np.stack([load_photo(PHOTOS[5])] * 2)
    again = find_people(frames)
    assert [len(found) for found in again] == [1, 1]
    np.testing.assert_array_equal(again[1][0].xy, person.xy)
    opened = find_people(Image.open(PHOTOS[5]))
    np.testing.assert_array_equal(opened[0].xy, person.xy)


def test_nobody_in_empty_pictures(networks):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (200, 300, 3), np.uint8)
    for image in (noise, np.zeros((9, 500, 3), np.uint8), noise[:1, :1]):
        assert find_people(image) == []


def test_bad_input_is_refused_in_one_line(networks, tmp_path):
    photo = load_photo(PHOTOS[0])
    (tmp_path / "eps.jpg").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for image, said in {
        "none.jpg": "no such picture",
        "eps.jpg": "expected a picture",
        "pipe.jpg": "a pipe or a device",
        "folder.jpg": "a folder",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
            find_people(tmp_path / image)
        assert "\n" not in str(caught.value) and image in str(caught.value)
    for image in (photo / 255, photo.astype(np.uint16), photo[..., 0], photo[:0]):
        with pytest.raises(ValueError, match="image: expected"):
            find_people(image)
    for box in (
        [0, 0, np.inf, 5],
        [0, 0, 0, 0],
        [900, 0, 5, 5],
        [0, 0, 1e23, 5],
        [1, 2],
    ):
        with pytest.raises(ValueError, match="box: "):
            find_people(photo, boxes=[box])


# --- the commands


def test_infer_finds_people(networks, run, tmp_path):
    pair = np.concatenate([load_photo(PHOTOS[5]), load_photo(PHOTOS[0])], axis=1)
    Image.fromarray(pair).save(tmp_path / "pair.png")
    Image.fromarray(np.zeros_like(pair)).save(tmp_path / "nobody.png")
    out = tmp_path / "out"
    words = ("infer", tmp_path / "pair.png", tmp_path / "nobody.png", "--out", out)
    code, said, err = run(*words, "--export", "json")
    assert code == 1 and "1 of 2 pictures done" in said
    assert "nobody was found" in err and "nobody.png" in err
    assert not list(out.glob("nobody*")) and len(list(out.glob("pair_*.json"))) == 2
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert run(*words, "--export", "json", "--resume")[0] == 1
    assert before == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}


def test_commands_without_a_network(alone, run, tmp_path):
    out = tmp_path / "out"
    code, said, err = run("infer", PHOTOS[0], "--out", out, "--export", "json")
    assert code == 0 and len(list(out.glob("*.json"))) == 1
    lines = [line for line in err.splitlines() if line.startswith("hmr_nb: ")]
    assert len(lines) == 1 and "import-weights blazepose" in lines[0]
    code, _, err = run("infer", PHOTOS[0], "--landmarks", "heavy", "--out", out)
    assert code == 1 and "npm pack" in err
    code, _, err = run("import-weights", "blazepose")
    assert code == 1 and "could not be fetched" in err
    code, _, err = run("import-weights", "blazepose", PHOTOS[0])
    assert code == 1 and PHOTOS[0].name in err
    code, _, err = run("import-weights", "hmr2")
    assert code == 1 and "expected a checkpoint and --out" in err


def test_labelled_photographs(networks):
    "PCK@0.1 of COCO's people, no box given; whoever is missed counts as zero."
    if not (REAL / "coco").is_dir():
        pytest.skip("labelled photographs of others are not here, and never will be")
    table = measure(list(read_coco(REAL / "coco")), "full")
    assert len(table) == 12 and table["found"].sum() >= 11
    assert np.concatenate(table["own"].tolist()).mean() > 0.75
    assert np.concatenate(table["boxed"].tolist()).mean() > 0.82
