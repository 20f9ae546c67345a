"""What the README shows must run."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", README, re.M | re.S)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    line.split("#")[0].strip()
    for language, code in BLOCKS
    if language == "sh"
    for line in code.splitlines()
    if line.startswith("hmr_nb ")
]


def test_readme_has_blocks():
    assert PYTHON and COMMANDS


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_block(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line[:40])
def test_command_is_one_that_exists(line):
    "Long jobs are not run here, but each command and each option must exist."
    words = line.split()
    # the two commands that have commands
    command = words[1:3] if words[1] in ("body", "convert") else words[1:2]
    command = [word for word in command if not word.startswith("-")]
    helps = subprocess.run(
        [Path(sys.executable).parent / words[0], *command, "--help"],
        capture_output=True,
        text=True,
    )
    assert helps.returncode == 0, helps.stderr
    for option in [w.split("=")[0] for w in words if w.startswith("--")]:
        assert option in helps.stdout, (
            f"{option} is not an option of hmr_nb {' '.join(command)}"
        )


def test_make_targets_named_in_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make (\w+)`|^make (\w+)", README, re.M)):
        name = target[0] or target[1]
        assert re.search(rf"^{name}:", makefile, re.M), name


def test_figures_of_the_small_weights_are_those_measured():
    "The README's table against the table that 7_training/09_small_weights made."
    measured = pd.read_csv(ROOT / "data" / "small_weights_figures.csv").set_index(
        ["weights", "domain"]
    )
    for domain, name in (
        ("studio", "`studio`"),
        ("street", "`street`"),
        ("sports", "`sports`"),
        ("all", "all three"),
    ):
        cells = next(
            line for line in README.splitlines() if line.startswith(f"| {name} |")
        ).split("|")[2:-1]
        told = [float(re.search(r"[\d.]+", cell).group()) for cell in cells]
        wanted = [
            measured.loc[(weights, domain), metric]
            for metric in ("mpjpe_mm", "pa_mpjpe_mm")
            for weights in ("mean pose", "all domains", "studio only")
        ]
        assert told == pytest.approx(wanted, abs=0.051), domain
