"""What every layer of the package must do, in one helper, and the weights file of the
model."""

import dataclasses
import json
import subprocess
import sys
from itertools import pairwise

import h5py
import keras
import numpy as np
import pytest

from hmr_nb.basics.keypoints import keypoint_set
from hmr_nb.body.open_body import open_body
from hmr_nb.body.smpl import SMPL
from hmr_nb.model.discriminator import Discriminator
from hmr_nb.model.encoder import Resize, SoftArgmax, build_encoder
from hmr_nb.model.hmr import HMR
from hmr_nb.model.losses import joint_loss, keypoint_loss, masked_mean
from hmr_nb.model.regressor import Regressor, mean_state
from hmr_nb.model.view import View
from hmr_nb.model.weights import (
    load_hmr,
    load_weights_file,
    named_weights,
    save_weights_file,
    small_hmr,
    weights_info,
)


def flat(x) -> list:
    "All arrays of an output, None left out."
    return [y for y in keras.tree.flatten(x) if y is not None]


def check_layer(
    layer: keras.layers.Layer,
    *inputs: np.ndarray,
    weights: int,
    differentiable: bool = True,
) -> None:
    """Config round trip, symbolic = eager shape, finite gradients, the weights it
    should have and no others."""
    eager = flat(layer(*inputs))
    assert len(layer.weights) == weights, [w.path for w in layer.weights]
    assert all(np.isfinite(np.asarray(y)).all() for y in eager)

    symbolic = flat(
        layer(*[keras.KerasTensor((None, *x.shape[1:]), x.dtype) for x in inputs])
    )
    for s, e in zip(symbolic, eager, strict=True):
        assert len(s.shape) == len(e.shape) and all(
            a in (None, b) for a, b in zip(s.shape, e.shape)
        ), (s.shape, e.shape)

    copy = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
    copy(*inputs)
    copy.set_weights(layer.get_weights())
    for a, b in zip(flat(copy(*inputs)), eager, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)

    alone = flat(layer(*[x[:1] for x in inputs]))
    for a, b in zip(alone, eager, strict=True):
        np.testing.assert_allclose(
            a, b[:1], atol=1e-4, err_msg="a batch of one must give the same"
        )

    if differentiable and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(x) for x in inputs]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            total = sum(tf.reduce_sum(tf.square(y)) for y in flat(layer(*tensors)))
        for g in tape.gradient(total, [*tensors, *layer.trainable_weights]):
            assert g is not None and np.isfinite(np.asarray(g)).all()


