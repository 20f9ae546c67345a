"""`make test`: the export changes nothing, every notebook runs, every test passes; closes with one line of counts."""

import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def export_is_current() -> bool:
    "Export again and compare with what is there."
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        shutil.copytree(
            ROOT / "hmr_nb", before, ignore=shutil.ignore_patterns("__pycache__")
        )
        subprocess.run([BIN / "nbdev_export"], cwd=ROOT, check=True)
        names = {
            p.relative_to(base)
            for base in (before, ROOT / "hmr_nb")
            for p in base.rglob("*.py")
        }

        def same(n):
            return (
                (before / n).is_file()
                and (ROOT / "hmr_nb" / n).is_file()
                and filecmp.cmp(before / n, ROOT / "hmr_nb" / n, shallow=False)
            )

        changed = sorted(str(n) for n in names if not same(n))
    print(
        "export:"
        f" {'no change' if not changed else 'changed ' + ', '.join(changed) + ': commit what nbdev_export writes'}"
    )
    return not changed


def notebooks() -> tuple[int, int]:
    "Run every notebook; how many passed and failed."
    count = len(
        [
            p
            for p in (ROOT / "nbs").rglob("*.ipynb")
            if not p.name.startswith("_") and ".ipynb_checkpoints" not in p.parts
        ]
    )
    # two notebooks at a time share the cores
    env = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "MPLBACKEND": "agg",
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [BIN / "nbdev_test", "--n_workers", "2", "--timing"],
        cwd=ROOT,
        env=env,
        text=True,
        stderr=subprocess.PIPE,
    )
    sys.stderr.write(done.stderr)
    failed = (
        len(re.findall(r"^\t\S+\.ipynb$", done.stderr, re.M)) if done.returncode else 0
    )
    failed = failed or (count if done.returncode else 0)
    print(f"notebooks: {count - failed} passed, {failed} failed")
    return count - failed, failed


def pytest_counts() -> tuple[int, int, int]:
    "Run the tests; how many passed, failed and were skipped."
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests", "-q", "-rs", "--durations=8"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
    )
    print(done.stdout)

    def count(word):
        return sum(
            int(n)
            for n in re.findall(rf"(\d+) {word}", done.stdout.strip().splitlines()[-1])
        )

    failed = count("failed") + count("error")
    return count("passed"), failed or int(done.returncode not in (0,)), count("skipped")


if __name__ == "__main__":
    current = export_is_current()
    nb_passed, nb_failed = notebooks()
    passed, failed, skipped = pytest_counts()
    failed += nb_failed + (not current)
    print(
        f"{passed + nb_passed + current} passed, {failed} failed"
        + (f", {skipped} skipped" if skipped else "")
    )
    sys.exit(failed > 0)
