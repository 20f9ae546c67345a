"""The package as others build it: a source archive, and a wheel from that alone."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from export import by_hand

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "site")


def build(kind: str, source: Path, out: Path) -> Path:
    "What `python -m build` makes of a folder, with the tools that are installed."
    words = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}"]
    done = subprocess.run(
        [*words, "--outdir", str(out), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(out.glob("*.tar.gz" if kind == "sdist" else "*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "A wheel, built from the source archive in another folder."
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "tree", ignore=LEFT_OUT)
    archive = build("sdist", folder / "tree", folder / "sdist")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "unpacked", filter="data")
    source = next((folder / "unpacked").iterdir())
    return zipfile.ZipFile(build("wheel", source, folder / "wheel"))


def test_a_wheel_from_the_source_archive_carries_what_it_needs(wheel):
    names = set(wheel.namelist())
    data = "open_body.npz small_weights.h5 small_weights_studio.h5 toe_marks.json"
    needed = {f"hmr_nb/data/{name}" for name in data.split()}
    needed |= {
        f"hmr_nb/data/samples/{name}" for name in ("truth.npz", "street/card.json")
    }
    needed |= {f"hmr_nb/{name}" for name in by_hand()}
    modules = (ROOT / "hmr_nb").rglob("*.py")
    needed |= {str(p.relative_to(ROOT)) for p in modules}
    assert not needed - names
    assert not [n for n in names if "goldens" in n or n.startswith(("tests/", "nbs/"))]


def test_its_facts_say_what_it_is(wheel):
    facts = next(n for n in wheel.namelist() if n.endswith("METADATA"))
    text = wheel.read(facts).decode()
    for said in (
        "Requires-Python: >=3.10",
        "Classifier: Typing :: Typed",
        "Project-URL: Changelog",
        "Requires-Dist: ipython",
        "Requires-Dist: lazy-loader",
    ):
        assert said in text, said
