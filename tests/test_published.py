"""Checkpoints of the two reference codes, written with their real names, must give
their golden numbers."""

import json
import re
import shutil
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest

from hmr_nb.body.body_files import load_body
from hmr_nb.model.discriminator import Discriminator, discriminator_weights
from hmr_nb.model.published import (
    _body_with_regressors,
    _discriminator_names,
    _hmr2_names,
    _published_regressors,
    _read_discriminator,
    _read_training,
    _tf1_names,
    import_weights,
    load_hmr2,
    load_hmr_tf1,
)
from hmr_nb.model.view import View
from hmr_nb.model.weights import load_hmr, weights_info

tf = pytest.importorskip("tensorflow")
GOLDENS = Path(__file__).resolve().parent.parent / "data" / "goldens"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
BODY_WORDS = (
    "J_regressor",
    "cocoplus_regressor",
    "lbs_weights",
    "posedirs",
    "shapedirs",
    "v_template",
    "generator/smpl/",
)


def golden_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    "The rule of data/goldens/README.md."
    n = (
        np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
        .standard_normal(shape)
        .astype("float32")
    )
    kind = name.removesuffix(VALUE).split("/")[-1]
    if kind in ("kernel", "weights"):
        scale = np.sqrt((1 if len(shape) == 4 else 2) / np.prod(shape[:-1]))
        return n * np.float32(
            scale * (0.25 if re.search("3D_module/fc3|regressor/fc_out", name) else 1)
        )
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
        x = 0.8 * np.kron(a, np.ones((28, 28, 1))) + 0.5 * np.kron(
            b, np.ones((7, 7, 1))
        )
        for axis in (0, 1) * 3:
            padded = np.pad(
                x, [(4, 4) if d == axis else (0, 0) for d in range(3)], mode="edge"
            )
            x = np.mean(
                [np.take(padded, range(i, i + 224), axis) for i in range(9)], axis=0
            )
        out.append(np.clip(1.2 * x, -1, 1))
    return np.float32(out)


def listing(kind: str) -> dict[str, tuple[int, ...]]:
    "Names and shapes of everything in a reference checkpoint that is a number."
    if kind == "hmr-tf1":
        rows = json.loads((GOLDENS / "tf1_checkpoint_variables.json").read_text())[
            "inference_checkpoint_RunModel"
        ]
    else:
        rows = json.loads((GOLDENS / "hmr2_checkpoint_variables.json").read_text())[
            "tf2.6.0_native"
        ]
        rows = [
            r
            for r in rows
            if r["name"].startswith("generator/") and "SLOT" not in r["name"]
        ]
    return {r["name"]: tuple(r["shape"]) for r in rows if r["dtype"] == "float32"}


def write(prefix: Path, kind: str) -> Path:
    "A checkpoint with the real names, the body's arrays included."
    names = listing(kind)
    tensors = [
        np.full(s, 7, "float32") if n.startswith(BODY_WORDS) else golden_weight(n, s)
        for n, s in names.items()
    ]
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(names),
        shape_and_slices=[""] * len(names),
        tensors=tensors,
    )
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
        np.testing.assert_array_equal(
            made.ravel()[:4], np.float32(row["first4"])[: made.size]
        )
        assert abs(made.astype(float).sum() - row["sum_float64"]) < 1e-6 * max(
            1, abs(row["sum_float64"])
        )


@pytest.mark.parametrize(
    "names, kind", [(_tf1_names, "hmr-tf1"), (_hmr2_names, "hmr2")]
)
def test_all_names_but_the_bodys(names, kind):
    there = {n for n in listing(kind) if not n.startswith(BODY_WORDS)}
    assert set(names().values()) == there and len(there) == 277


@pytest.fixture(scope="module", params=["hmr-tf1", "hmr2"])
def published(request, shelf, body):
    "A code's name, its model with its weights, and what it gave."
    load, prefix, golden = {
        "hmr-tf1": (load_hmr_tf1, "model.ckpt-667589", "hmr1"),
        "hmr2": (load_hmr2, "ckpt-95", "hmr2"),
    }[request.param]
    return (
        request.param,
        load(shelf / prefix, body),
        np.load(GOLDENS / f"forward_goldens_{golden}.npz"),
    )


