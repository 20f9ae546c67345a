"""Rendered domains: a picture depends on (domain, seed, index) alone, not on processes, interruptions or counts."""

import subprocess
import sys

import numpy as np
import pytest

from hmr_nb.camera import apply_affine, perspective
from hmr_nb.datasets import synthetic
from hmr_nb.datasets.synthetic import DOMAINS, NAMES, render_domain, sample_scene
from hmr_nb.records import card, examples

QUICK = dict(size=48, progress=False)


@pytest.fixture(scope="module", autouse=True)
def one_layer():
    "One compiled SMPL layer for all tests of this file."
    QUICK["smpl"] = synthetic.smpl_layer(synthetic.open_body())
    yield
    del QUICK["smpl"]


def same_bytes(a, b):
    files = sorted(f.name for f in a.iterdir())
    assert files == sorted(f.name for f in b.iterdir()) and "card.json" in files
    return all((a / f).read_bytes() == (b / f).read_bytes() for f in files)


@pytest.mark.parametrize("name", DOMAINS)
def test_scene_is_a_function_of_its_arguments(name):
    one, again = sample_scene(name, 5, 200), sample_scene(name, 5, 200)
    for a, b in zip(one, again):
        assert np.array_equal(a, b)
    for other in (sample_scene(name, 6, 200), sample_scene(name, 5, 201)):
        assert not np.array_equal(one.pose, other.pose) and not np.array_equal(one.betas, other.betas)
    assert one.pose.shape == (24, 3) and np.isfinite(one.pose).all() and np.abs(one.betas).max() <= 2
    assert np.isclose(np.linalg.norm(one.up), 1) and one.middle[2] > 2


@pytest.mark.parametrize("name", DOMAINS)
def test_parallel_equals_serial(name, tmp_path):
    render_domain(name, 20, tmp_path / "serial", seed=3, workers=1, **QUICK)
    render_domain(name, 20, tmp_path / "parallel", seed=3, workers=2, **QUICK)
    assert same_bytes(tmp_path / "serial", tmp_path / "parallel")


def test_resume_after_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "SHARD", 6)
    render_domain("studio", 20, tmp_path / "whole", workers=1, **QUICK)
    render_task = synthetic.render_task

    def dies(scenes, *rest):
        if scenes[0].index > 0:
            raise KeyboardInterrupt
        return render_task(scenes, *rest)

    monkeypatch.setattr(synthetic, "render_task", dies)
    with pytest.raises(KeyboardInterrupt):
        render_domain("studio", 20, tmp_path / "broken", workers=1, **QUICK)
    assert len(list((tmp_path / "broken").glob("*.tfrecord"))) == 2  # 16 pictures done, whole shards kept
    monkeypatch.setattr(synthetic, "render_task", render_task)
    with pytest.raises(ValueError, match="resume"):
        render_domain("studio", 20, tmp_path / "broken", workers=1, **QUICK)
    render_domain("studio", 20, tmp_path / "broken", workers=1, resume=True, **QUICK)
    assert same_bytes(tmp_path / "whole", tmp_path / "broken")
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "whole").iterdir()}
    facts = render_domain("studio", 20, tmp_path / "whole", workers=1, resume=True, **QUICK)  # nothing left to do
    assert facts["written"] == 20 and before == {f: f.stat().st_mtime_ns for f in (tmp_path / "whole").iterdir()}


@pytest.mark.parametrize("count", [1, 17])
def test_small_counts_hold_their_truth(count, tmp_path):
    facts = render_domain("street", count, tmp_path / "r", seed=1, workers=1, split="val", **QUICK)
    assert facts["written"] == facts["with_3d"] == facts["with_smpl"] == count and facts["splits"] == {"val": count}
    found = list(examples(tmp_path / "r"))
    assert [e.frame for e in found] == list(range(count))
    for e in found:
        assert tuple(e.names) == NAMES and e.image.shape == (48, 48, 3) and set(e.state) <= {1, 2}
        assert np.allclose(e.kp2d, perspective(e.kp3d, e.focal, e.center), atol=2e-3)
        assert np.allclose(apply_affine(e.crop, np.full((1, 2), 499.5))[0], e.center, atol=2e-3)  # the photograph's middle
        assert (e.kp2d > 0).all() and (e.kp2d < 47).all() and (e.kp3d[:, 2] > 1).all()
        assert np.isclose(max(e.box[2:]), 48 / 1.5, atol=1e-3)


def test_other_seeds_give_other_people(tmp_path):
    a, b = ([e.pose for e in examples(tmp_path / s)] for s in ("a", "b") if render_domain("studio", 2, tmp_path / s, seed=ord(s), workers=1, **QUICK))
    assert all(not np.allclose(x, y) for x in a for y in b)


def test_errors_are_clear(tmp_path):
    with pytest.raises(ValueError, match="studio"):
        render_domain("hall", 2, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    render_domain("studio", 1, tmp_path / "y", workers=1, **QUICK)
    with pytest.raises(ValueError, match="already holds"):
        render_domain("studio", 1, tmp_path / "y", workers=1, **QUICK)
    with pytest.raises(ValueError, match="other settings"):
        render_domain("studio", 1, tmp_path / "y", seed=9, workers=1, resume=True, **QUICK)
    assert card(tmp_path / "y")["options"]["seed"] == 0


def test_workers_need_no_tensorflow():
    code = "import sys, hmr_nb.datasets.synthetic; sys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
