"""`make bench`: medians of repeated runs, in one process, one after the other; ratios are what counts."""

import statistics
import time

import numpy as np
from bench_smpl import smpl_rows

from hmr_nb.joint_regressor import fit_regressor
from hmr_nb.open_body import open_body
from hmr_nb.smpl import SMPL


def seconds(call, repeats: int = 15) -> float:
    "Median time of a call, after two calls that are not counted."
    times = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        call()
        if i >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def regressor_row(body) -> None:
    "The exact fit on 30 posed meshes with every vertex as a candidate."
    rng = np.random.default_rng(0)
    layer = SMPL(body)
    V = np.asarray(layer(rng.normal(0, 0.3, (30, 24, 3)).astype(np.float32), np.zeros((30, 10), np.float32)).vertices)
    target = V[:, [10, 20, 30]].mean(1)
    print(f"fit_regressor, 30 meshes, {V.shape[1]} candidates: {seconds(lambda: fit_regressor(V, target), 3):.2f} s")


def model_row() -> None:
    "Picture to body against the encoder alone."
    from hmr_nb.hmr import small_hmr

    model = small_hmr()
    images = np.random.default_rng(0).uniform(-1, 1, (8, 128, 128, 3)).astype(np.float32)
    encoder = seconds(lambda: np.asarray(model.encoder(images, training=False)))
    whole = seconds(lambda: np.asarray(model(images, training=False)[-1].vertices))
    print(f"small model, batch 8: {8 / whole:.0f} images/s to the mesh, encoder alone {8 / encoder:.0f}")


if __name__ == "__main__":
    body = open_body()
    smpl_rows(body)
    regressor_row(body)
    model_row()