def test_forward_as_the_reference(published):
    (_, model, want), pictures = published, images()
    gaps = {
        "features": np.abs(np.asarray(model.encode(pictures)) - want["features"]).max()
    }
    for i, guess in enumerate(model(pictures)):
        state = np.concatenate(
            [guess.cam, np.reshape(guess.pose, (2, 72)), guess.betas], axis=1
        )
        found = {
            "theta": state,
            "verts": guess.vertices,
            "joints2d": guess.keypoints2d,
            "joints3d": guess.keypoints,
            "rot": guess.rotations,
        }
        gaps |= {
            f"{k}_{i}": np.abs(np.asarray(v) - want[f"{k}_{i}"]).max()
            for k, v in found.items()
            if f"{k}_{i}" in want
        }
    print({k: float(v) for k, v in gaps.items()})
    assert max(gaps.values()) < 1e-5, gaps


def test_view_as_the_reference(published):
    """The diagonal of a box has 150 of 224 px in HMR's evaluation and 112, 150 of 300,
    in hmr2.0's."""
    kind, model, _ = published
    for w, h in ((300, 400), (30, 40), (50, 0)):
        scale = model.view.crop((7, 9, w, h)).scale
        wanted = {"hmr-tf1": 150, "hmr2": 150 * 224 / 300}[kind]
        assert scale * np.hypot(w, h) == pytest.approx(wanted)
    assert model.view.size == 224


def test_every_block_as_the_reference(published):
    """Size, mean, deviation and the first numbers of the middle and of a corner, block
    by block."""
    kind, model, _ = published
    blocks = json.loads((GOLDENS / "forward_midlayers.json").read_text())[
        "hmr1_slim" if kind == "hmr-tf1" else "hmr2_effective_tf2.6"
    ]
    ours = {
        "conv1/BiasAdd": "conv1_conv",
        "pool1/MaxPool": "pool1_pool",
        "postnorm/Relu": "post_relu",
    }
    ours |= {
        f"block{s}/unit_{u}/bottleneck_v2/add": f"conv{s + 1}_block{u}_out"
        for s in (1, 2, 3, 4)
        for u in range(1, 7)
    }
    names = {
        block: ours.get(block.removeprefix("Encoder_resnet/resnet_v2_50/"), block)
        for block in blocks
    }
    assert len(blocks) == (19 if kind == "hmr-tf1" else 20)
    found = keras.Model(
        model.encoder.input, [model.encoder.get_layer(n).output for n in names.values()]
    )(images(), training=False)
    for (block, stored), x in zip(blocks.items(), map(np.asarray, found)):
        middle, corner = x[0, x.shape[1] // 2, x.shape[2] // 2], x[0, 0, 0]
        assert x.shape == tuple(stored["shape"]), block
        ours = [x.mean(dtype=float), x.std(dtype=float), *middle[:8], *corner[:8]]
        theirs = [
            stored["mean"],
            stored["std"],
            *stored["first8_of_centre_pixel_image0"],
            *stored["first8_of_corner_pixel_image0"],
        ]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=block)


def test_body_without_keypoint_rows_gets_those_of_the_checkpoint(shelf, body):
    bare = load_body(GOLDENS / "body_files" / "smpl_like_chumpy_p2.pkl")
    assert not bare.keypoint_regressors
    for kind, prefix in (("hmr-tf1", "model.ckpt-667589"), ("hmr2", "ckpt-95")):
        published = _published_regressors(kind, shelf / prefix)
        helped = _body_with_regressors(bare, published)
        assert set(helped.keypoint_regressors) == set(
            body.keypoint_regressors
        ) and helped.keypoint_regressors["nose"].shape == (200,)
    assert _body_with_regressors(body, published) is body


def test_imported_file_holds_nothing_of_the_body(shelf, body, tmp_path):
    out = tmp_path / "hmr2.h5"
    table = import_weights("hmr2", shelf / "ckpt-95", out)
    assert table["weights"].sum() == 277 and table["largest difference"].max() == 0
    assert weights_info(out)["training"]["imported"] == "hmr2"
    import h5py

    with h5py.File(out) as f:
        held = []
        f.visititems(
            lambda name, item: (
                held.append((name, item)) if isinstance(item, h5py.Dataset) else None
            )
        )
        assert {name.split("/")[0] for name, _ in held} == {
            "encoder",
            "regressor",
        } and len(held) == 277
        assert not [name for name, item in held if np.ravel(item[()])[0] == 7.0], (
            "an array of the body"
        )
    model = load_hmr(out, body=body)
    assert model.view == View(224, 2.0, "diagonal")
    want = np.load(GOLDENS / "forward_goldens_hmr2.npz")["joints2d_2"]
    np.testing.assert_allclose(
        model.predict_keypoints(images()).keypoints2d, want, atol=1e-5
    )
    out.unlink()  # 100 MB


