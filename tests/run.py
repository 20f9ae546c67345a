"""`make test`: lint, types and rules hold, every notebook runs, every test passes.

Closes with one line of counts. `run.py check` is the quick part of it,
`run.py notebooks` runs every notebook from the top and stores its outputs.
"""

import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from export import ROOT, export

BIN = Path(sys.executable).parent
CORES = max(2, min(os.cpu_count() or 2, 4))
# several notebooks at a time share the cores
ALONE = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OPENBLAS_NUM_THREADS": "1"}


def pages() -> list[Path]:
    "Every notebook of the book."
    found = sorted((ROOT / "nbs").rglob("*.ipynb"))
    return [
        p
        for p in found
        if not p.name.startswith("_") and ".ipynb_checkpoints" not in p.parts
    ]


def export_is_current() -> tuple[bool, str]:
    "Export again and compare with what is there."
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "hmr_nb", before, ignore=ignored)
        export()
        both = (before, ROOT / "hmr_nb")
        names = {p.relative_to(base) for base in both for p in base.rglob("*.py")}
        changed = []
        for name in sorted(names):
            old, new = (base / name for base in both)
            if not (old.is_file() and new.is_file() and filecmp.cmp(old, new, False)):
                changed.append(str(name))
    return (
        not changed,
        f"changed {', '.join(changed)}: commit what `make export` writes",
    )


def passes(*words: str | Path) -> tuple[bool, str]:
    "Whether a command ends well, and what it printed."
    done = subprocess.run(
        words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.returncode == 0, done.stdout


def check() -> tuple[int, int]:
    "Export, lint, format, types, rules of the notebooks: how many hold, how many not."
    start = time.monotonic()
    results = {"export": export_is_current()}
    checks = {
        "lint": (BIN / "ruff", "check", "."),
        "format": (BIN / "ruff", "format", "--check", "."),
        "types": (BIN / "pyright", "--pythonpath", sys.executable),
        "rules": (sys.executable, "-m", "pytest", "-q", "tests/test_notebooks.py"),
    }
    with ThreadPoolExecutor(2) as pool:
        jobs = {name: pool.submit(passes, *words) for name, words in checks.items()}
        results |= {name: job.result() for name, job in jobs.items()}
    for name, (good, said) in results.items():
        print(f"{name}: {'good' if good else said}")
    print(f"checked in {time.monotonic() - start:.0f} s")
    bad = sum(not good for good, _ in results.values())
    return len(results) - bad, bad


def run_notebooks() -> tuple[int, int]:
    "Run every notebook; how many passed and failed."
    env = {**ALONE, "MPLBACKEND": "agg"}  # nobody looks at the pictures here
    words = [BIN / "nbdev_test", "--n_workers", str(CORES), "--timing"]
    needed = "from hmr_nb.inference.landmarks import fetch_networks as f; f()"
    if not passes(sys.executable, "-c", needed)[0]:
        print("01_landmarks and 03_infer left out: the networks could not be fetched")
        words += ["--skip_file_re", r"^[_.]|^01_landmarks|^03_infer"]
    done = subprocess.run(words, cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE)
    sys.stderr.write(done.stderr)
    failed = (
        len(re.findall(r"^\t\S+\.ipynb$", done.stderr, re.M)) if done.returncode else 0
    )
    failed = failed or (len(pages()) if done.returncode else 0)
    print(f"notebooks: {len(pages()) - failed} passed, {failed} failed")
    return len(pages()) - failed, failed


def store_outputs(page: Path) -> tuple[bool, str]:
    "Run a notebook from the top and keep what it shows."
    words = [
        BIN / "jupyter",
        "nbconvert",
        "--to",
        "notebook",
        "--execute",
        "--inplace",
        page.name,
    ]
    options = {"timeout": 1800, "store_widget_state": False}
    options["extra_arguments"] = "['--IPKernelApp.capture_fd_output=False']"
    words += [
        f"--ExecutePreprocessor.{name}={value}" for name, value in options.items()
    ]
    done = subprocess.run(
        words, cwd=page.parent, env=ALONE, text=True, capture_output=True
    )
    what = done.stderr[-3000:] if done.returncode else "stored"
    print(f"{page.relative_to(ROOT)}: {what}")
    return done.returncode == 0, done.stderr


def store_all_outputs(name: str = "") -> int:
    "Run every notebook, or those of a name, and store what they show; how many failed."
    wanted = [p for p in pages() if not name or p.match(f"{name}.ipynb")]
    if not wanted:
        print(f"{name}: no such page in nbs/, such as 06_smpl or 2_body/06_smpl")
        return 1
    with ThreadPoolExecutor(CORES) as pool:
        good = [ok for ok, _ in pool.map(store_outputs, wanted)]
    subprocess.run([BIN / "nbdev_clean"], cwd=ROOT, check=True)
    return len(good) - sum(good)


def run_tests() -> tuple[int, int, int]:
    "Run the tests but the rules, in parallel: how many passed, failed, were skipped."
    words = [sys.executable, "-m", "pytest", "tests"]
    words += ["--ignore=tests/test_notebooks.py", "-q", "-rs", "--durations=12"]
    words += ["-n", str(CORES), "--dist", "loadfile", "--no-loadscope-reorder"]
    done = subprocess.run(words, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    print(done.stdout)
    last = done.stdout.strip().splitlines()[-1]

    def count(word):
        return sum(int(n) for n in re.findall(rf"(\d+) {word}", last))

    failed = count("failed") + count("error")
    return count("passed"), failed or int(done.returncode != 0), count("skipped")


def main(what: str = "all", name: str = "") -> int:
    "All of it, or the named part: how much failed."
    if what == "notebooks":
        return store_all_outputs(name)
    passed, failed = check()
    skipped = 0
    if what == "all":
        for run in (run_notebooks, run_tests):
            good, bad, *left_out = run()
            passed, failed, skipped = (
                passed + good,
                failed + bad,
                skipped + sum(left_out),
            )
    print(
        f"{passed} passed, {failed} failed"
        + (f", {skipped} skipped" if skipped else "")
    )
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
