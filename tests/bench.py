"""`make bench`: medians of repeated runs, in one process, one after the other; ratios
are what counts."""

import statistics
import time

import numpy as np
from bench_smpl import smpl_rows

from hmr_nb.body.open_body import open_body
from hmr_nb.body.smpl import SMPL
from hmr_nb.keypoints.joint_regressor import fit_regressor, near_vertices
from hmr_nb.model.view import View


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
    V = np.asarray(
        layer(
            rng.normal(0, 0.3, (30, 24, 3)).astype(np.float32),
            np.zeros((30, 10), np.float32),
        ).vertices
    )
    target = V[:, [10, 20, 30]].mean(1)
    noisy = target + rng.normal(0, 0.003, target.shape)
    print(
        f"fit_regressor, 30 meshes, {V.shape[1]} candidates, with its report: clean"
        f" {seconds(lambda: fit_regressor(V, target, body=body), 3):.2f} s, trembling"
        f" marks {seconds(lambda: fit_regressor(V, noisy, body=body), 3):.2f} s"
    )
    live = near_vertices(V[:5], noisy[:5], 0.1)

    def as_in_the_picker(**more):
        fit_regressor(V[:5], noisy[:5], candidates=live, bootstrap=0, **more)

    plain = 1e3 * seconds(as_in_the_picker, 9)
    stiff = 1e3 * seconds(lambda: as_in_the_picker(body=body), 9)
    print(
        f"five meshes as in the picker: fit and leave-one-out {plain:.0f} ms, with"
        f" stiff joints {stiff:.0f} ms"
    )


def model_row() -> None:
    "Picture to body against the encoder alone."
    from hmr_nb.model.weights import small_hmr

    model = small_hmr()
    images = (
        np.random.default_rng(0).uniform(-1, 1, (8, 128, 128, 3)).astype(np.float32)
    )
    encoder = seconds(lambda: np.asarray(model.encoder(images, training=False)))
    whole = seconds(lambda: np.asarray(model(images, training=False)[-1].vertices))
    print(
        f"small model, batch 8: {8 / whole:.0f} images/s to the mesh, encoder alone"
        f" {8 / encoder:.0f}"
    )


def texture(rng, height: int, width: int) -> np.ndarray:
    "A picture that compresses like a photograph: about 0.3 bytes a pixel as JPEG."
    import cv2

    layers = [
        (
            cv2.resize(
                rng.normal(0, s, (height // d + 2, width // d + 2, 3)),
                (width, height),
                interpolation=cv2.INTER_CUBIC,
            )
        )
        for d, s in ((60, 50), (12, 14), (3, 4))
    ]
    return np.clip(128 + sum(layers), 0, 255).astype(np.uint8)


def write_lsp(folder, count: int) -> None:
    """A folder in LSP's layout: photographs of 400 x 300, people 120 to 200 px tall, as
    in LSP."""
    import cv2
    import scipy.io

    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    pictures = [texture(rng, 300, 400) for _ in range(20)]
    for i in range(count):
        cv2.imwrite(
            str(folder / "images" / f"im{i + 1:04d}.jpg"),
            np.roll(pictures[i % 20], i, (0, 1)),
            [cv2.IMWRITE_JPEG_QUALITY, 90],
        )
    height = rng.uniform(120, 200, count)
    kp = rng.uniform(-0.5, 0.5, (count, 14, 2)) * [0.4, 1]
    kp[:, 0], kp[:, 13] = [0, 0.5], [0, -0.5]
    kp = (
        kp * height[:, None, None]
        + np.stack([rng.uniform(150, 250, count), rng.uniform(140, 160, count)], -1)[
            :, None
        ]
    )
    scipy.io.savemat(
        folder / "joints.mat",
        {
            "joints": (
                np.concatenate([kp, np.zeros((count, 14, 1))], -1).transpose(2, 1, 0)
            )
        },
    )


def plain_recipe(folder, out) -> None:
    """What hmr2.0's converter does for each picture: imread, resize the whole, crop,
    imencode."""
    import cv2
    import tensorflow as tf

    from hmr_nb.records.datasets.lsp import read_joints

    _, points, states = read_joints(folder)
    with tf.io.TFRecordWriter(str(out)) as writer:
        for i, (kp, state) in enumerate(zip(points, states)):
            image = cv2.imread(str(folder / "images" / f"im{i + 1:04d}.jpg"))
            scale = 150 / np.linalg.norm(np.ptp(kp, axis=0))
            image = cv2.resize(
                image, (int(image.shape[1] * scale), int(image.shape[0] * scale))
            )
            center = np.round(scale * (kp.min(0) + kp.max(0)) / 2).astype(int)
            start, end = (
                np.maximum(center - 150, 0),
                np.minimum(center + 150, [image.shape[1], image.shape[0]]),
            )
            jpeg = cv2.imencode(".jpg", image[start[1] : end[1], start[0] : end[0]])[
                1
            ].tobytes()
            moved = np.c_[kp * scale - start, state == 2].ravel()
            feature = {
                "image_raw": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[jpeg])
                ),
                "keypoints_2d": tf.train.Feature(
                    float_list=tf.train.FloatList(value=moved)
                ),
            }
            writer.write(
                tf.train.Example(
                    features=tf.train.Features(feature=feature)
                ).SerializeToString()
            )


