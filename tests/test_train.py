"Training in other processes: a killed run goes on exactly, a cost that is not a number stops it."

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from hmr_nb.datasets.synthetic import render_domain
from hmr_nb.train import Experiment

TINY = Experiment(
    name="tiny", encoder="small", encoder_weights="", input_size=96, rotation="6d", hidden=16, batch=2, epochs=3, steps_per_epoch=2, critic_poses=32,
    learning_rate=1e-4, optimizer="muon", schedule="trapezoid", warmup=2, clip_norm=1.0, average=0.9, dropout=0.5, color=0.2, w_hints=1.0, w_heat=0.1, early=0.3,
)  # fmt: skip
RUN = """
import sys, tensorflow as tf
tf.config.run_functions_eagerly(True)
from hmr_nb.train import fit
fit(sys.argv[1], sys.argv[2], sys.argv[3], progress=False)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "people"
    render_domain("studio", 5, folder, seed=1, size=64, workers=1, progress=False)
    return folder


def start(experiment, data, out):
    recipe = out.with_suffix(".json")
    recipe.write_text(experiment.to_json())
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "TF_NUM_INTRAOP_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", RUN, str(recipe), str(data), str(out)], env=env, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-2000:]


def weights(path):
    found = {}
    with h5py.File(path) as f:
        f.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def test_killed_run_equals_uninterrupted(tmp_path, data):
    "Dropout, critic, averages, learning rate, order and augmentation all go on where they stood."
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    straight, process = start(TINY, data, whole), start(TINY, data, cut)
    deadline = time.time() + 600
    while not (cut / "state.npz").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, f"the run ended by itself: {process.communicate()[1][-2000:]}"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(json.loads(str(np.load(cut / "state.npz")["about"]))["rows"])
    assert 1 <= done < TINY.epochs, "killed between two epochs"
    finish(start(TINY, data, cut))
    finish(straight)
    a, b = weights(whole / "last.h5"), weights(cut / "last.h5")
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert (whole / "log.csv").read_text() == (cut / "log.csv").read_text()


def test_not_a_number_stops_and_keeps_the_batch(tmp_path, data):
    "A learning rate that destroys the weights: no weights of the broken epoch are written."
    out = tmp_path / "broken"
    process = start(replace(TINY, learning_rate=1e30, optimizer="adamw", clip_norm=0.0, warmup=0, schedule="constant", steps_per_epoch=4), data, out)
    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0 and "NotANumber" in errors and "lower learning_rate" in errors
    (kept,) = out.glob("batch_*.npz")
    assert np.load(kept)["image"].shape == (2, 96, 96, 3)
    assert not list(out.glob("*.h5")) and not (out / "state.npz").exists()


def test_published_encoder_trains(tmp_path, data):
    "ResNet50V2 with the critic: cost and statistics move, everything stays finite."
    import tensorflow as tf

    from hmr_nb.train import Trainer, training_batches

    paper = Experiment(encoder_weights="", input_size=64, batch=2, critic_poses=32, learning_rate=1e-5, seed=2)
    trainer = Trainer(paper)
    batch = next(iter(training_batches(paper, [data], trainer.model.keypoints, 0, 1)))
    before = {v.path: v.numpy() for v in trainer.model.weights}
    tf.config.run_functions_eagerly(True)
    try:
        logs = [trainer.step(batch) for _ in range(2)]
    finally:
        tf.config.run_functions_eagerly(False)
    assert all(np.isfinite(float(v)) for log in logs for v in log.values()) and float(logs[0]["critic"]) > 0
    still = [v.path for v in trainer.model.weights if np.array_equal(v.numpy(), before[v.path])]
    assert not still, f"never changed: {still[:5]}"


def test_recipe_that_ships():
    "The experiment file of the small weights is readable and is what the weights say they were trained by."
    from hmr_nb.body_data import shipped
    from hmr_nb.hmr import weights_info
    from hmr_nb.train import read_experiment

    recipe = read_experiment(shipped("small_weights.toml"))
    told = weights_info(shipped("small_weights.h5"))["training"]["experiment"]
    assert Experiment.from_dict(told) == recipe
    assert Path(shipped("small_weights.h5")).stat().st_size < 10e6
