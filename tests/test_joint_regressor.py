"""The regressor fit against independent solvers, laws over random problems, speed, and real reference numbers where they are at hand."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from hmr_nb.joint_regressor import (
    best_mix,
    fit_regressor,
    hull_gap,
    mirror_row,
    nearest_in_hull,
)

GOLDENS = Path(__file__).parents[2] / "shared" / "real" / "goldens" / "regressor_goldens.npz"


def problem(seed, meshes, vertices, noise=0.0):
    "A cloud that moves as soft bodies do: a common shape, bent differently in each mesh."
    random = np.random.default_rng(seed)
    V = random.normal(0, 0.3, (vertices, 3)) + 0.05 * random.normal(size=(meshes, vertices, 3)) + random.normal(size=(meshes, 1, 3))
    row = np.zeros(vertices)
    row[random.choice(vertices, min(8, vertices), replace=False)] = random.dirichlet(np.ones(min(8, vertices)))
    return V, np.einsum("v,mvc->mc", row, V) + noise * random.normal(size=(meshes, 3)), row


def squared(w, V, t):
    return float(((np.einsum("v,mvc->mc", w, V) - t) ** 2).sum())


@pytest.mark.parametrize("seed", range(6))
def test_as_good_as_a_general_solver(seed):
    V, t, _ = problem(seed, meshes=4, vertices=30, noise=0.05)
    P = (V - t[:, None]).transpose(0, 2, 1).reshape(12, 30)
    oracle = minimize(lambda w: w @ (P.T @ (P @ w)), np.full(30, 1 / 30), jac=lambda w: 2 * P.T @ (P @ w), method="SLSQP", bounds=[(0, 1)] * 30,
                      constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}, options={"ftol": 1e-16, "maxiter": 2000})
    fit = fit_regressor(V, t)
    assert squared(fit.weights, V, t) <= squared(oracle.x, V, t) + 1e-8
    assert squared(fit.weights, V, t) == pytest.approx(oracle.fun, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 60), st.sampled_from([0.0, 0.01, 1.0]))
def test_laws(seed, meshes, vertices, noise):
    V, t, _ = problem(seed, meshes, vertices, noise)
    fit = fit_regressor(V, t)
    w = fit.weights
    assert w.min() >= 0 and abs(w.sum() - 1) <= 1e-15 and w.shape == (vertices,)
    assert squared(w, V, t) <= min(squared(e, V, t) for e in np.eye(vertices)) + 1e-12  # no single vertex does better
    shift = np.random.default_rng(seed).normal(size=(meshes, 1, 3))
    moved = fit_regressor(V + shift, t + shift[:, 0], held_out=False).weights
    assert np.abs(np.einsum("v,mvc->mc", moved, V) - np.einsum("v,mvc->mc", w, V)).max() < 1e-5
    assert fit.report["gap_mm"] < 1e-2 and len(fit.report["residual_mm"]) == meshes
    assert (fit.report["held_out_mm"] is None) == (meshes == 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_few_vertices(seed, most):
    V, t, _ = problem(seed, 4, 50, 0.01)
    fit = fit_regressor(V, t, max_vertices=most, held_out=False)
    assert fit.report["support"] == np.count_nonzero(fit.weights) <= most
    P = (V - t[:, None]).transpose(0, 2, 1).reshape(12, 50)
    used = np.flatnonzero(fit.weights)
    assert hull_gap(P[:, used], fit.weights[used]) < 1e-6  # refitted exactly on what is left


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_mirror_and_middle(seed):
    V, t, _ = problem(seed, 4, 50, 0.01)
    mirror = np.arange(50) ^ 1
    fit = fit_regressor(V, t, mirror=mirror, held_out=False)
    assert np.array_equal(fit.mirrored, mirror_row(fit.weights, mirror)) and np.array_equal(mirror_row(fit.mirrored, mirror), fit.weights)
    middle = fit_regressor(V, t, mirror=mirror, midline=True, max_vertices=6, held_out=False)
    assert np.array_equal(middle.weights, middle.weights[mirror]) and middle.report["support"] <= 6
    assert abs(middle.weights.sum() - 1) <= 1e-15


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_only_candidates_get_weight(seed, as_booleans):
    V, t, _ = problem(seed, 3, 40, 0.1)
    allowed = np.zeros(40, bool)
    allowed[np.random.default_rng(seed).choice(40, 7, replace=False)] = True
    fit = fit_regressor(V, t, candidates=allowed if as_booleans else np.flatnonzero(allowed), held_out=False)
    assert not fit.weights[~allowed].any()


def test_held_out_is_what_a_refit_gives():
    V, t, _ = problem(3, 5, 60, 0.02)
    fit = fit_regressor(V, t)
    for i, error_mm in enumerate(fit.report["held_out_mm"]):
        others = np.arange(5) != i
        refit = fit_regressor(V[others], t[others], held_out=False).weights
        assert error_mm == pytest.approx(1e3 * np.linalg.norm(refit @ V[i] - t[i]), abs=0.5)


def test_growing_candidates_is_exact():
    V, t, _ = problem(5, 6, 3000, 0.02)
    P = (V - t[:, None]).transpose(0, 2, 1).reshape(18, 3000)
    assert np.linalg.norm(P @ best_mix(P)) == pytest.approx(np.linalg.norm(P @ nearest_in_hull(P)), abs=1e-9)


@pytest.mark.parametrize("bad, said", [
    ({"vertices": np.zeros((2, 5)), "targets": np.zeros((2, 3))}, r"vertices: expected \(m, v, 3\)"),
    ({"vertices": np.zeros((2, 5, 3)), "targets": np.zeros((3, 3))}, "targets: expected"),
    ({"vertices": np.full((2, 5, 3), np.nan), "targets": np.zeros((2, 3))}, "finite"),
    ({"vertices": np.zeros((0, 5, 3)), "targets": np.zeros((0, 3))}, "at least one mesh"),
    ({"vertices": np.zeros((2, 5, 3)), "targets": np.zeros((2, 3)), "candidates": [5]}, "candidates: expected"),
    ({"vertices": np.zeros((2, 5, 3)), "targets": np.zeros((2, 3)), "candidates": []}, "candidates: expected"),
    ({"vertices": np.zeros((2, 5, 3)), "targets": np.zeros((2, 3)), "candidates": np.ones(4, bool)}, "candidates: expected"),
    ({"vertices": np.zeros((2, 5, 3)), "targets": np.zeros((2, 3)), "candidates": [0.5]}, "candidates: expected"),
    ({"vertices": np.zeros((2, 5, 3)), "targets": np.zeros((2, 3)), "mirror": [1, 2, 0, 3, 4]}, "its own inverse"),
    ({"vertices": np.zeros((2, 5, 3)), "targets": np.zeros((2, 3)), "midline": True}, "needs mirror"),
    ({"vertices": np.zeros((2, 5, 3)), "targets": np.zeros((2, 3)), "max_vertices": 0}, "max_vertices: expected"),
])
def test_bad_input_is_named(bad, said):
    with pytest.raises(ValueError, match=said):
        fit_regressor(**bad)


def test_thirty_meshes_and_all_vertices_within_a_second():
    V, t, _ = problem(0, 30, 6890, 0.003)
    seconds = []
    for _ in range(2):
        start = time.process_time()
        fit = fit_regressor(V, t)
        seconds.append(time.process_time() - start)
    assert min(seconds) <= 1, seconds
    assert len(fit.report["held_out_mm"]) == 30


def test_import_is_light():
    code = "import sys, time; t = time.process_time(); import hmr_nb.joint_regressor; t = time.process_time() - t; " \
           "assert not {'tensorflow', 'keras', 'matplotlib'} & set(sys.modules); assert t < 1, t"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.skipif(not GOLDENS.exists(), reason="the reference numbers in ../shared/real are not on this machine")
@pytest.mark.parametrize("meshes, most_mm", [(10, 0.05), (5, 1.0)])
def test_25_vertices_on_fifty_poses_never_seen(meshes, most_mm):
    with np.load(GOLDENS) as z:
        name = f"weighted_25_vertices_left_shoulder_{meshes}"
        fit = fit_regressor(z["mesh_vertices"][:meshes], z[f"{name}_targets"][:meshes])
        found = np.einsum("v,mvc->mc", fit.weights, z["heldout_vertices"].astype(float))
        error_mm = 1e3 * np.linalg.norm(found - z[f"{name}_heldout_targets"], axis=1).mean()
        assert error_mm <= most_mm < 1e3 * z[f"{name}_heldout_error_m"].mean()