def conversion_row(folder, count: int = 600) -> None:
    """Conversion with one worker against the plain recipe, and with two workers against
    one."""
    import shutil

    from hmr_nb.records.datasets.lsp import convert_lsp

    write_lsp(folder / "lsp", count)
    times = {"recipe": [], 1: [], 2: []}
    for _ in range(5):
        for kind in times:
            shutil.rmtree(folder / "out", ignore_errors=True)
            start = time.perf_counter()
            (
                plain_recipe(folder / "lsp", folder / "recipe.tfrecord")
                if kind == "recipe"
                else convert_lsp(
                    folder / "lsp", folder / "out", workers=kind, progress=False
                )
            )
            times[kind].append(time.perf_counter() - start)
    recipe, one, two = (statistics.median(t[1:]) for t in times.values())
    print(
        f"conversion, 400 x 300 px: recipe {count / recipe:.0f} images/s, one worker"
        f" {count / one:.0f} ({recipe / one:.2f} x), two workers {count / two:.0f}"
        f" ({one / two:.2f} x one)"
    )


def plain_pipeline(shards, size: int):
    """hmr2.0's recipe: decode whole, resize the whole, pad by tiling the border, slice,
    flip."""
    import tensorflow as tf

    def view(record):
        f = tf.io.parse_single_example(
            record,
            {
                "image": tf.io.FixedLenFeature((), tf.string),
                "box": tf.io.FixedLenFeature((4,), tf.float32),
                "kp2d": tf.io.FixedLenFeature((14, 2), tf.float32),
            },
        )
        image = tf.image.convert_image_dtype(
            tf.image.decode_jpeg(f["image"], channels=3), tf.float32
        )
        scale = (
            tf.exp(tf.random.uniform((), np.log(0.8), np.log(1.23)))
            * size
            / (1.25 * tf.reduce_max(f["box"][2:]))
        )
        shape = tf.cast(tf.cast(tf.shape(image)[:2], tf.float32) * scale, tf.int32)
        image, kp = tf.image.resize(image, shape), f["kp2d"] * scale
        center = tf.cast(
            (f["box"][:2] + f["box"][2:] / 2) * scale, tf.int32
        ) + tf.random.uniform((2,), -20, 20, tf.int32)
        margin = size // 2 + 20 + 50  # half a view, the jitter, and fifty to be safe
        image = tf.concat(
            [
                tf.tile(image[:1], (margin, 1, 1)),
                image,
                tf.tile(image[-1:], (margin, 1, 1)),
            ],
            0,
        )
        image = tf.concat(
            [
                tf.tile(image[:, :1], (1, margin, 1)),
                image,
                tf.tile(image[:, -1:], (1, margin, 1)),
            ],
            1,
        )
        corner = center + margin - size // 2
        image = tf.slice(image, (corner[1], corner[0], 0), (size, size, 3))
        kp = kp + tf.cast(margin - corner, tf.float32)
        image = tf.cond(
            tf.random.uniform(()) < 0.5,
            lambda: tf.image.flip_left_right(image),
            lambda: image,
        )
        return tf.ensure_shape(image, (size, size, 3)) * 2 - 1, kp

    return (
        tf.data.TFRecordDataset([str(s) for s in shards])
        .shuffle(1000)
        .map(view, tf.data.AUTOTUNE)
    )


