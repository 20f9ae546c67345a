"""The picker without a browser: a browser's messages are played to it, and its file goes to a regressor."""

import json
import subprocess
import sys

import numpy as np
import pytest

from hmr_nb.body_data import shipped
from hmr_nb.joint_regressor import fit_marks, load_marks
from hmr_nb.open_body import open_body
from hmr_nb.picker import KeypointPicker
from hmr_nb.picker_state import PickerState, marked, to_marks
from hmr_nb.scene import NOWHERE

KEYS = {"": (0, 0, 0, 0), "shift": (1, 0, 0, 0), "ctrl": (0, 1, 0, 0), "meta": (0, 0, 0, 1)}


@pytest.fixture(scope="module")
def body():
    return open_body()


@pytest.fixture
def picker(body, tmp_path):
    return KeypointPicker(body, poses={"rest": np.zeros((24, 3)), "also rest": np.zeros((24, 3))}, path=tmp_path / "marks.json")


def click(picker, vertex, key="", hit=True):
    "The message of a click next to a vertex."
    view = picker.view
    face = int(np.flatnonzero((view.F == vertex).any(1))[0])
    point = (view.V[view.F[face]] - view.centre).T @ np.where(view.F[face] == vertex, 0.8, 0.1) if hit else np.zeros(3)
    view.clicks.click.set_state({"faceIndex": float(face) if hit else None, "modifiers": [bool(k) for k in KEYS[key]], "point": point.tolist(),
                                 "object": f"IPY_MODEL_{view.mesh.model_id}" if hit else None})


def press(picker, point=(0.0, 0.0, 0.1)):
    picker.view.clicks.press.set_state({"point": list(point)})


def test_clicks_toggle_brush_and_erase(picker):
    for vertex in (10, 20, 10):
        press(picker)
        click(picker, vertex)
    assert marked(picker.state) == {20}
    click(picker, 500, "shift")
    brushed = marked(picker.state)
    assert {20, 500} <= brushed and len(brushed) > 3
    click(picker, 500, "ctrl")
    assert marked(picker.state) == {20}
    click(picker, 20, "meta")
    assert marked(picker.state) == frozenset()


def test_the_same_click_twice_is_two_clicks(picker):
    for expected in ({10}, set(), {10}):
        click(picker, 10)
        assert marked(picker.state) == expected
        assert tuple(picker.view.clicks.click.point) == NOWHERE


def test_drags_and_misses_mark_nothing(picker):
    click(picker, 10, hit=False)
    press(picker)
    _x, y, z = picker.view.camera.position
    picker.view.camera.set_state({"position": [z * np.sin(0.1), y, z * np.cos(0.1)]})
    click(picker, 10)
    press(picker)
    picker.view.orbit.set_state({"target": [0.3, 0, 0]})
    click(picker, 10)
    assert picker.state.marks == {}
    press(picker)
    click(picker, 10)
    assert marked(picker.state) == {10}


def test_buttons_poses_and_names(picker):
    click(picker, 10)
    picker.controls["pose"].value = "also rest"
    click(picker, 11)
    picker.controls["name"].value = "heel_l"
    click(picker, 12)
    assert picker.state.marks == {"toe_l": {"rest": {10}, "also rest": {11}}, "heel_l": {"also rest": {12}}}
    for _ in range(2):
        picker.controls["undo"].click()
    assert picker.state.marks == {"toe_l": {"rest": {10}}} and picker.controls["name"].value == "toe_l"
    for _ in range(2):
        picker.controls["redo"].click()
    assert picker.controls["name"].value == "heel_l" and picker.controls["redo"].disabled
    picker.controls["clear"].click()
    assert marked(picker.state) == frozenset() and picker.controls["clear"].disabled
    picker.controls["name"].value = " "
    assert "expected a name" in picker.controls["status"].value and picker.controls["name"].value == "heel_l"


def test_dots_show_the_state(picker, body):
    click(picker, 10)
    picker.controls["mirror"].value = True
    dots = picker.view.dots
    for name, vertex in (("marked", 10), ("mirrored", int(body.mirror[10]))):
        np.testing.assert_allclose(dots[name].position.array[0] + picker.view.centre, body.v_template[vertex], atol=1e-5)
    picker.controls["fit"].click()
    assert sorted(picker.fits) == ["toe_l", "toe_r"] and dots["keypoint"].object.visible
    click(picker, 11)
    assert not picker.fits and not dots["keypoint"].object.visible  # new marks make an old fit stale
    picker.controls["undo"].click(), picker.controls["undo"].click(), picker.controls["undo"].click()
    assert not any(d.object.visible for d in dots.values())


def test_a_session_goes_on_where_it_was_saved(picker, body):
    click(picker, 10)
    click(picker, 11)
    picker.controls["undo"].click()
    picker.controls["save"].click()
    again = KeypointPicker(body, path=picker.path)
    assert again.state == picker.state and "also rest" in again.poses
    again.controls["redo"].click()
    assert marked(again.state) == {10, 11}


def test_fitting_nothing_says_so(picker):
    assert picker.fit() == {} and "click the vertices" in picker.controls["status"].value


def test_shipped_toe_marks_fit_the_shipped_body(body):
    marks = load_marks(shipped("toe_marks.json"))
    V = np.asarray(body.v_template, float)
    for entry in marks["keypoints"].values():
        for mark in entry["marks"]:
            assert np.ptp(V[mark["vertices"]], axis=0).max() < 0.04  # all on the tip of one toe
    rest = {name: V for name in marks["poses"]}
    fits = fit_marks(marks, body, rest)
    left, right = (fits[n].weights @ V for n in ("toe_l", "toe_r"))
    np.testing.assert_allclose(right, left * [-1, 1, 1], atol=1e-5)
    assert left[0] > 0.05 and left[1] < V[:, 1].min() + 0.06 and left[2] > V[:, 2].max() - 0.03


def test_marks_of_another_mesh_are_refused(body, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**to_marks(PickerState(12)), "body": "other", "topology": "0" * 16}))
    with pytest.raises(ValueError, match="with other faces"):
        KeypointPicker(body, path=path)


def test_the_picker_opens_without_keras():
    code = "import sys; from hmr_nb.picker import KeypointPicker; from hmr_nb.open_body import open_body; " \
           "KeypointPicker(open_body(), path='/nonexistent/marks.json'); assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