def test_the_command_writes_our_file_and_prints_the_check(run, shelf, tmp_path):
    code, out, _ = run(
        "import-weights",
        "hmr-tf1",
        shelf / "model.ckpt-667589",
        "--out",
        tmp_path / "hmr.h5",
    )
    assert (
        code == 0
        and "encoder" in out
        and "regressor/mean" in out
        and weights_info(tmp_path / "hmr.h5")["training"]["imported"] == "hmr-tf1"
    )
    (tmp_path / "hmr.h5").unlink()
    code, _, err = run("import-weights", "hmr2", shelf, "--out", tmp_path / "hmr.h5")
    assert (
        code != 0
        and "this is a folder and it holds ckpt-95" in err
        and not (tmp_path / "hmr.h5").exists()
    )


def test_wrong_paths_say_what_is_there(shelf, body, tmp_path):
    with pytest.raises(
        ValueError, match="is a folder and it holds .*model.ckpt-667589"
    ):
        load_hmr_tf1(shelf, body)
    with zipfile.ZipFile(tmp_path / "models.zip", "w") as z:
        z.writestr("model.ckpt", "")
    with pytest.raises(ValueError, match="archive; unpack it"):
        load_hmr_tf1(tmp_path / "models.zip", body)
    (tmp_path / "models.tar.gz").write_bytes(b"")
    with pytest.raises(
        ValueError, match="models.tar.gz: this is an archive; unpack it"
    ):
        load_hmr2(tmp_path / "models.tar.gz", body)
    (tmp_path / "half.index").write_bytes((shelf / "ckpt-95.index").read_bytes())
    with pytest.raises(
        FileNotFoundError,
        match="half.index is there but half.data-00000-of-00001 is not",
    ):
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


def test_another_model_is_refused_by_what_it_lacks_and_has(body, tmp_path):
    """A classifier's checkpoint by the first missing name and some of its own; another
    regressor by name and both shapes."""
    names, values = (
        ["classifier/dense/kernel", "save_counter"],
        [np.zeros((3, 3), "float32"), np.zeros(4, "float32")],
    )
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "other"),
        tensor_names=names,
        shape_and_slices=["", ""],
        tensors=values,
    )
    for load, first in (
        (load_hmr_tf1, "resnet_v2_50/conv1/weights"),
        (load_hmr2, "generator/resnet50V2/layer_with_weights-0/kernel"),
    ):
        with pytest.raises(
            ValueError,
            match=(
                "other: expected a checkpoint of .*277 of 277 variables are missing,"
                f" first {first}.*; found 2 others: classifier/dense/kernel,"
                " save_counter"
            ),
        ):
            load(tmp_path / "other", body)
    odd, shapes = "3D_module/fc3/biases", listing("hmr-tf1")
    values = [np.zeros(99 if n == odd else s, "float32") for n, s in shapes.items()]
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "wide"),
        tensor_names=list(shapes),
        shape_and_slices=[""] * len(shapes),
        tensors=values,
    )
    with pytest.raises(
        ValueError,
        match=(
            rf"wide: {odd} has shape \(99,\), expected \(85,\); is it a checkpoint of"
            r" the original HMR"
        ),
    ):
        load_hmr_tf1(tmp_path / "wide", body)
    with pytest.raises(
        ValueError,
        match=(
            "expected a training run of hmr2.0 with its optimizers, but 3 of 3"
            " variables are missing"
        ),
    ):
        _read_training(tmp_path / "wide")


def test_toes_of_hmr2_stand_where_it_inserted_them(shelf, body, tmp_path):
    rng, names = np.random.default_rng(0), listing("hmr2")
    rows = rng.random((200, 21)).astype("float32")
    tensors = {
        n: golden_weight(n, s) for n, s in names.items() if not n.startswith(BODY_WORDS)
    }
    tensors["generator/smpl/joint_regressor" + VALUE] = rows
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "ckpt-1"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )
    bare = load_body(GOLDENS / "body_files" / "smpl_like_chumpy_p2.pkl")
    model = load_hmr2(tmp_path / "ckpt-1", bare)
    assert (
        model.keypoints.names[19:] == ("toes_r", "toes_l")
        and model.keypoints.mirror_of["toes_r"] == "toes_l"
    )
    for name, column in (
        ("toes_r", 0),
        ("ankle_r", 1),
        ("toes_l", 7),
        ("wrist_r", 8),
        ("nose", 16),
    ):
        np.testing.assert_array_equal(
            model.smpl.body.keypoint_regressors[name], rows[:, column]
        )
    # the body's own nose is kept, the toes are added
    kept = load_hmr2(tmp_path / "ckpt-1", body)
    np.testing.assert_array_equal(
        kept.smpl.body.keypoint_regressors["nose"], body.keypoint_regressors["nose"]
    )
    assert "toes_l" in kept.keypoints.names
    with pytest.raises(
        ValueError, match="has 21 keypoints, 19 of cocoplus and 1 named here"
    ):
        load_hmr2(tmp_path / "ckpt-1", bare, custom={0: "toes_r"})