def pipeline_row(folder, count: int = 1000, size: int = 224) -> None:
    "The training input against hmr2.0's recipe, on the same records."
    from hmr_nb.basics.camera import box_from_keypoints
    from hmr_nb.basics.keypoints import keypoint_set
    from hmr_nb.basics.values import Identity
    from hmr_nb.records.augment import augment
    from hmr_nb.records.schema import Sample
    from hmr_nb.records.stream import record_dataset
    from hmr_nb.records.writer import RecordWriter

    rng, points = np.random.default_rng(0), keypoint_set("lsp14")
    pictures = [texture(rng, 300, 300) for _ in range(20)]
    with RecordWriter(folder / "records", "bench") as writer:
        for i in range(count):
            kp = rng.uniform(50, 250, (14, 2))
            writer.write(
                Sample(
                    points.names,
                    kp,
                    image=np.roll(pictures[i % 20], i, (0, 1)),
                    box=box_from_keypoints(kp),
                    identity=Identity(frame=i),
                )
            )
    ours = (
        augment(record_dataset(folder / "records", points), View(size), points, color=0)
        .batch(32)
        .prefetch(2)
    )
    theirs = (
        plain_pipeline(sorted((folder / "records").glob("*.tfrecord")), size)
        .batch(32)
        .prefetch(2)
    )

    def run(data):
        return sum(1 for _ in data)

    times = {"ours": [], "theirs": []}
    for _ in range(6):
        for kind, data in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            run(data)
            times[kind].append(time.perf_counter() - start)
    ours, theirs = (statistics.median(t[1:]) for t in times.values())
    print(
        f"training input, {size} px from 300 px: {count / ours:.0f} images/s, hmr2.0's"
        f" recipe {count / theirs:.0f} ({theirs / ours:.2f} x)"
    )


WATCH = """
// keep what was drawn, so that it can be looked at
const real = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, options) {
  const kept = { ...options, preserveDrawingBuffer: true };
  return real.call(this, kind, kind.startsWith("webgl") ? kept : options);
};
const near = (r, g, b) =>
  Math.abs(r - 204) + Math.abs(g - 47) + Math.abs(b - 123) < 60;
window.addEventListener("click", (e) => {
  const canvas = document.querySelector(".hmr-picker canvas");
  const start = performance.now();
  if (e.target !== canvas) return;
  const often = { willReadFrequently: true };
  const eye = new OffscreenCanvas(12, 12).getContext("2d", often);
  const scale = canvas.width / canvas.clientWidth;
  let first = true;
  const look = () => {
    const [x, y] = [(e.offsetX - 6) * scale, (e.offsetY - 6) * scale];
    eye.drawImage(canvas, x, y, 12 * scale, 12 * scale, 0, 0, 12, 12);
    const rgb = eye.getImageData(0, 0, 12, 12).data;
    for (let i = 0; i < rgb.length; i += 4)
      if (near(rgb[i], rgb[i + 1], rgb[i + 2]))
        return void (window.waited = first ? -1 : performance.now() - start);
    first = false;
    requestAnimationFrame(look);
  };
  window.waited = null;
  requestAnimationFrame(look);
}, true);
"""