def some(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32") * 0.3


@pytest.fixture(scope="module")
def body():
    return open_body()


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return HMR("small", rotation_form="6d", hidden=32)


@pytest.mark.parametrize("rotation", ["axis_angle", "6d"])
@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_regressor(rotation, iterations):
    layer = Regressor(
        mean_state(rotation_form=rotation),
        iterations=iterations,
        hidden=16,
        rotation_form=rotation,
    )
    # the same weights however often they correct
    check_layer(layer, some(3, 11), weights=7)
    states = layer(some(3, 11))
    assert len(states) == iterations and all(
        s.shape == (3, len(layer.mean_state)) for s in states
    )
    assert all(
        np.abs(np.asarray(a) - np.asarray(b)).max() > 0 for a, b in pairwise(states)
    )


def test_the_published_regressor_is_the_default():
    plain = Regressor(mean_state())
    assert (plain.iterations, plain.hidden, plain.rotation_form) == (
        3,
        1024,
        "axis_angle",
    ) and len(plain.mean_state) == 85


def test_discriminator():
    check_layer(Discriminator(), some(3, 24, 3, 3), some(3, 10), weights=2 + 2 * 8)


def test_smpl(body):
    check_layer(
        SMPL(body, keypoints=keypoint_set("cocoplus19"), jit=False),
        some(3, 24, 3),
        some(3, 10),
        weights=0,
    )


def test_encoder_layers():
    check_layer(
        SoftArgmax(),
        some(2, 5, 5, 4),
        some(2, 5, 5, 4, seed=1),
        some(2, 5, 5, 2, seed=2),
        weights=0,
    )
    check_layer(Resize(8), some(2, 12, 12, 3), weights=0)


def test_whole_model_symbolic_equals_eager(model):
    images = some(2, 64, 64, 3)
    eager, symbolic = (
        flat(model(images)),
        flat(model(keras.KerasTensor((None, 64, 64, 3)))),
    )
    assert [tuple(e.shape[1:]) for e in eager] == [tuple(s.shape[1:]) for s in symbolic]
    assert len(eager) == 3 * 9


def test_last_guess_is_the_last_of_three(model):
    images = some(2, 64, 64, 3)
    last, all_three = model.recover(images), model(images, mesh=False)
    np.testing.assert_allclose(last.keypoints, all_three[-1].keypoints, atol=1e-5)
    assert all_three[-1].vertices is None and last.vertices.shape[0] == 2


def test_dropout_and_batch_statistics_are_off_unless_training():
    keras.utils.set_random_seed(0)
    regressor = Regressor(mean_state(), hidden=64)
    x = some(4, 8)
    np.testing.assert_array_equal(regressor(x)[-1], regressor(x, training=False)[-1])
    assert (
        np.abs(np.asarray(regressor(x, training=True)[-1] - regressor(x)[-1])).max() > 0
    )


def test_what_is_not_known_has_no_gradient():
    tf = pytest.importorskip("tensorflow")
    pred2d, pred3d = tf.Variable(some(2, 4, 2)), tf.Variable(some(2, 4, 3))
    true2d, true3d = some(2, 4, 2, seed=1), some(2, 4, 3, seed=1)
    true2d[0, 1], true3d[1] = np.nan, np.nan
    visible = np.ones((2, 4), "float32")
    visible[0, 1] = 0
    with tf.GradientTape(persistent=True) as tape:
        flat_cost = keypoint_loss(pred2d, true2d, visible)
        space_cost = joint_loss(pred3d, true3d, np.float32([1, 0]), (0, 1))
        nothing = masked_mean(pred2d * np.nan, np.zeros((2, 4, 2), "float32"))
    g2, g3 = (
        tape.gradient(flat_cost, pred2d).numpy(),
        tape.gradient(space_cost, pred3d).numpy(),
    )
    assert np.isfinite(g2).all() and np.isfinite(g3).all() and float(nothing) == 0
    assert (
        (g2[0, 1] == 0).all()
        and (g3[1] == 0).all()
        and np.abs(g2).max() > 0
        and np.abs(g3[0]).max() > 0
    )


def test_weights_go_by_name_not_by_order(model, tmp_path):
    path = save_weights_file(model, tmp_path / "w.h5", half=False)
    with h5py.File(path, "r+") as f:  # rewrite in another order
        values = {k: f["regressor"][k] for k in list(f["regressor"])}
        held = {}
        f["regressor"].visititems(
            lambda n, x: (
                held.update({n: x[()]}) if isinstance(x, h5py.Dataset) else None
            )
        )
        del f["regressor"], values
        for name in sorted(held, reverse=True):
            f[f"regressor/{name}"] = held[name]
    again = load_hmr(path)
    for name, weight in named_weights(model).items():
        np.testing.assert_array_equal(named_weights(again)[name], weight)


def test_half_precision_and_size(model, tmp_path):
    path = save_weights_file(model, tmp_path / "w.h5")
    assert path.stat().st_size < 10e6
    images = some(2, 64, 64, 3)
    gap = np.abs(
        np.asarray(load_hmr(path).recover(images).vertices)
        - np.asarray(model.recover(images).vertices)
    ).max()
    assert gap < 5e-3


def test_nothing_of_the_body_is_saved(model, body, tmp_path):
    assert not [w.path for w in model.weights if len(body.v_template) in w.shape]
    path = save_weights_file(model, tmp_path / "w.h5", half=False)
    with h5py.File(path) as f:
        shapes = []
        f.visititems(
            lambda n, x: shapes.append(x.shape) if isinstance(x, h5py.Dataset) else None
        )
    assert len(shapes) == len(model.weights) and all(
        len(body.v_template) not in s for s in shapes
    )


def test_keypoints_of_the_file_come_back(tmp_path):
    toes = (
        keypoint_set("lsp14").add("toe_l", edge="ankle_l").add("toe_r", edge="ankle_r")
    )
    model = HMR("small", keypoints=toes, rotation_form="6d", hidden=16, iterations=2)
    again = load_hmr(save_weights_file(model, tmp_path / "w.h5"))
    assert again.keypoints.names == toes.names and again.keypoints.edges == toes.edges
    assert (
        list(again.keypoints.flip) == list(toes.flip)
        and again.settings["iterations"] == 2
    )


def test_bad_weights_files(model, tmp_path):
    good = save_weights_file(model, tmp_path / "good.h5", training={"epochs": 1})
    assert weights_info(good)["training"] == {"epochs": 1}
    with pytest.raises(FileNotFoundError, match="absent.h5: no such file"):
        load_hmr(tmp_path / "absent.h5")
    (tmp_path / "photo.h5").write_bytes(b"\xff\xd8")
    with pytest.raises(
        ValueError,
        match="photo.h5: expected weights written by hmr_nb .*found another kind",
    ):
        load_hmr(tmp_path / "photo.h5")
    (tmp_path / "model.ckpt-1.index").write_bytes(b"")
    with pytest.raises(
        ValueError, match="found a TensorFlow checkpoint; import it first"
    ):
        load_hmr(tmp_path / "model.ckpt-1")
    build_encoder("small").save_weights(tmp_path / "keras.weights.h5")
    with pytest.raises(
        ValueError,
        match=(
            "keras.weights.h5: expected weights written by hmr_nb, found another HDF5"
            " file"
        ),
    ):
        load_hmr(tmp_path / "keras.weights.h5")
    (tmp_path / "cut.h5").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    with pytest.raises(ValueError, match="cut.h5"):
        load_hmr(tmp_path / "cut.h5")
    wide = HMR("small", rotation_form="6d", hidden=48)
    before = wide.regressor.get_weights()
    with pytest.raises(
        ValueError,
        match=r"weights of another model .*regressor/fc1/kernel .*48.*found .*32",
    ):
        load_weights_file(wide, good)
    for a, b in zip(wide.regressor.get_weights(), before):
        np.testing.assert_array_equal(a, b)
    with h5py.File(good, "r+") as f:
        f.attrs["about"] = json.dumps(json.loads(f.attrs["about"]) | {"version": 99})
    with pytest.raises(ValueError, match="found version 99"):
        load_hmr(good)


def test_a_model_made_from_a_foreign_encoder_says_so(tmp_path):
    encoder = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    model = HMR(encoder, hidden=8)
    assert model(some(1, 8, 8, 3), mesh=False)[0].joints_25d is None
    with pytest.raises(
        ValueError, match="only one named for `build_encoder` can be saved"
    ):
        save_weights_file(model, tmp_path / "w.h5")


def test_keras_opens_what_it_saved(model, tmp_path):
    """In another process that has imported something of the model: view, keypoints and
    all weights come back."""
    view = View(96, 1.5, "diagonal")
    keras.utils.set_random_seed(2)
    saved = HMR("small", keypoints="lsp14", input_size=96, hidden=16, view=view)
    saved.save(tmp_path / "m.keras")
    code = f"""
import keras, numpy as np
from hmr_nb.model.weights import small_hmr
model = keras.models.load_model({str(tmp_path / "m.keras")!r})
x = np.random.default_rng(0).uniform(-1, 1, (1, 96, 96, 3)).astype("f")
print(model.view)
np.save({str(tmp_path / "answer.npy")!r}, model.recover(x).keypoints)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str(view)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 96, 96, 3)).astype("f")
    answer = np.load(tmp_path / "answer.npy")
    np.testing.assert_allclose(answer, saved.recover(x).keypoints, atol=1e-5)
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.get_config() == saved.get_config()


def test_keras_file_names_another_body_and_does_not_hold_it(body, tmp_path):
    other = dataclasses.replace(body, name="SMPL of mine")
    HMR("small", other, hidden=8).save(tmp_path / "m.keras")
    with pytest.raises(Exception, match="'SMPL of mine' is not stored"):
        keras.models.load_model(tmp_path / "m.keras")
    assert (tmp_path / "m.keras").stat().st_size < 10e6  # the body has 40 MB


def test_files_of_0_3_0_open(model, tmp_path):
    "They say `rotation` for `rotation_form` and name no view: 1.25 x the longer side."
    path = save_weights_file(model, tmp_path / "w.h5", half=False)
    with h5py.File(path, "r+") as f:
        about = json.loads(f.attrs["about"])
        about["config"]["rotation"] = about["config"].pop("rotation_form")
        del about["config"]["view"]
        f.attrs["about"] = json.dumps(about)
    again = load_hmr(path)
    assert again.settings == model.settings and again.view == View(96)
    assert small_hmr().view == View(96, 1.25, "longer")