@pytest.mark.parametrize(
    "kind, golden",
    [("hmr-tf1", "disc_loss_goldens_hmr1.npz"), ("hmr2", "disc_loss_goldens_hmr2.npz")],
)
def test_discriminator_as_the_reference(kind, golden, tmp_path):
    every = [n for names in _discriminator_names(kind).values() for n in names]
    table = json.loads(
        (
            GOLDENS
            / (
                "tf1_checkpoint_variables.json"
                if kind == "hmr-tf1"
                else "hmr2_checkpoint_variables.json"
            )
        ).read_text()
    )
    shapes = {
        r["name"]: tuple(r["shape"])
        for r in table["discriminator" if kind == "hmr-tf1" else "tf2.6.0_native"]
    }
    values = [golden_weight(n, shapes[n]) for n in every]
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "run"),
        tensor_names=every,
        shape_and_slices=[""] * len(every),
        tensors=values,
    )
    critic = Discriminator()
    critic.build((None, 24, 3, 3), (None, 10))
    read = _read_discriminator(kind, tmp_path / "run")
    assert set(read) == set(discriminator_weights(critic))
    for name, weight in discriminator_weights(critic).items():
        weight.assign(read[name])
    seen = np.load(GOLDENS / "disc_loss_inputs.npz")["disc_in"]
    rotations = np.concatenate(
        [
            np.tile(np.eye(3, dtype="float32"), (8, 1, 1, 1)),
            seen[:, :207].reshape(8, 23, 3, 3),
        ],
        axis=1,
    )
    # answers reach 30: 2e-7 of them
    np.testing.assert_allclose(
        critic(rotations, seen[:, 207:]),
        np.load(GOLDENS / golden)["disc_in_out"],
        atol=5e-6,
    )


@pytest.mark.parametrize("which", ["tf2.6.0_native", "tf2.15.1_new_keras_adam"])
def test_every_mean_of_adam_comes_back_on_its_weight(which, tmp_path):
    """Adam's means are filled with a number that only their weight has; the order is
    that of the reference's own gradients."""
    listing_all = {
        r["name"]: r
        for r in json.loads((GOLDENS / "hmr2_checkpoint_variables.json").read_text())[
            which
        ]
    }
    gradients = list(
        json.loads((GOLDENS / "train_step_hmr2.json").read_text())["tf2.15"][
            "gradients"
        ]
    )
    number, tensors = {}, {}
    for word, optimizer in (
        ("generator", "generator_opt"),
        ("discriminator", "discriminator_opt"),
    ):
        for i, name in enumerate(n for n in gradients if n.startswith(word + "/")):
            number[name] = len(number) + 1
            base = name.removesuffix(VALUE)
            pair = (
                f"{optimizer}/_variables/{2 * i + 1}{VALUE}",
                f"{optimizer}/_variables/{2 * i + 2}{VALUE}",
            )
            pair = (
                pair
                if "new" in which
                else tuple(
                    f"{base}/.OPTIMIZER_SLOT/{optimizer}/{x}{VALUE}" for x in "mv"
                )
            )
            tensors |= {
                p: np.full(listing_all[p]["shape"], sign * number[name], "float32")
                for p, sign in zip(pair, (1, -1))
            }
    for name, row in listing_all.items():
        if name not in tensors and row["dtype"] in ("float32", "int64"):
            tensors[name] = np.full(row["shape"], 7, row["dtype"])
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "ckpt-1"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )
    run = _read_training(tmp_path / "ckpt-1")
    theirs = {k: v for k, v in _hmr2_names().items() if "moving_" not in k}
    assert set(run.moments) == set(theirs) and (
        run.step,
        run.discriminator_step,
        run.saves,
    ) == (7, 7, 7)
    for ours, (mean, square) in run.moments.items():
        assert (mean == number[theirs[ours]]).all() and (
            square == -number[theirs[ours]]
        ).all(), ours
    for ours, (mean, square) in run.discriminator_moments.items():
        want = np.array(
            [number[n] for n in _discriminator_names("hmr2")[ours]], "float32"
        )
        found = mean.reshape(len(want), -1)
        assert (found == want[:, None]).all() and (square == -mean).all(), ours