def picker_row(body, clicks: int = 15) -> None:
    """From a click on the picker's canvas in JupyterLab to a frame in which its dot is
    drawn."""
    import tempfile
    from pathlib import Path

    import test_picker_browser as browser

    if not browser.BROWSER:
        return print("picker: no chromium here (apt install chromium), not measured")
    with (
        tempfile.TemporaryDirectory() as home,
        browser.serve_lab(Path(home)) as lab,
        browser.headless() as chromium,
    ):
        page = browser.open_page(chromium, f"{lab[0]}lab/tree/picker.ipynb", WATCH)
        kernel, box = browser.run_notebook(lab, page)
        browser.wait_for(lambda: kernel.ask("len(picker.strip.pictures)"), "the stills")
        waits = []
        for _, spot in browser.clear_spots(
            kernel,
            box,
            np.asarray(body.v_template, float),
            np.asarray(body.faces),
            clicks,
            seed=0,
        ):
            page.mouse.click(*spot)
            page.wait_for_function("window.waited", timeout=10_000)
            waits.append(page.evaluate("window.waited"))
    waits = [w for w in waits if w > 0]  # not those beside a dot that was there before
    print(
        f"picker: click to drawn dot {statistics.median(waits):.0f} ms median of"
        f" {len(waits)} ({min(waits):.0f} to {max(waits):.0f})"
    )


COUNT = """
window.drawn = 0;
for (const kind of ["WebGLRenderingContext", "WebGL2RenderingContext"]) {
  const real = window[kind].prototype.drawElements;
  window[kind].prototype.drawElements = function (...args) {
    window.drawn += 1;
    return real.apply(this, args);
  };
}
"""


def explorer_row(moves: int = 100) -> None:
    "How many pictures of the body a browser draws in a second while a slider is moved."
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import test_explorer_browser as browser

    if not browser.BROWSER:
        return print("explorer: no chromium here (apt install chromium), not measured")
    with (
        TemporaryDirectory() as home,
        browser.explorer_page(Path(home), COUNT) as (page, kernel, _),
    ):
        kernel.ask("explorer.controls['turn z'].set_trait('value', 1)")
        before, start = page.evaluate("window.drawn"), time.perf_counter()
        for i in range(moves):
            kernel.ask(f"explorer.controls['turn z'].set_trait('value', {i % 60})")
        browser.wait_for(lambda: page.evaluate("window.drawn") > before, "pictures")
        drawn, took = (
            page.evaluate("window.drawn") - before,
            time.perf_counter() - start,
        )
    print(
        f"explorer: {moves / took:.0f} moves/s arrive, {drawn / took:.0f} pictures/s"
        " drawn"
    )


def inference_rows(batch: int = 8, repeats: int = 9) -> None:
    """Picture to body through `infer`'s compiled model, against the bare encoder in the
    same precision and in float32; by turns, so that all meet the same neighbours."""
    import tensorflow as tf

    from hmr_nb.inference.infer import Forward
    from hmr_nb.model.hmr import HMR

    model = HMR("resnet50v2")
    images = tf.constant(
        np.random.default_rng(0).uniform(-1, 1, (batch, 224, 224, 3)).astype(np.float32)
    )
    whole = {"float32": Forward(model, "float32"), "auto": Forward(model, "auto")}
    bare = {
        name: tf.function(
            lambda x, encoder=forward.encoder: encoder(x, training=False),
            autograph=False,
        )
        for name, forward in whole.items()
    }
    calls = {
        ("bare", name): lambda f=f: np.asarray(f(images)) for name, f in bare.items()
    } | {
        ("whole", name): lambda f=f: np.asarray(f.recover(images).vertices)
        for name, f in whole.items()
    }
    times = {key: [] for key in calls}
    for i in range(repeats + 2):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if i >= 2:
                times[key].append(time.perf_counter() - start)
    rate = {key: batch / statistics.median(t) for key, t in times.items()}
    for name, forward in whole.items():
        print(
            f"ResNet50V2 in {forward.precision}, batch {batch}:"
            f" {rate['whole', name]:.1f} images/s to the mesh, encoder alone"
            f" {rate['bare', name]:.1f} ({rate['whole', name] / rate['bare', name]:.2f}"
            f" x), float32 encoder alone {rate['bare', 'float32']:.1f}"
            f" ({rate['whole', name] / rate['bare', 'float32']:.2f} x)"
        )


