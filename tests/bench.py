"""`make bench`: medians of repeated runs, in one process, one after the other; ratios are what counts."""

import statistics
import time

import numpy as np

from hmr_nb.joint_regressor import fit_regressor, near_vertices
from hmr_nb.open_body import open_body
from hmr_nb.skeleton import keypoint_set
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


def smpl_rows(body) -> None:
    "The body layer: full meshes, keypoints alone, and the two matrix products that are its floor."
    import tensorflow as tf

    layer = SMPL(body, keypoints=keypoint_set("cocoplus19"))
    vertices, features = len(body.v_template), body.shapedirs.shape[-1] + body.posedirs.shape[-1]
    print(f"{'batch':>6} {'meshes/s':>10} {'keypoints/s':>12} {'ratio':>6} {'time / its two products':>24}")
    for batch in (1, 32, 256, 1024):
        rng = np.random.default_rng(0)
        pose = tf.constant(rng.normal(0, 0.3, (batch, 24, 3)), tf.float32)
        betas = tf.constant(rng.normal(0, 1, (batch, 10)), tf.float32)
        a, basis = tf.random.normal((batch, features)), tf.random.normal((features, 3 * vertices))
        c, skin = tf.random.normal((batch * 12, 24)), tf.random.normal((24, vertices))
        products = tf.function(lambda a, b, c, d: (a @ b, c @ d), jit_compile=True)
        full = seconds(lambda: layer(pose, betas).vertices.numpy()[0, 0])
        points = seconds(lambda: layer.keypoints_only(pose, betas).numpy())
        floor = seconds(lambda: [x.numpy()[0, 0] for x in products(a, basis, c, skin)])
        print(f"{batch:>6} {batch / full:>10,.0f} {batch / points:>12,.0f} {full / points:>6.1f} {full / floor:>24.2f}")


def regressor_row(body) -> None:
    "The exact fit on 30 posed meshes with every vertex as a candidate."
    rng = np.random.default_rng(0)
    layer = SMPL(body)
    V = np.asarray(layer(rng.normal(0, 0.3, (30, 24, 3)).astype(np.float32), np.zeros((30, 10), np.float32)).vertices)
    target = V[:, [10, 20, 30]].mean(1)
    noisy = target + rng.normal(0, 0.003, target.shape)
    print(f"fit_regressor, 30 meshes, {V.shape[1]} candidates, with its report: clean {seconds(lambda: fit_regressor(V, target, body=body), 3):.2f} s, "
          f"trembling marks {seconds(lambda: fit_regressor(V, noisy, body=body), 3):.2f} s")
    live = near_vertices(V[:5], noisy[:5], 0.1)
    print(f"five meshes as in the picker: fit and leave-one-out {1e3 * seconds(lambda: fit_regressor(V[:5], noisy[:5], candidates=live, bootstrap=0), 9):.0f} ms, "
          f"with stiff joints {1e3 * seconds(lambda: fit_regressor(V[:5], noisy[:5], candidates=live, bootstrap=0, body=body), 9):.0f} ms")


def model_row() -> None:
    "Picture to body against the encoder alone."
    from hmr_nb.hmr import small_hmr

    model = small_hmr()
    images = np.random.default_rng(0).uniform(-1, 1, (8, 128, 128, 3)).astype(np.float32)
    encoder = seconds(lambda: np.asarray(model.encoder(images, training=False)))
    whole = seconds(lambda: np.asarray(model(images, training=False)[-1].vertices))
    print(f"small model, batch 8: {8 / whole:.0f} images/s to the mesh, encoder alone {8 / encoder:.0f}")


WATCH = """
const real = HTMLCanvasElement.prototype.getContext;  // keep what was drawn, so that it can be looked at
HTMLCanvasElement.prototype.getContext = function (kind, options) { return real.call(this, kind, kind.startsWith("webgl") ? { ...options, preserveDrawingBuffer: true } : options); };
window.addEventListener("click", (e) => {
  const canvas = document.querySelector(".hmr-picker canvas"), start = performance.now();
  if (e.target !== canvas) return;
  const eye = new OffscreenCanvas(12, 12).getContext("2d", { willReadFrequently: true }), scale = canvas.width / canvas.clientWidth;
  let first = true;
  const look = () => {
    eye.drawImage(canvas, (e.offsetX - 6) * scale, (e.offsetY - 6) * scale, 12 * scale, 12 * scale, 0, 0, 12, 12);
    const rgb = eye.getImageData(0, 0, 12, 12).data;
    for (let i = 0; i < rgb.length; i += 4) if (Math.abs(rgb[i] - 204) + Math.abs(rgb[i + 1] - 47) + Math.abs(rgb[i + 2] - 123) < 60) return void (window.waited = first ? -1 : performance.now() - start);
    first = false;
    requestAnimationFrame(look);
  };
  window.waited = null;
  requestAnimationFrame(look);
}, true);
"""


def picker_row(body, clicks: int = 15) -> None:
    "From a click on the picker's canvas in JupyterLab to a frame in which its dot is drawn."
    import tempfile
    from pathlib import Path

    import test_picker_browser as browser

    if not browser.BROWSER:
        return print("picker: no chromium here (apt install chromium), not measured")
    with tempfile.TemporaryDirectory() as home, browser.serve_lab(Path(home)) as lab, browser.headless() as chromium:
        page = browser.open_page(chromium, f"{lab[0]}lab/tree/picker.ipynb", WATCH)
        kernel, box = browser.run_notebook(lab, page)
        browser.wait_for(lambda: kernel.ask("len(picker.strip.pictures)"), "the stills")
        waits = []
        for _, spot in browser.clear_spots(kernel, box, np.asarray(body.v_template, float), np.asarray(body.faces), clicks, seed=0):
            page.mouse.click(*spot)
            page.wait_for_function("window.waited", timeout=10_000)
            waits.append(page.evaluate("window.waited"))
    waits = [w for w in waits if w > 0]  # not those beside a dot that was there before
    print(f"picker: click to drawn dot {statistics.median(waits):.0f} ms median of {len(waits)} ({min(waits):.0f} to {max(waits):.0f})")


if __name__ == "__main__":
    body = open_body()
    smpl_rows(body)
    regressor_row(body)
    model_row()
    picker_row(body)
