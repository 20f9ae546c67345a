"""Training in processes that may be killed. For runs that are not compiled one process
imports everything once and forks a child for each, so that a run costs its training and
not its imports: TensorFlow begins its threads with its first operation, which is in the
child, and what a child had in memory is gone when it is killed. XLA does not survive a
fork, so a compiled run gets a fresh process.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_NUM_INTRAOP_THREADS": "1",
}


def train(job: dict) -> None:
    "One run, in a process of its own."
    os.environ.update(job.get("environment", {}))
    import keras
    import tensorflow as tf

    from hmr_nb.model import encoder
    from hmr_nb.training.run import fit

    if job.get("eager"):
        tf.config.run_functions_eagerly(True)
    if devices := job.get("devices"):
        cpu = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration()] * devices
        tf.config.set_logical_device_configuration(cpu, parts)
    if job.get("tiny"):  # the same layers, narrower
        whole = encoder._small_encoder
        encoder._small_encoder = lambda size: whole(
            size, side=32, widths=(8, 8, 8, 8), channels=8
        )

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.steps_done) == job.get("kill"):
                os.kill(os.getpid(), signal.SIGKILL)

    fit(
        job["experiment"],
        job["data"],
        job["out"],
        progress=False,
        callbacks=[Kill()] if "kill" in job else [],
    )


def child(job: dict) -> None:
    "Train, say what went wrong, and end."
    code = 1
    with open(job["said"], "w", encoding="utf-8") as said:
        os.dup2(said.fileno(), 2)
        os.dup2(said.fileno(), 1)
        try:
            train(job)
            code = 0
        except BaseException:
            traceback.print_exc(file=said)
        said.flush()
        os._exit(code)


def serve() -> None:
    "A line of json is a run; the answer is its exit code, minus the signal."
    import hmr_nb.training.run  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            child(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class Jobs:
    "Runs in processes of their own."

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        self.server = self.begin(stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def begin(self, *words: str, **options) -> subprocess.Popen:
        command = [sys.executable, __file__, *words]
        env = {**os.environ, **ENVIRONMENT}
        return subprocess.Popen(command, env=env, text=True, **options)

    def run(self, *jobs: dict) -> list[tuple[int, str]]:
        """Run jobs side by side, one that is not compiled at a time: exit codes and
        what each said."""
        fresh, codes, said = [], [], []
        for job in jobs:
            self.count += 1
            recipe = self.folder / f"{self.count}.json"
            recipe.write_text(job["experiment"].to_json(), encoding="utf-8")
            said.append(recipe.with_suffix(".txt"))
            job = {**job, "experiment": str(recipe), "said": str(said[-1])}
            text = json.dumps({**job, "data": str(job["data"]), "out": str(job["out"])})
            if job.get("eager"):
                print(text, file=self.server.stdin, flush=True)
                codes.append(int(self.server.stdout.readline()))
            else:
                fresh.append(self.begin(text))
        codes += [process.wait(timeout=600) for process in fresh]
        return [(c, f.read_text(encoding="utf-8")) for c, f in zip(codes, said)]

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.server.stdin.close()
        self.server.wait(timeout=60)


if __name__ == "__main__":
    child(json.loads(sys.argv[1])) if len(sys.argv) > 1 else serve()
