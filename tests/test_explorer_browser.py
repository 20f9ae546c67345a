"""The body explorer in JupyterLab, in a real browser: a click takes hold of a joint, a
slider moves the mesh.

Needs Chromium and the `playwright` package; skips with a reason where one is
missing, fails there when CI=true (see test_picker_browser).
"""

import json
import os
from contextlib import contextmanager

import pytest
from test_picker_browser import (
    BROWSER,
    HARMLESS,
    Kernel,
    colours,
    headless,
    need,
    open_page,
    serve_lab,
    wait_for,
)

CELL = (
    "from hmr_nb.body.explorer import BodyExplorer\nexplorer = BodyExplorer()\nexplorer"
)
READY = """window.jupyterapp?.shell.currentWidget?.context?.sessionContext
           .session?.kernel?.connectionStatus === 'connected'"""


@contextmanager
def explorer_page(home, script=""):
    """A notebook with an explorer, open and run: the page, a line to the kernel, and
    where the canvas is."""
    need(BROWSER, "chromium")
    with serve_lab(home) as (url, work, runtime), headless() as chromium:
        cell = {
            "cell_type": "code",
            "source": CELL,
            "metadata": {},
            "outputs": [],
            "execution_count": None,
            "id": "explorer",
        }
        kernel = {"name": "python3", "display_name": "python3", "language": "python"}
        (work / "explorer.ipynb").write_text(
            json.dumps(
                {
                    "cells": [cell],
                    "metadata": {"kernelspec": kernel},
                    "nbformat": 4,
                    "nbformat_minor": 5,
                }
            )
        )
        page = open_page(chromium, f"{url}lab/tree/explorer.ipynb", script)
        page.wait_for_function(READY, timeout=60_000)
        kernel = Kernel(runtime)

        def run(
            # a Run All sent while the connection is still forming is lost: ask again
            # until the kernel knows the explorer
        ):
            if not kernel.has("'explorer' in globals()"):
                page.evaluate(
                    "window.jupyterapp.commands.execute('notebook:run-all-cells')"
                )
            return kernel.has("'explorer' in globals()")

        wait_for(run, "the cell to run", 120)
        canvas = page.locator("canvas").first
        canvas.wait_for(state="visible", timeout=60_000)
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        middle = (box["x"] + box["width"] / 2, box["y"] + 0.4 * box["height"])
        wait_for(
            lambda: colours(page, box, middle, 3).mean() < 240, "the body to be drawn"
        )
        yield page, kernel, box


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    (
        pytest.importorskip(
            "playwright",
            reason="playwright is not installed here: pip install playwright",
        )
        if os.environ.get("CI") != "true"
        else __import__("playwright")
    )
    with explorer_page(tmp_path_factory.mktemp("explorer")) as found:
        yield found


def place(kernel, box, joint):
    "The middle, on the page, of the skin that a joint moves most."
    skin = (
        "explorer.vertices()[explorer.holds =="
        f" explorer.body.joint_names.index({joint!r})].mean(0)[None]"
    )
    share = kernel.ask(f"explorer.view.on_screen({skin})[0].tolist()")
    return box["x"] + share[0] * box["width"], box["y"] + share[1] * box["height"]


@pytest.mark.parametrize("joint", ["left_knee", "right_elbow", "head"])
def test_a_click_takes_hold_of_the_joint_under_it(explorer, joint):
    page, kernel, box = explorer
    page.mouse.click(*place(kernel, box, joint))
    wait_for(
        lambda: kernel.ask("explorer.joint") == joint,
        f"the explorer to hold the {joint}, it has {kernel.ask('explorer.joint')}",
    )
    assert kernel.ask("explorer.controls['joint'].value") == joint


VALUE = "explorer.controls['angle z'].value"


def test_a_slider_moves_the_mesh_on_the_page(explorer):
    page, kernel, box = explorer
    kernel.ask("explorer.choose('left_shoulder')")
    hand = place(kernel, box, "left_wrist")
    assert colours(page, box, hand, 3).mean() < 240, "the arm is stretched out"
    handle = (
        page.locator(".widget-slider", has_text="z, °")
        .locator(".noUi-handle")
        .first.bounding_box()
    )
    at = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(*at)
    page.mouse.down()
    page.mouse.move(at[0] - 25, at[1], steps=5)
    page.mouse.up()
    wait_for(lambda: kernel.ask(VALUE) <= -15, "the slider to arrive in the kernel")
    # asked at once: the slider may still be on its way
    off = f"abs(float(explorer.pose[16, 2]) - __import__('math').radians({VALUE}))"
    assert kernel.ask(off) < 1e-5
    wait_for(
        lambda: colours(page, box, hand, 3).mean() > 250,
        "the arm to leave the place where it was",
    )
    wait_for(
        lambda: colours(page, box, place(kernel, box, "left_wrist"), 3).mean() < 240,
        "it to be where the body says",
    )


def test_nothing_went_wrong_in_the_console(explorer):
    page, _, _ = explorer
    assert not [e for e in page.errors if not any(h in e for h in HARMLESS)]