def training_rows(batch: int = 8, repeats: int = 7) -> None:
    """One training step of the full model with its discriminator, optimizers' updates
    included, against the encoder's forward and backward alone in the same precision; by
    turns."""
    import tensorflow as tf

    from hmr_nb.training.experiment import Experiment
    from hmr_nb.training.trainer import Trainer

    rng = np.random.default_rng(0)
    shapes = {
        "image": (224, 224, 3),
        "kp2d": (43, 3),
        "kp3d": (43, 3),
        "pose": (24, 3),
        "betas": (10,),
    }
    data = {
        k: tf.constant(rng.uniform(-1, 1, (batch, *s)), tf.float32)
        for k, s in shapes.items()
    }
    data |= {
        "mask_3d": tf.ones((batch, 43)),
        "has_3d": tf.ones(batch),
        "has_smpl": tf.ones(batch),
    }
    calls = {}
    for precision in ("float32", "mixed_bfloat16"):
        trainer = Trainer(
            Experiment(encoder_weights="", batch_size=batch, precision=precision)
        )

        @tf.function(autograph=False)
        def bare(images, net=trainer.model.encoder):
            with tf.GradientTape() as tape:
                cost = tf.reduce_sum(net(images, training=True))
            return tape.gradient(cost, [w.value for w in net.trainable_variables])

        calls["encoder", precision] = lambda bare=bare: bare(data["image"])[0].numpy()
        calls["step", precision] = lambda trainer=trainer: float(
            trainer.step(data)["loss"]
        )
    times, work = {key: [] for key in calls}, {key: [] for key in calls}
    for i in range(repeats + 2):
        for key, call in calls.items():
            start, busy = time.perf_counter(), time.process_time()
            call()
            if i >= 2:
                times[key].append(time.perf_counter() - start)
                work[key].append(time.process_time() - busy)
    took, busy = (
        {key: statistics.median(t) for key, t in clock.items()}
        for clock in (times, work)
    )
    for precision in ("float32", "mixed_bfloat16"):
        step, encoder = ("step", precision), ("encoder", precision)
        print(
            f"training step in {precision}, batch {batch}: {batch / took[step]:.1f}"
            f" images/s, encoder forward and backward alone {batch / took[encoder]:.1f}"
            f" ({took[encoder] / took[step]:.2f} x; by processor time, which neighbours"
            f" disturb less, {busy[encoder] / busy[step]:.2f} x)"
        )


def fit_rows(batch: int = 4, repeats: int = 7) -> None:
    "Bodies fitted to 17 points of rendered people, with and without places in space."
    from hmr_nb.basics.camera import Camera
    from hmr_nb.basics.files import shipped
    from hmr_nb.basics.keypoints import keypoint_set
    from hmr_nb.inference.fit import fit_body
    from hmr_nb.records.reader import examples

    names, smpl = keypoint_set("coco17").names, SMPL()
    people = list(examples(shipped("samples") / "sports"))[1 : 1 + batch]
    where = [people[0].names.index(n) for n in names]
    xy = np.stack([p.kp2d[where] for p in people])
    space = np.stack([p.kp3d[where] for p in people])
    cameras = [Camera.simple(p.focal, p.center) for p in people]

    def fit(space):
        fit_body(smpl, names, xy, None, space, camera=cameras)

    start = time.perf_counter()
    fit(space)
    first = time.perf_counter() - start
    both, flat = (seconds(lambda x=x: fit(x), repeats) for x in (space, None))
    print(
        f"fit_body, batch {batch}: first call {first:.1f} s, then {both / batch:.3f} s"
        f" a person with points in space, {flat / batch:.3f} s without (four starts)"
    )


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    body = open_body()
    smpl_rows(body)
    regressor_row(body)
    model_row()
    inference_rows()
    training_rows()
    with TemporaryDirectory() as folder:
        conversion_row(Path(folder))
        pipeline_row(Path(folder))
    fit_rows()
    picker_row(body)
    explorer_row()
