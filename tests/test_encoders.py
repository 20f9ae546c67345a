"""Backbones of keras.applications by name, in the whole model."""

import keras
import numpy as np
import pytest

from hmr_nb.model.hmr import HMR
from hmr_nb.model.weights import load_hmr, save_weights_file


@pytest.mark.parametrize(
    "name, size, features",
    [
        ("mobilenetv2", 32, 1280),
        ("EfficientNetB0", 32, 1280),
        ("convnexttiny", 32, 768),
        ("densenet121", 32, 1024),
        ("inceptionv3", 75, 2048),
    ],
)
def test_backbone_by_name(name, size, features, tmp_path):
    """It builds, gives a body, gets pictures in the range that it was published for,
    and comes back from its file."""
    model = HMR(name, input_size=size, hidden=16)
    picture = (
        np.random.default_rng(0).uniform(-1, 1, (1, size, size, 3)).astype("float32")
    )
    guess = model.predict_keypoints(picture)
    assert (
        model.encode(picture).shape == (1, features)
        and guess.keypoints2d.shape == (1, 19, 2)
        and np.isfinite(np.asarray(guess.keypoints)).all()
    )
    make = {n.lower(): n for n in dir(keras.applications)}[name.lower()]
    bare = getattr(keras.applications, make)(
        include_top=False, weights=None, input_shape=(size, size, 3), pooling="avg"
    )
    bare.set_weights(model.encoder.get_weights())
    module = {
        "mobilenetv2": "mobilenet_v2",
        "efficientnetb0": "efficientnet",
        "convnexttiny": "convnext",
        "densenet121": "densenet",
        "inceptionv3": "inception_v3",
    }[name.lower()]
    prepared = getattr(keras.applications, module).preprocess_input(
        127.5 * (picture.copy() + 1)
    )
    np.testing.assert_allclose(
        model.encode(picture), bare(prepared), rtol=1e-4, atol=1e-4
    )
    again = load_hmr(save_weights_file(model, tmp_path / "w.h5", half=False))
    np.testing.assert_array_equal(again.encode(picture), model.encode(picture))
