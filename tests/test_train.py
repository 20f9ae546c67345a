"""Training in other processes: a killed run goes on exactly, a loss that is not a
number stops it."""

import json
import signal
import socket
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from training_jobs import Jobs

from hmr_nb.basics.keypoints import keypoint_set
from hmr_nb.body.open_body import open_body
from hmr_nb.making.domains import render_domain
from hmr_nb.model.weights import load_hmr
from hmr_nb.training.batches import training_batches
from hmr_nb.training.experiment import Experiment
from hmr_nb.training.run import fit
from hmr_nb.training.trainer import Trainer

TINY = Experiment(
    name="tiny",
    encoder="small",
    encoder_weights="",
    input_size=96,
    rotation_form="6d",
    hidden=16,
    batch_size=2,
    epochs=3,
    steps_per_epoch=2,
    discriminator_poses=32,
    learning_rate=1e-4,
    optimizer="muon",
    schedule="trapezoid",
    warmup=2,
    clip_norm=1.0,
    average=0.9,
    dropout=0.5,
    color=0.2,
    joints_25d_weight=1.0,
    heatmap_weight=0.1,
    early_weight=0.3,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "people"
    render_domain("studio", 5, folder, seed=1, size=64, workers=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    "A process that trains in children of its own."
    jobs = Jobs(tmp_path_factory.mktemp("jobs"))
    yield jobs
    jobs.close()


def weights(path):
    found = {}
    with h5py.File(path) as f:
        f.visititems(
            lambda name, item: (
                found.update({name: item[()]})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return found


def test_killed_run_equals_uninterrupted(tmp_path, data, jobs):
    """Dropout, discriminator, averages, learning rate, order and augmentation all go on
    where they stood; killed at five random steps of twelve."""
    job = {"experiment": replace(TINY, epochs=6), "data": data}
    job |= {"eager": True, "tiny": True}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    kills = sorted(
        np.random.default_rng(5).choice(np.arange(1, 13), 5, replace=False).tolist()
    )
    for step in kills:
        ((code, said),) = jobs.run({**job, "out": cut, "kill": step})
        assert code == -signal.SIGKILL, f"not killed at step {step}: {said[-2000:]}"
    for out in (cut, whole):
        ((code, said),) = jobs.run({**job, "out": out})
        assert code == 0, said[-2000:]
    a, b = weights(whole / "last.h5"), weights(cut / "last.h5")
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert (whole / "log.csv").read_text() == (cut / "log.csv").read_text()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_devices_and_two_machines_do_what_one_does(tmp_path, data, jobs):
    """The same losses at equal global batch: normalisation synchronised, discriminator,
    gradient clipping, partly known labels. Compiled, as users run it."""
    e = replace(
        TINY, batch_size=4, epochs=2, steps_per_epoch=1, dropout=0.0, optimizer="adamw"
    )
    job = {"experiment": e, "data": data, "tiny": True}
    outs = {name: tmp_path / name for name in ("one", "two", "machines")}
    workers = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    parts = [
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": i}}
        for i in range(2)
    ]
    for side_by_side in (
        [{**job, "out": outs["one"], "devices": 1}],
        [{**job, "out": outs["two"], "devices": 2}],
        [
            {
                **job,
                "out": outs["machines"],
                "environment": {"TF_CONFIG": json.dumps(part)},
            }
            for part in parts
        ],
    ):
        for code, said in jobs.run(*side_by_side):
            assert code == 0, said[-2000:]
    logs = {name: pd.read_csv(out / "log.csv").to_numpy() for name, out in outs.items()}
    assert np.isfinite(logs["one"]).all() and logs["one"].shape[0] == 2
    for name in ("two", "machines"):
        np.testing.assert_allclose(logs[name], logs["one"], rtol=1e-5, err_msg=name)


def test_goes_on_from_a_published_run(tmp_path, data):
    """Discriminator, the state of both optimizers and the epochs behind it come from
    the file; too few epochs asked for is an error."""
    import tensorflow as tf

    from hmr_nb.model.discriminator import discriminator_weights
    from hmr_nb.model.weights import named_weights, save_weights_file
    from hmr_nb.training.run import fit
    from hmr_nb.training.trainer import Trainer

    e = replace(TINY, optimizer="adamw", epochs=9)
    trainer, rng = Trainer(e), np.random.default_rng(0)
    arrays = {
        f"discriminator/{k}": rng.random(w.shape, "float32")
        for k, w in discriminator_weights(trainer.discriminator).items()
    }
    for player, named in (
        ("model", named_weights(trainer.model)),
        ("discriminator", discriminator_weights(trainer.discriminator)),
    ):
        known = [k for k, w in named.items() if w.trainable]
        arrays |= {
            f"{player}_{word}/{k}": rng.random(named[k].shape, "float32")
            for k in known
            for word in ("mean", "square")
        }
    path = save_weights_file(
        trainer.model,
        tmp_path / "run.h5",
        half=False,
        training={"step": 8, "discriminator_step": 7},
        arrays=arrays,
    )
    again = Trainer(replace(e, start=str(path)))
    assert (
        int(again.steps_done),
        int(again.optimizer.iterations),
        int(again.discriminator_optimizer.iterations),
    ) == (8, 8, 7)
    np.testing.assert_array_equal(
        discriminator_weights(again.discriminator)["joint_kernel"],
        arrays["discriminator/joint_kernel"],
    )
    fc1 = named_weights(again.model)["regressor/fc1/kernel"]
    mean, square = again.optimizer.moments(fc1)
    np.testing.assert_array_equal(mean, arrays["model_mean/regressor/fc1/kernel"])
    np.testing.assert_array_equal(square, arrays["model_square/regressor/fc1/kernel"])
    with pytest.raises(
        ValueError,
        match=(
            "was trained for 4 epochs of 2 steps already, the experiment asks for 3;"
            " raise epochs"
        ),
    ):
        fit(
            replace(e, start=str(path), epochs=3), data, tmp_path / "no", progress=False
        )
    tf.config.run_functions_eagerly(True)
    try:
        run = fit(
            replace(e, start=str(path), epochs=5), data, tmp_path / "on", progress=False
        )
    finally:
        tf.config.run_functions_eagerly(False)
    assert [r["epoch"] for r in run.log] == [4]


def test_not_a_number_stops_and_keeps_the_batch(tmp_path, data, jobs):
    """A learning rate that destroys the weights: no weights of the broken epoch are
    written."""
    out = tmp_path / "broken"
    e = replace(
        TINY,
        learning_rate=1e30,
        optimizer="adamw",
        clip_norm=0.0,
        warmup=0,
        schedule="constant",
        steps_per_epoch=4,
    )
    job = {"experiment": e, "data": data, "out": out, "eager": True, "tiny": True}
    ((code, said),) = jobs.run(job)
    assert code != 0 and "NotANumber" in said and "lower learning_rate" in said
    (kept,) = out.glob("batch_*.npz")
    with np.load(kept) as batch:
        assert batch["image"].shape == (2, 96, 96, 3)
    assert not list(out.glob("*.h5")) and not (out / "state.npz").exists()


def test_published_encoder_trains(tmp_path, data):
    "ResNet50V2 with the discriminator: all weights move, everything stays finite."
    import tensorflow as tf

    from hmr_nb.training.batches import training_batches
    from hmr_nb.training.trainer import Trainer

    paper = Experiment(
        encoder_weights="",
        input_size=64,
        batch_size=2,
        discriminator_poses=32,
        learning_rate=1e-5,
        seed=2,
    )
    trainer = Trainer(paper)
    batch = next(iter(training_batches(paper, data, trainer.model.keypoints)))
    before = {v.path: v.numpy() for v in trainer.model.weights}
    tf.config.run_functions_eagerly(True)
    try:
        logs = [trainer.step(batch) for _ in range(2)]
    finally:
        tf.config.run_functions_eagerly(False)
    assert (
        all(np.isfinite(float(v)) for log in logs for v in log.values())
        and float(logs[0]["discriminator"]) > 0
    )
    still = [
        v.path
        for v in trainer.model.weights
        if np.array_equal(v.numpy(), before[v.path])
    ]
    assert not still, f"never changed: {still[:5]}"


@pytest.mark.parametrize("name", ["small_weights", "small_weights_studio"])
def test_recipe_that_ships(name):
    """The experiment file of the small weights is readable and is what the weights say
    they were trained by."""
    from hmr_nb.basics.files import shipped
    from hmr_nb.model.weights import weights_info
    from hmr_nb.training.experiment import read_experiment

    recipe = read_experiment(shipped(f"{name}.toml"))
    told = weights_info(shipped(f"{name}.h5"))["training"]["experiment"]
    assert Experiment(**told) == recipe
    assert Path(shipped(f"{name}.h5")).stat().st_size < 10e6


@pytest.mark.parametrize("name, known", [("toe_l", True), ("knuckle_l", False)])
def test_a_keypoint_of_ones_own_counts_where_the_records_have_it(
    tmp_path, data, name, known
):
    """Its regressor changes the loss if the data know it, and nothing if they do not;
    a step with it is made, and the file is read back with it."""
    recipe, rows, lost = (
        replace(TINY, epochs=1, steps_per_epoch=1, dropout=0.0),
        np.eye(len(open_body().v_template))[[0, -1]],
        [],
    )
    for row in rows:
        points = keypoint_set("cocoplus19").add(name, row, mirror=name)
        batch = next(iter(training_batches(recipe, data, points)))
        lost.append(
            {
                k: float(v)
                for k, v in Trainer(recipe, keypoints=points)
                .batch_losses(batch, training=False)[1]
                .items()
            }
        )
    changed = {k for k in lost[0] if abs(lost[0][k] - lost[1][k]) > 1e-3}
    assert (
        bool(np.asarray(batch["kp2d"])[:, len(points) - 1, 2].any()) == known
        and ("keypoints" in changed) == known
    ), changed
    if known:  # a compiled run takes long: one is enough
        run = fit(recipe, data, tmp_path / "run", progress=False, keypoints=points)
        assert load_hmr(run.weights).keypoints.names == load_hmr(
            run.weights, keypoints=points
        ).keypoints.names == run.model.keypoints.names == points.names and np.isfinite(
            run.log[0]["loss"]
        )
