"Settings by the names of this version and of older ones; typing errors are answered."

import inspect
import json
from dataclasses import asdict, fields, replace

import pytest

from hmr_nb.basics.files import shipped
from hmr_nb.model.weights import weights_info
from hmr_nb.training.experiment import _OLD_NAMES, Experiment, read_experiment

# every setting of version 0.3.0 that has another name now, with a value of its own
OLD = {
    "rotation": "6d",
    "w_keypoints": 1.5,
    "w_joints": 2.5,
    "w_pose": 3.5,
    "w_adversary": 4.5,
    "w_distance": 5.5,
    "w_rotation": 6.5,
    "w_root": 7.5,
    "w_betas": 8.5,
    "w_hints": 9.5,
    "w_hint_depth": 10.5,
    "w_heat": 11.5,
    "early": 0.25,
    "critic_learning_rate": 2e-4,
    "batch": 7,
    "keep": 3,
    "turn": 40.0,
    "critic_poses": 11,
}
NEW = {
    "rotation_form": "6d",
    "keypoints_weight": 1.5,
    "joints_weight": 2.5,
    "pose_weight": 3.5,
    "adversarial_weight": 4.5,
    "distance_weight": 5.5,
    "rotation_weight": 6.5,
    "root_weight": 7.5,
    "betas_weight": 8.5,
    "joints_25d_weight": 9.5,
    "depth_25d_weight": 10.5,
    "heatmap_weight": 11.5,
    "early_weight": 0.25,
    "discriminator_learning_rate": 2e-4,
    "batch_size": 7,
    "keep_epochs": 3,
    "rotation_deg": 40.0,
    "discriminator_poses": 11,
}


def test_old_names_mean_what_they_meant(tmp_path):
    "In the constructor, in toml, and in json such as an old run's experiment.json."
    wanted = Experiment(**NEW)
    assert set(OLD) == set(_OLD_NAMES) and Experiment(**OLD) == wanted
    assert {k: v for k, v in asdict(wanted).items() if k in NEW} == NEW
    (tmp_path / "old.json").write_text(json.dumps(OLD), encoding="utf-8")
    toml = "\n".join(f"{k} = {json.dumps(v)}" for k, v in OLD.items())
    (tmp_path / "old.toml").write_text(toml, encoding="utf-8")
    for name in ("old.json", "old.toml"):
        assert read_experiment(tmp_path / name) == wanted


def test_no_old_name_is_a_new_one():
    known = {f.name for f in fields(Experiment)}
    assert not known & set(_OLD_NAMES) and set(_OLD_NAMES.values()) <= known


@pytest.mark.parametrize("name", ["small_weights", "small_weights_studio"])
def test_weights_of_0_3_0_tell_their_experiment(name):
    "The files that ship were written with the old names; their recipes have the new."
    told = weights_info(shipped(f"{name}.h5"))["training"]["experiment"]
    assert {"batch", "w_hints", "critic_poses"} <= set(told)
    assert Experiment(**told) == read_experiment(shipped(f"{name}.toml"))


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("bach", "batch_size"),
        ("batchsize", "batch_size"),
        ("learning_rat", "learning_rate"),
        ("w_hint", "joints_25d_weight"),
        ("critic_learning_rates", "discriminator_learning_rate"),
    ],
)
def test_typing_errors_are_answered(tmp_path, typed, meant):
    with pytest.raises(TypeError, match=f"{typed!r}; did you mean {meant!r}"):
        Experiment(**{typed: 1})
    path = tmp_path / "e.toml"
    path.write_text(f"{typed} = 1", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"e\.toml: .*did you mean {meant!r}"):
        read_experiment(path)


def test_what_is_far_from_everything_gets_the_list():
    with pytest.raises(TypeError, match="'zzz'; known are .*'batch_size'"):
        Experiment(zzz=1)


def test_twice_is_refused():
    with pytest.raises(TypeError, match="'batch_size' is there twice"):
        Experiment(batch=4, batch_size=4)
    with pytest.raises(TypeError, match="'batch_size' is there twice"):
        replace(Experiment(), batch=4)
    assert replace(Experiment(batch=4), seed=1).batch_size == 4


def test_help_shows_the_settings():
    options = inspect.signature(Experiment).parameters
    assert list(options) == [f.name for f in fields(Experiment)]
    assert options["batch_size"].default == 64
