"""Checkpoints of the two reference codes, written with their real names, must give their golden numbers."""

import json
import re
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from hmr_nb.body_data import load_body
from hmr_nb.hmr import load_hmr, weights_info
from hmr_nb.published import body_with_rows, hmr2_names, import_weights, load_hmr2, load_hmr_tf1, tf1_names

tf = pytest.importorskip("tensorflow")
GOLDENS = Path(__file__).resolve().parent.parent / "data" / "goldens"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
BODY_WORDS = ("J_regressor", "cocoplus_regressor", "lbs_weights", "posedirs", "shapedirs", "v_template", "generator/smpl/")


def golden_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    "The rule of data/goldens/README.md."
    n = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF).standard_normal(shape).astype("float32")
    kind = name.removesuffix(VALUE).split("/")[-1]
    if kind in ("kernel", "weights"):
        scale = np.sqrt((1 if len(shape) == 4 else 2) / np.prod(shape[:-1]))
        return n * np.float32(scale * (0.25 if re.search("3D_module/fc3|regressor/fc_out", name) else 1))
    if kind in ("bias", "biases"):
        return n * np.float32(0.01)
    if kind in ("gamma", "moving_variance"):
        one = np.float32(1) + np.float32(0.1) * n
        return one if kind == "gamma" else np.abs(one)
    n = np.float32(0.1) * n
    if kind in ("mean_param", "mean_theta"):
        n[0, 0] += np.float32(0.9)
        n[0, 3] += np.float32(np.pi)
    return n


def images() -> np.ndarray:
    "The two pictures of data/goldens/README.md."
    rng, out = np.random.RandomState(0), []
    for _ in range(2):
        a, b = rng.uniform(-1, 1, (8, 8, 3)), rng.uniform(-1, 1, (32, 32, 3))
        x = 0.8 * np.kron(a, np.ones((28, 28, 1))) + 0.5 * np.kron(b, np.ones((7, 7, 1)))
        for axis in (0, 1) * 3:
            padded = np.pad(x, [(4, 4) if d == axis else (0, 0) for d in range(3)], mode="edge")
            x = np.mean([np.take(padded, range(i, i + 224), axis) for i in range(9)], axis=0)
        out.append(np.clip(1.2 * x, -1, 1))
    return np.float32(out)


def listing(kind: str) -> dict[str, tuple[int, ...]]:
    "Names and shapes of everything in a reference checkpoint that is a number."
    if kind == "hmr-tf1":
        rows = json.loads((GOLDENS / "tf1_checkpoint_variables.json").read_text())["inference_checkpoint_RunModel"]
    else:
        rows = json.loads((GOLDENS / "hmr2_checkpoint_variables.json").read_text())["tf2.6.0_native"]
        rows = [r for r in rows if r["name"].startswith("generator/") and "SLOT" not in r["name"]]
    return {r["name"]: tuple(r["shape"]) for r in rows if r["dtype"] == "float32"}


def write(prefix: Path, kind: str) -> Path:
    "A checkpoint with the real names, the body's arrays included."
    names = listing(kind)
    tensors = [np.full(s, 7, "float32") if n.startswith(BODY_WORDS) else golden_weight(n, s) for n, s in names.items()]
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=list(names), shape_and_slices=[""] * len(names), tensors=tensors)
    return prefix


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    write(folder / "model.ckpt-667589", "hmr-tf1")
    write(folder / "ckpt-95", "hmr2")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def body():
    return load_body(GOLDENS / "body_random_v200.npz")


def test_weight_rule():
    for row in json.loads((GOLDENS / "weight_rule_check.json").read_text()):
        made = golden_weight(row["name"], tuple(row["shape"]))
        np.testing.assert_array_equal(made.ravel()[:4], np.float32(row["first4"])[: made.size])
        assert abs(made.astype(float).sum() - row["sum_float64"]) < 1e-6 * max(1, abs(row["sum_float64"]))


@pytest.mark.parametrize("names, kind", [(tf1_names, "hmr-tf1"), (hmr2_names, "hmr2")])
def test_all_names_but_the_bodys(names, kind):
    there = {n for n in listing(kind) if not n.startswith(BODY_WORDS)}
    assert set(names().values()) == there and len(there) == 277


