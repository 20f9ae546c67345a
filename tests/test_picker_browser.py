"""The picker in JupyterLab and Voila, in a real browser: clicks at projected vertices
mark exactly those, a drag marks nothing.

Needs Chromium and the `playwright` package; skips with a reason where one is
missing, fails there when CI=true.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

LAB_ARGS = [
    "--no-browser",
    "--ip=127.0.0.1",
    "--port=0",
    "--IdentityProvider.token=",
    "--ServerApp.password=",
    "--ServerApp.open_browser=False",
    "--LabApp.expose_app_in_browser=True",
    "--allow-root",
]
# the last three: Voila without internet; extensions of others
HARMLESS = (
    "t.on is not a function",
    "lumino",
    "GPU stall",
    "favicon",
    "Failed to load resource: the server responded with a status of 404",
    "ERR_NAME_NOT_RESOLVED",
    "ERR_INTERNET_DISCONNECTED",
    "The getter for the shared module",
)
CELL = (
    "from hmr_nb.body.open_body import open_body\nfrom hmr_nb.keypoints.picker import"
    " KeypointPicker\npicker = KeypointPicker(open_body(), path='marks.json')\npicker"
)
PINK = (204, 47, 123)
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def need(found, what):
    "Go on if it is there; else skip, or fail where the browser test must run."
    if found:
        return found
    reason = (
        f"{what} is not installed here: the picker is not tried in a browser (apt"
        " install chromium; pip install playwright voila)"
    )
    pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


def wait_for(check, what, seconds=60):
    "Poll until `check()` gives something true; say what was missing otherwise."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := check():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


def written(folder, pattern):
    "The json file of this pattern once it is there and whole; None before."
    for path in folder.glob(pattern):
        try:
            json.loads(path.read_text())
        except ValueError:
            return None
        return path
    return None


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    need(BROWSER, "chromium")
    need(importlib.util.find_spec("playwright"), "playwright")
    with serve_lab(tmp_path_factory.mktemp("lab")) as served:
        yield served


@contextmanager
def serve_lab(home):
    """A JupyterLab server of our own on a scratch folder with one notebook: its
    address, its folder, and where its kernels are known."""
    work, runtime, config = home / "work", home / "runtime", home / "config"
    for folder in (work, runtime, config):
        folder.mkdir()
    quiet = config / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    cell = {
        "cell_type": "code",
        "source": CELL,
        "metadata": {},
        "outputs": [],
        "execution_count": None,
        "id": "picker",
    }
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    (work / "picker.ipynb").write_text(
        json.dumps(
            {
                "cells": [cell],
                "metadata": {"kernelspec": kernel},
                "nbformat": 4,
                "nbformat_minor": 5,
            }
        )
    )
    env = {
        **os.environ,
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTER_CONFIG_DIR": str(config),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = (home / "lab.log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *LAB_ARGS],
        cwd=work,
        env=env,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        info = wait_for(
            lambda: written(runtime, "jpserver-*.json"),
            f"JupyterLab to start, see {home / 'lab.log'}",
        )
        yield json.loads(info.read_text())["url"], work, runtime
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        log.close()


@pytest.fixture(scope="module")
def chromium(lab):
    with headless() as browser:
        yield browser


@contextmanager
def headless():
    "A browser without a window."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=BROWSER,
            headless=True,
            args=["--no-sandbox", "--enable-unsafe-swiftshader"],
        )
        yield browser
        browser.close()


def open_page(browser, address, script=""):
    """A page of a browser, with a list of what its console called errors; a script can
    be run before all others."""
    # tall enough for all of the picker: a page that scrolls takes the canvas away from
    # where it was
    page = browser.new_page(viewport={"width": 1300, "height": 1150})
    page.add_init_script(script)
    page.errors = []
    page.on(
        "console", lambda m: page.errors.append(m.text) if m.type == "error" else None
    )
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    page.goto(address, timeout=120_000)
    return page


@pytest.fixture(scope="module")
def page(lab, chromium):
    "The notebook, open in Chromium."
    return open_page(chromium, f"{lab[0]}lab/tree/picker.ipynb")


class Kernel:
    "A second line to the notebook's kernel: ask it for the value of an expression."

    def __init__(self, runtime):
        from jupyter_client import BlockingKernelClient

        connection = wait_for(
            lambda: written(runtime, "**/kernel-*.json"), "the notebook's kernel"
        )
        self.client = BlockingKernelClient(connection_file=str(connection))
        self.client.load_connection_file()
        self.client.start_channels()
        wait_for(self.ready, "the kernel to answer")

    def ready(self):
        """Whether it answers; a heartbeat missed while it starts is no reason to give
        up."""
        try:
            self.client.wait_for_ready(timeout=10)
        except RuntimeError:
            return False
        return True

    def ask(self, expression):
        text = f"__import__('json').dumps({expression})"
        number = self.client.execute("", silent=True, user_expressions={"value": text})
        while (reply := self.client.get_shell_msg(timeout=60))["parent_header"].get(
            "msg_id"
        ) != number:
            pass
        value = (
            reply["content"]
            .get("user_expressions", {})
            .get("value", {"status": "error", "evalue": str(reply["content"])})
        )
        if value["status"] != "ok":
            raise LookupError(value["evalue"])
        return json.loads(
            value["data"]["text/plain"][1:-1].replace("\\'", "'").replace("\\\\", "\\")
        )

    def has(self, expression):
        try:
            return bool(self.ask(expression))
        except LookupError:
            return False


@pytest.fixture(scope="module")
def picker(lab, page):
    return run_notebook(lab, page)


def run_notebook(lab, page):
    "Run the notebook; the kernel, and where the canvas is once the body is drawn."
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.context?.sessionContext"
        ".session?.kernel?.connectionStatus === 'connected'",
        timeout=60_000,
    )
    kernel = Kernel(lab[2])

    return kernel, run_all(page, kernel)


def run_all(page, kernel):
    """Run the notebook until the kernel has a picker and the page a body; where the
    canvas is."""

    def run(
        # a Run All sent while the connection is still forming is lost: ask again until
        # the kernel knows the picker
    ):
        if not kernel.has("'picker' in globals()"):
            page.evaluate(
                "window.jupyterapp.commands.execute('notebook:run-all-cells')"
            )
        return kernel.has("'picker' in globals()")

    wait_for(run, "the cell to run")
    return drawn(page)


def drawn(page):
    "Where the canvas is, once the body is drawn on it."
    canvas = page.locator(".hmr-picker canvas").first
    canvas.wait_for(state="visible", timeout=60_000)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    # on the chest
    middle = (box["x"] + box["width"] / 2, box["y"] + 0.4 * box["height"])
    wait_for(lambda: colours(page, box, middle, 3).mean() < 240, "the body to be drawn")
    return box


def colours(page, box, spot, reach=6):
    "The pixels around a place on the page, (n, 3)."
    import cv2

    clip = {
        "x": spot[0] - reach,
        "y": spot[1] - reach,
        "width": 2 * reach,
        "height": 2 * reach,
    }
    image = cv2.imdecode(
        np.frombuffer(page.screenshot(clip=clip), np.uint8), cv2.IMREAD_COLOR
    )
    return image[..., ::-1].reshape(-1, 3).astype(int)


def is_pink(page, box, spot):
    return bool((np.abs(colours(page, box, spot) - PINK).max(1) < 40).any())


def on_page(kernel, box, points):
    """Where points of the scene are on the page, by the camera as the kernel knows it;
    and their distance to the camera."""
    eye, target = (
        np.array(x)
        for x in kernel.ask(
            "[list(picker.view.camera.position), list(picker.view.orbit.target)]"
        )
    )
    ahead = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(ahead, [0, 1, 0])
    right /= np.linalg.norm(right)
    away = points - eye
    depth = away @ ahead
    zoom = box["height"] / 2 / np.tan(np.radians(15)) / depth
    x = box["x"] + box["width"] / 2 + zoom * (away @ right)
    y = box["y"] + box["height"] / 2 - zoom * (away @ np.cross(right, ahead))
    return np.stack([x, y], axis=1), eye


def clear_spots(kernel, box, V, F, count, seed):
    """Vertices that the camera sees with room around them, and where they are on the
    page."""
    import trimesh

    V = V - (V.max(0) + V.min(0)) / 2  # the body stands around the scene's origin
    px, eye = on_page(kernel, box, V)
    rays = V - eye
    hit = trimesh.Trimesh(V, F, process=False).ray.intersects_first(
        np.repeat(eye[None], len(V), 0), rays
    )
    seen = np.array([f >= 0 and v in F[f] for v, f in enumerate(hit)])
    across = np.cross(V[F[:, 1]] - V[F[:, 0]], V[F[:, 2]] - V[F[:, 0]])
    facing = np.zeros(len(V))
    np.add.at(
        facing,
        F.ravel(),
        np.repeat(
            (across * (eye - V[F[:, 0]])).sum(1)
            / np.linalg.norm(across, axis=1)
            / np.linalg.norm(eye - V[F[:, 0]], axis=1),
            3,
        ),
    )
    edges = np.concatenate([F[:, [0, 1]], F[:, [1, 2]], F[:, [2, 0]]])
    room = np.full(len(V), np.inf)
    np.minimum.at(
        room, edges[:, 0], np.linalg.norm(px[edges[:, 0]] - px[edges[:, 1]], axis=1)
    )
    degree = np.bincount(F.ravel(), minlength=len(V))
    good = np.flatnonzero(seen & (facing / degree > 0.75) & (room > 4))
    chosen = np.random.default_rng(seed).choice(good, count, replace=False)
    return [(int(v), np.round(px[v])) for v in chosen]  # a mouse is on whole pixels


def press(page, button):
    "Click one of the picker's own buttons."
    page.locator(".hmr-picker button.jupyter-button", has_text=button).click()


def marked(kernel):
    return sorted(
        kernel.ask(
            "sorted(picker.state.marks.get(picker.state.keypoint,"
            " {}).get((picker.state.pose, picker.state.shape), []))"
        )
    )


@pytest.fixture(scope="module")
def body():
    from hmr_nb.body.open_body import open_body

    body = open_body()
    return np.asarray(body.v_template, float), np.asarray(body.faces)


def test_clicks_mark_exactly_the_vertices_under_the_mouse(page, picker, body):
    kernel, box = picker
    wanted = []
    for vertex, spot in clear_spots(kernel, box, *body, count=5, seed=0):
        page.mouse.click(*spot)
        wanted = sorted([*wanted, vertex])
        wait_for(
            lambda wanted=wanted: len(marked(kernel)) >= len(wanted),
            f"a click on vertex {vertex} to arrive",
        )
        assert marked(kernel) == wanted
        wait_for(
            lambda spot=spot: is_pink(page, box, spot),
            "the dot on the clicked vertex to be drawn",
        )
    # a browser keeps quiet about a second click on the very same spot until the first
    # has been answered
    page.mouse.click(spot[0] + 1, spot[1])
    wait_for(
        lambda: marked(kernel) == sorted(set(wanted) - {vertex}),
        "a second click to take the mark away",
    )
    press(page, "undo")
    wait_for(lambda: marked(kernel) == wanted, "undo to bring it back")


def test_a_drag_turns_the_body_and_marks_nothing(page, picker, body):
    kernel, box = picker
    before, camera = marked(kernel), kernel.ask("list(picker.view.camera.position)")
    # on the axis of the turn: the button goes up on the body too
    belly = np.array([box["x"] + box["width"] / 2, box["y"] + 0.4 * box["height"]])
    page.mouse.move(*(belly - [20, 0]))
    page.mouse.down()
    page.mouse.move(*belly, steps=4)
    page.mouse.move(*(belly + [20, 5]), steps=4)
    page.mouse.up()
    wait_for(
        lambda: kernel.ask("list(picker.view.camera.position)") != camera,
        "the camera to turn",
    )
    ((vertex, spot),) = clear_spots(kernel, box, *body, count=1, seed=2)
    # a message that comes after the drag's own: once it is here, the drag's click has
    # been dealt with
    page.mouse.click(*spot)
    wait_for(lambda: len(marked(kernel)) != len(before), "the click after the drag")
    assert marked(kernel) == sorted(set(before) ^ {vertex})


def test_brush_erase_undo_redo(page, picker, body):
    kernel, box = picker
    before = marked(kernel)
    ((vertex, spot),) = clear_spots(kernel, box, *body, count=1, seed=3)
    page.keyboard.down("Shift")
    page.mouse.click(*spot)
    page.keyboard.up("Shift")
    wait_for(lambda: set(before) < set(marked(kernel)), "the brush")
    brushed = marked(kernel)
    assert vertex in brushed
    page.keyboard.down("Control")
    page.mouse.click(spot[0] + 1, spot[1])
    page.keyboard.up("Control")
    wait_for(lambda: vertex not in marked(kernel), "the eraser")
    erased = marked(kernel)
    for button, state in (
        ("undo", brushed),
        ("undo", before),
        ("redo", brushed),
        ("redo", erased),
    ):
        press(page, button)
        wait_for(lambda state=state: marked(kernel) == state, button)


def test_mirror_fit_and_save(page, picker, lab):
    kernel, _box = picker
    press(page, "mirror image")
    wait_for(
        lambda: kernel.ask("sorted(picker.state.mirrored)") == ["toe_l"],
        "the mirror switch",
    )
    press(page, "fit")
    wait_for(
        lambda: kernel.ask("sorted(picker.fits)") == ["toe_l", "toe_r"], "both rows"
    )
    page.get_by_text("residual").first.wait_for(timeout=60_000)
    assert abs(kernel.ask("float(picker.fits['toe_l'].weights.sum())") - 1) < 1e-12
    press(page, "save")
    wait_for(lambda: (lab[1] / "marks.json").exists(), "the saved file")
    saved = json.loads((lab[1] / "marks.json").read_text())
    assert saved["keypoints"]["toe_l"]["marks"][0]["vertices"] == marked(kernel)


def test_poses_by_still_and_by_key(page, picker):
    kernel, _box = picker
    before = marked(kernel)
    wait_for(
        lambda: kernel.ask("len(picker.strip.pictures)") == 6, "the stills of all poses"
    )
    card = page.locator(".hmr-strip button", has_text="squat")
    assert card.locator("i").count() == 2  # the keypoint and its mirror image
    card.click()
    wait_for(
        lambda: kernel.ask("picker.state.pose") == "squat", "the pose of the still"
    )
    assert not marked(kernel)
    for key, pose in (("n", "tiptoe"), ("p", "squat")):
        page.keyboard.press(key)
        wait_for(
            lambda pose=pose: kernel.ask("picker.state.pose") == pose, f"key {key}"
        )
    page.locator(".hmr-strip button", has_text="rest").click()
    wait_for(lambda: marked(kernel) == before, "the marks of the first pose")
    page.keyboard.press("Control+z")
    wait_for(lambda: kernel.ask("len(picker.state.undone)") == 1, "undo by key")
    page.keyboard.press("Control+Shift+z")
    wait_for(lambda: kernel.ask("len(picker.state.undone)") == 0, "redo by key")
    page.keyboard.press("b")  # JupyterLab's own key for a new cell
    wait_for(
        lambda: kernel.ask("picker.view.skin.side") == "DoubleSide", "back faces by key"
    )
    page.keyboard.press("b")
    assert (
        page.evaluate("window.jupyterapp.shell.currentWidget.content.widgets.length")
        == 1
    )


def test_a_lasso_marks_what_it_goes_around(page, picker, body):
    kernel, box = picker
    page.locator(".hmr-strip button", has_text="twist").click()
    wait_for(lambda: kernel.ask("picker.state.pose") == "twist", "a pose without marks")
    page.keyboard.press("l")
    sheet = page.locator(".hmr-picker svg polygon")
    sheet.wait_for(state="attached")
    line = [(0.3, 0.02), (0.7, 0.02), (0.7, 0.25), (0.3, 0.25)]
    spots = [
        (box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in line
    ]
    page.mouse.move(*spots[0])
    page.mouse.down()
    for spot in [*spots[1:], spots[0]]:
        page.mouse.move(*spot, steps=3)
    page.mouse.up()
    wait_for(lambda: marked(kernel), "the lasso's marks")
    V = np.array(kernel.ask("picker.view.V.tolist()"))
    px, _eye = on_page(
        kernel, box, V - np.array(kernel.ask("picker.view.centre.tolist()"))
    )
    x, y = ((px - [box["x"], box["y"]]) / [box["width"], box["height"]]).T
    inside = np.flatnonzero((x > 0.3) & (x < 0.7) & (y > 0.02) & (y < 0.25))
    seen = kernel.ask(
        "__import__('hmr_nb.keypoints.marks').keypoints.marks.seen_from(picker.view.V,"
        " picker.view.F, picker.view.eye).tolist()"
    )
    wanted = {int(v) for v in inside if seen[v]}
    # a mouse is on whole pixels: a vertex on the line may fall on either side
    assert len(wanted) > 20 and len(wanted ^ set(marked(kernel))) <= 0.01 * len(wanted)
    wait_for(lambda: sheet.count() == 0, "the sheet to go away")
    press(page, "clear")
    wait_for(lambda: not marked(kernel), "clear")


def test_a_dead_kernel_loses_nothing(page, picker, body):
    kernel, box = picker
    page.locator(".hmr-strip button", has_text="rest").click()
    wait_for(lambda: kernel.ask("picker.state.pose") == "rest", "the first pose")
    saved = marked(kernel)
    ((vertex, spot),) = clear_spots(kernel, box, *body, count=1, seed=5)
    page.mouse.click(*spot)
    wait_for(
        lambda: marked(kernel) == sorted(set(saved) ^ {vertex}),
        "a click that is not saved",
    )
    state = kernel.ask("repr(picker.state)")
    page.evaluate(
        "window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()"
    )
    wait_for(lambda: not kernel.has("'picker' in globals()"), "the kernel to forget")
    run_all(page, kernel)
    assert kernel.ask("repr(picker.state)") == state and marked(kernel) == sorted(
        set(saved) ^ {vertex}
    )
    page.get_by_text("unsaved marks came back").first.wait_for()
    press(page, "load")
    wait_for(lambda: marked(kernel) == saved, "what was saved by hand")


def test_nothing_went_wrong_in_the_console(page, picker, tmp_path_factory):
    page.screenshot(path=tmp_path_factory.mktemp("shots") / "picker.png")
    unknown = [e for e in page.errors if not any(h in e for h in HARMLESS)]
    assert not unknown


def test_the_same_in_voila(chromium, body, tmp_path):
    need(importlib.util.find_spec("voila"), "voila")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    env = {
        **os.environ,
        "TMPDIR": str(runtime),
        "JUPYTER_CONFIG_DIR": str(tmp_path),
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    command = [
        Path(sys.executable).parent / "hmr_nb",
        "pick",
        "--no-browser",
        f"--port={port}",
        "--marks",
        str(tmp_path / "marks.json"),
    ]
    with (tmp_path / "voila.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(
            lambda: str(port) in (tmp_path / "voila.log").read_text(),
            f"Voila to start, see {tmp_path / 'voila.log'}",
        )
        page = open_page(chromium, f"http://127.0.0.1:{port}/")
        box, kernel = drawn(page), Kernel(runtime)
        ((vertex, spot),) = clear_spots(kernel, box, *body, count=1, seed=7)
        page.mouse.click(*spot)
        wait_for(lambda: marked(kernel) == [vertex], "a click in Voila")
        page.keyboard.press("Control+s")
        wait_for((tmp_path / "marks.json").exists, "the saved file")
        assert json.loads((tmp_path / "marks.json").read_text())["keypoints"]["toe_l"][
            "marks"
        ][0]["vertices"] == [vertex]
        assert not [e for e in page.errors if not any(h in e for h in HARMLESS)]
    finally:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
