"""The rows of `make bench` that are about the body layer: ours, smplx and smplfitter in
turns, and our own floor."""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from hmr_nb.basics.keypoints import keypoint_set
from hmr_nb.body.body_files import save_body
from hmr_nb.body.smpl import SMPL, _fused_tables

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "build" / "peers"
BATCHES = (1, 32, 256, 1024)
ROUNDS = 10


def peers_python() -> Path | None:
    """The Python of an environment that has the peers; made at the first use, which
    takes minutes and a download."""
    python = PEERS / "bin" / "python"
    ready = (
        python.exists()
        and not subprocess.run(
            [python, "-c", "import smplx, smplfitter.pt"],
            capture_output=True,
            check=False,
        ).returncode
    )
    if not ready:
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        try:
            subprocess.run(
                [sys.executable, "-m", "venv", PEERS], check=True, capture_output=True
            )
            # torch first: the others would take a larger build
            for packages in (["torch==2.13.0"], ["smplx==0.1.28", "smplfitter==0.6.0"]):
                subprocess.run(
                    [*pip, *packages], check=True, capture_output=True, timeout=1800
                )
        except (subprocess.SubprocessError, OSError) as error:
            print(
                "smplx and smplfitter could not be installed into"
                f" {PEERS.relative_to(ROOT)} ({type(error).__name__}): rows without"
                " them"
            )
            return None
    return python


class Peers:
    "A process that runs smplx and smplfitter on what we give it."

    def __init__(self, body, folder: Path):
        self.folder, python = folder, peers_python()
        save_body(body, folder / "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl")
        self.names = ("smplx", "smplfitter") if python else ()
        if python:
            command = [
                python,
                "-W",
                "ignore",
                ROOT / "tests" / "bench_peers.py",
                folder,
            ]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                "the process with smplx and smplfitter ended; its last words are above"
            )
        return json.loads(line)

    def ask(self, name: str, inputs: Path, calls: int, **more) -> list[float]:
        "Seconds of each of `calls` calls."
        self.process.stdin.write(
            json.dumps({"name": name, "inputs": str(inputs), "calls": calls, **more})
            + "\n"
        )
        self.process.stdin.flush()
        return self.answer()["times"]


def timed(call, calls: int) -> list[float]:
    "Seconds of each of `calls` calls."
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def products(layer: SMPL, batch: int):
    """Nothing but the two matrix products, whole and once each, compiled in the same
    way."""
    tables = _fused_tables(layer.body)
    basis, skin = (
        tf.constant(tables["basis"], tf.float32),
        tf.constant(tables["weights"], tf.float32),
    )
    a, c = (
        tf.random.normal((batch, basis.shape[0])),
        tf.random.normal((batch * 12, skin.shape[0])),
    )

    @tf.function(jit_compile=True)
    def both(a, c):
        x, y = a @ basis, c @ skin
        return x, y, x[0, 0]

    return lambda: both(a, c)[-1].numpy()


def rounds(layer: SMPL, peers: Peers, batch: int) -> dict[str, float]:
    """Median seconds a call of everybody, in turns: what disturbs one round disturbs
    all."""
    rng, calls = np.random.default_rng(0), max(2, min(20, 1000 // batch))
    given = {
        "pose": rng.normal(0, 0.3, (batch, 24, 3)).astype("float32"),
        "betas": rng.normal(0, 1, (batch, 10)).astype("float32"),
    }
    inputs = peers.folder / f"inputs_{batch}.npz"
    np.savez(inputs, **given)
    pose, betas = tf.constant(given["pose"]), tf.constant(given["betas"])
    mesh = SMPL(layer.body)
    # the few numbers that are fetched wait for the whole; smplx's vertices are not
    # copied out either
    ours = {
        "mesh": lambda: mesh(pose, betas).joints.numpy(),
        "keypoints": lambda: layer.keypoints_only(pose, betas).numpy(),
        "products": products(layer, batch),
    }
    runs = {n: lambda k, call=call: timed(call, k) for n, call in ours.items()} | {
        n: lambda k, n=n: peers.ask(n, inputs, k) for n in peers.names
    }
    times = {n: [] for n in runs}
    for run in runs.values():
        run(2)  # not counted: compiles, warms caches
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name] += run(calls)
    return {n: statistics.median(t) for n, t in times.items()}


def same_as_peers(layer: SMPL, peers: Peers) -> None:
    "The pickle that we write, read by the peers, must give our vertices."
    rng = np.random.default_rng(1)
    given = {
        "pose": rng.normal(0, 0.4, (8, 24, 3)).astype("float32"),
        "betas": rng.normal(0, 1, (8, 10)).astype("float32"),
    }
    inputs = peers.folder / "same.npz"
    np.savez(inputs, **given)
    ours = layer(given["pose"], given["betas"]).vertices.numpy()
    for name in peers.names:
        peers.ask(name, inputs, 1, save=str(peers.folder / "theirs.npy"))
        gap = np.abs(np.load(peers.folder / "theirs.npy") - ours).max()
        print(f"our pickle read by {name}: vertices differ by {gap:.1e} m")
        if gap > 1e-5:
            raise SystemExit(
                f"{name} makes another body of our pickle: {gap:.1e} m apart, at most"
                " 1e-5 expected"
            )


def memory_row(body, batch: int = 1024) -> None:
    """By how much the largest size of this process grows for a batch of meshes, by the
    body."""
    mesh = SMPL(body)
    sizes = []
    for b in (1, batch, batch):
        mesh(tf.zeros((b, 24, 3)), tf.zeros((b, 10))).joints.numpy()
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print(
        f"memory, batch {batch}: {(sizes[-1] - sizes[0]) / batch:.0f} kB a body, of"
        f" which {len(body.v_template) * 12 / 1024:.0f} are the vertices"
    )


def smpl_rows(body) -> None:
    "Bodies a second at four batch sizes; ratios are what counts."
    memory_row(body)
    layer = SMPL(body, keypoints=keypoint_set("cocoplus19"))
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(body, Path(folder))
        same_as_peers(layer, peers)
        print(
            f"{'batch':>6} {'meshes/s':>9}"
            + "".join(f" {n + '/s':>13} {'ratio':>6}" for n in peers.names)
            + f" {'time/products':>14} {'keypoints/s':>12} {'ratio':>6}"
        )
        for batch in BATCHES:
            t = rounds(layer, peers, batch)
            them = "".join(
                f" {batch / t[n]:>13,.0f} {t[n] / t['mesh']:>6.1f}" for n in peers.names
            )
            print(
                f"{batch:>6} {batch / t['mesh']:>9,.0f}{them}"
                f" {t['mesh'] / t['products']:>14.2f} {batch / t['keypoints']:>12,.0f}"
                f" {t['mesh'] / t['keypoints']:>6.1f}"
            )
        if peers.names:
            peers.process.stdin.close()
            peers.process.wait()