@pytest.mark.parametrize(
    "load, prefix, golden",
    [(load_hmr_tf1, "model.ckpt-667589", "forward_goldens_hmr1.npz"), (load_hmr2, "ckpt-95", "forward_goldens_hmr2.npz")],
    ids=["hmr-tf1", "hmr2"],
)
def test_forward_as_the_reference(load, prefix, golden, shelf, body):
    model, want, pictures = load(shelf / prefix, body), np.load(GOLDENS / golden), images()
    gaps = {"features": np.abs(np.asarray(model.encode(pictures)) - want["features"]).max()}
    for i, guess in enumerate(model(pictures)):
        state = np.concatenate([guess.cam, np.reshape(guess.pose, (2, 72)), guess.betas], axis=1)
        found = {"theta": state, "verts": guess.vertices, "joints2d": guess.keypoints2d, "joints3d": guess.keypoints, "rot": guess.rotations}
        gaps |= {f"{k}_{i}": np.abs(np.asarray(v) - want[f"{k}_{i}"]).max() for k, v in found.items() if f"{k}_{i}" in want}
    print({k: float(v) for k, v in gaps.items()})
    assert max(gaps.values()) < 1e-5, gaps


def test_body_without_keypoint_rows_gets_those_of_the_checkpoint(shelf, body):
    bare = load_body(GOLDENS / "body_files" / "smpl_like_chumpy_p2.pkl")
    assert not bare.keypoint_regressors
    for kind, prefix in (("hmr-tf1", "model.ckpt-667589"), ("hmr2", "ckpt-95")):
        helped = body_with_rows(kind, shelf / prefix, bare)
        assert set(helped.keypoint_regressors) == set(body.keypoint_regressors) and helped.keypoint_regressors["nose"].shape == (200,)
    assert body_with_rows("hmr2", shelf / "ckpt-95", body) is body


def test_imported_file_holds_nothing_of_the_body(shelf, body, tmp_path):
    out = import_weights("hmr2", shelf / "ckpt-95", tmp_path / "hmr2.h5")
    assert weights_info(out)["training"]["imported"] == "hmr2"
    import h5py

    with h5py.File(out) as f:
        held = []
        f.visititems(lambda name, item: held.append((name, item)) if isinstance(item, h5py.Dataset) else None)
        assert {name.split("/")[0] for name, _ in held} == {"encoder", "regressor"} and len(held) == 277
        assert not [name for name, item in held if 7.0 == np.ravel(item[()])[0]], "an array of the body"
    model = load_hmr(out, body=body)
    want = np.load(GOLDENS / "forward_goldens_hmr2.npz")["joints2d_2"]
    np.testing.assert_allclose(model.predict_keypoints(images()).keypoints2d, want, atol=1e-5)
    out.unlink()  # 100 MB


def test_wrong_paths_say_what_is_there(shelf, body, tmp_path):
    with pytest.raises(ValueError, match="is a folder and it holds .*model.ckpt-667589"):
        load_hmr_tf1(shelf, body)
    with zipfile.ZipFile(tmp_path / "models.zip", "w") as z:
        z.writestr("model.ckpt", "")
    with pytest.raises(ValueError, match="archive; unpack it"):
        load_hmr_tf1(tmp_path / "models.zip", body)
    (tmp_path / "half.index").write_bytes((shelf / "ckpt-95.index").read_bytes())
    with pytest.raises(FileNotFoundError, match="half.index is there but half.data-00000-of-00001 is not"):
        load_hmr2(tmp_path / "half", body)
    (tmp_path / "half.data-00000-of-00001").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="not a readable TensorFlow checkpoint"):
        load_hmr2(tmp_path / "half", body)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_hmr2(tmp_path / "absent", body)


def test_the_other_reference_is_refused(shelf, body):
    with pytest.raises(ValueError, match="for hmr2.0 use load_hmr2"):
        load_hmr_tf1(shelf / "ckpt-95", body)
    with pytest.raises(ValueError, match="for the original HMR use load_hmr_tf1"):
        load_hmr2(shelf / "model.ckpt-667589", body)
