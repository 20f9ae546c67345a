"""The picker without a browser: a browser's messages are played to it, and its file
goes to a regressor."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from hmr_nb.basics.files import shipped
from hmr_nb.basics.scene import _NOWHERE
from hmr_nb.body.body_files import save_body
from hmr_nb.body.open_body import open_body
from hmr_nb.body.regressor_files import load_rows
from hmr_nb.keypoints.joint_regressor import fit_marks, load_marks
from hmr_nb.keypoints.marks import (
    PickerState,
    marked,
    seen_from,
    to_marks,
    triangles_of,
    vertices_of,
)
from hmr_nb.keypoints.picker import _KEYS, KeypointPicker, _autosave_of, _still_spots
from hmr_nb.keypoints.regressor_study import suggest_poses

HELD = {
    "": (0, 0, 0, 0),
    "shift": (1, 0, 0, 0),
    "ctrl": (0, 1, 0, 0),
    "meta": (0, 0, 0, 1),
}


@pytest.fixture(scope="module")
def body():
    return open_body()


@pytest.fixture
def picker(body, tmp_path):
    return KeypointPicker(
        body,
        poses={"rest": np.zeros((24, 3)), "also rest": np.zeros((24, 3))},
        path=tmp_path / "marks.json",
    )


def click(picker, vertex, key="", hit=True):
    "The message of a click next to a vertex."
    view = picker.view
    face = int(np.flatnonzero((vertex == view.F).any(1))[0])
    point = (
        (view.V[view.F[face]] - view.centre).T
        @ np.where(view.F[face] == vertex, 0.8, 0.1)
        if hit
        else np.zeros(3)
    )
    view.clicks.click.set_state(
        {
            "faceIndex": float(face) if hit else None,
            "modifiers": [bool(k) for k in HELD[key]],
            "point": point.tolist(),
            "object": f"IPY_MODEL_{view.mesh.model_id}" if hit else None,
        }
    )


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
        assert tuple(picker.view.clicks.click.point) == _NOWHERE


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
    assert picker.state.marks == {
        "toe_l": {("rest", "mean"): {10}, ("also rest", "mean"): {11}},
        "heel_l": {("also rest", "mean"): {12}},
    }
    for _ in range(2):
        picker.controls["undo"].click()
    assert (
        picker.state.marks == {"toe_l": {("rest", "mean"): {10}}}
        and picker.controls["name"].value == "toe_l"
    )
    for _ in range(2):
        picker.controls["redo"].click()
    assert (
        picker.controls["name"].value == "heel_l" and picker.controls["redo"].disabled
    )
    picker.controls["clear"].click()
    assert marked(picker.state) == frozenset() and picker.controls["clear"].disabled
    picker.controls["name"].value = " "
    assert (
        "expected a name" in picker.controls["status"].value
        and picker.controls["name"].value == "heel_l"
    )


def test_dots_show_the_state(picker, body):
    click(picker, 10)
    picker.controls["mirror"].value = True
    dots = picker.view.dots
    for name, vertex in (("marked", 10), ("mirrored", int(body.mirror[10]))):
        np.testing.assert_allclose(
            dots[name].position.array[0] + picker.view.centre,
            body.v_template[vertex],
            atol=1e-5,
        )
    picker.controls["fit"].click()
    assert sorted(picker.fits) == ["toe_l", "toe_r"] and dots["keypoint"].object.visible
    click(picker, 11)  # the keypoint follows at once
    middle = body.v_template[[10, 11]].mean(0)
    np.testing.assert_allclose(
        dots["keypoint"].position.array[0] + picker.view.centre, middle, atol=1e-5
    )
    np.testing.assert_allclose(
        picker.strip.dots["also rest"][0],
        _still_spots(picker.view.V, middle)[0],
        atol=1e-3,
    )
    for _ in range(3):
        picker.controls["undo"].click()
    assert (
        not picker.fits
        and not any(d.object.visible for d in dots.values())
        and not picker.strip.dots
    )


def test_keys_do_what_the_buttons_do(picker):
    def key(name):
        picker.hands._handle_custom_msg({"key": name}, [])

    click(picker, 10)
    for name, expected in (
        ("ctrl+z", set()),
        ("ctrl+shift+z", {10}),
        (".", None),
        (",", {10}),
        ("delete", set()),
        ("u", {10}),
    ):
        key(name)
        assert (
            expected is None
            and len(marked(picker.state)) > 4
            or marked(picker.state) == expected
        )
    key("n")
    assert (
        picker.state.pose
        == picker.strip.current
        == picker.controls["pose"].value
        == "also rest"
    )
    key("p")
    assert picker.state.pose == "rest"
    for name, control in (
        ("w", "wireframe"),
        ("t", "transparent"),
        ("b", "backface"),
        ("h", "hull"),
        ("m", "mirror"),
        ("o", "through"),
        ("k", "kind"),
        ("z", "zoom"),
        ("l", "lasso"),
    ):
        key(name)
        assert picker.controls[control].value is True
    skin = picker.view.skin
    assert (
        skin.wireframe
        and skin.opacity < 1
        and skin.side == "DoubleSide"
        and picker.hands.lasso
    )
    key("escape")
    assert not picker.hands.lasso and not picker.controls["lasso"].value
    key("g")
    assert (
        picker.controls["overlay"].value == "all keypoints"
        and picker.view.dots["overlay"].object.visible
    )
    before = picker.controls["brush"].value
    key("]")
    assert picker.controls["brush"].value > before
    key("x")
    assert marked(picker.state) == {int(picker.body.mirror[10])}
    assert set(_KEYS.values()) <= set(picker.moves())


def test_triangles_and_their_fit(picker):
    picker.controls["kind"].value = True
    click(picker, 10)
    (face,) = triangles_of(picker.state, marked(picker.state))
    assert 10 in picker.view.F[face] and picker.view.dots["facets"].object.visible
    np.testing.assert_allclose(
        picker.fits["toe_l"].weights @ picker.view.V,
        picker.view.V[picker.view.F[face]].mean(0),
        atol=1e-6,
    )
    # wider than the largest triangle
    picker.controls["through"].value, picker.controls["brush"].value = (True, 60)
    click(picker, 10, "shift")
    assert len(
        triangles_of(picker.state, marked(picker.state))
    ) > 1 and not vertices_of(picker.state, marked(picker.state))
    click(picker, 10, "ctrl")
    assert not marked(picker.state)


def test_brush_keeps_to_the_side_that_is_seen(picker):
    hand = int(picker.view.V[:, 0].argmax())
    picker.controls["brush"].value = 60
    click(picker, hand, "shift")
    front = marked(picker.state)
    picker.controls["undo"].click()
    picker.controls["through"].value = True
    click(picker, hand, "shift")
    assert front < marked(picker.state) and len(marked(picker.state)) > 1.5 * len(front)


def test_a_lasso_marks_and_erases_what_it_goes_around(picker):
    xy = picker.view.on_screen(picker.view.V)
    (x0, y0), (x1, y1) = xy.min(0) - 0.01, xy.max(0) + 0.01
    whole = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    picker.controls["lasso"].value = True
    picker.hands._handle_custom_msg({"outline": whole, "erase": False}, [])
    seen = seen_from(picker.view.V, picker.view.F, picker.view.eye)
    assert marked(picker.state) == set(np.flatnonzero(seen)) and not picker.hands.lasso
    picker.hands._handle_custom_msg(
        {"outline": [[0.5, y0], [x1, y0], [x1, y1], [0.5, y1]], "erase": True}, []
    )
    assert 0 < len(marked(picker.state)) < 0.6 * seen.sum()


def test_builds_are_marked_apart(picker, body):
    click(picker, 10)
    picker.controls["shape"].value = picker.controls["shape"].options[1]
    assert (
        not marked(picker.state)
        and np.abs(picker.view.V - body.v_template).max() > 1e-3
    )
    click(picker, 11)
    assert len(picker.fits["toe_l"].report["residual_mm"]) == 2
    assert [len(s) for s in picker.state.marks["toe_l"]] == [2, 2] and picker.marks()[
        "shapes"
    ]


def test_a_dead_kernel_loses_nothing(picker, body):
    click(picker, 10)
    picker.controls["save"].click()
    assert not _autosave_of(picker.path).exists()
    click(picker, 11)
    picker.controls["mirror"].value = True
    again = KeypointPicker(body, path=picker.path)
    assert again.state == picker.state and "came back" in again.controls["status"].value
    again.controls["load"].click()  # back to what was saved by hand
    assert (
        marked(again.state) == {10}
        and not again.state.mirrored
        and not _autosave_of(picker.path).exists()
    )


def test_files_that_are_not_there_or_broken_are_said(picker):
    click(picker, 10)
    picker.controls["file"].value = str(picker.path.with_name("nowhere.json"))
    picker.controls["load"].click()
    assert "no such marks file" in picker.controls["status"].value and marked(
        picker.state
    ) == {10}
    picker.path.with_name("nowhere.json").write_text("{")
    picker.controls["load"].click()
    assert "expected a marks file" in picker.controls["status"].value and marked(
        picker.state
    ) == {10}
    picker.controls["body"].value = "/nonexistent/body.npz"
    assert (
        "body.npz" in picker.controls["status"].value
        and picker.body.name == "open_body"
    )
    picker.controls["file"].value = "/nonexistent/dir/marks.json"
    click(picker, 11)
    assert marked(picker.state) == {10, 11}  # an autosave that fails stops nobody


def test_export_can_be_read_back(picker, body):
    toe = int(body.keypoint_regressors["toe_l"].argmax())
    click(picker, toe)
    picker.controls["mirror"].value = True
    picker.controls["export"].click()
    rows = load_rows(picker.path.with_name("marks_regressors.json"), body)
    assert (
        sorted(rows) == ["toe_l", "toe_r"]
        and rows["toe_l"].argmax() == toe
        and rows["toe_r"].argmax() == body.mirror[toe]
    )


def test_another_body(picker, body, tmp_path):
    click(picker, 10)
    taller = replace(body, v_template=body.v_template * 1.1, name="taller")
    other = replace(body, faces=body.faces[:, ::-1], name="other")
    for file in (taller, other):
        save_body(file, tmp_path / f"{file.name}.npz")
    picker.controls["body"].value = str(tmp_path / "taller.npz")
    assert (
        marked(picker.state) == {10}
        and picker.view.V.max() > 1.05 * body.v_template.max()
    )
    picker.controls["body"].value = str(tmp_path / "other.npz")
    assert not picker.state.marks and "other" in picker.path.name
    picker.controls["body"].value = "open body"
    assert picker.body.name == "open_body"


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
    assert (
        picker.fit() == {} and "Click the vertices" in picker.controls["status"].value
    )


def test_shipped_toe_marks_fit_the_shipped_body(body):
    marks = load_marks(shipped("toe_marks.json"))
    V = np.asarray(body.v_template, float)
    for entry in marks["keypoints"].values():
        for mark in entry["marks"]:
            # all on the tip of one toe
            assert np.ptp(V[mark["vertices"]], axis=0).max() < 0.04
    rest = dict.fromkeys(marks["poses"], V)
    fits = fit_marks(marks, body, rest)
    left, right = (fits[n].weights @ V for n in ("toe_l", "toe_r"))
    np.testing.assert_allclose(right, left * [-1, 1, 1], atol=1e-5)
    assert (
        left[0] > 0.05
        and left[1] < V[:, 1].min() + 0.06
        and left[2] > V[:, 2].max() - 0.03
    )


def test_marks_of_another_mesh_are_refused(body, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(
        json.dumps({**to_marks(PickerState(12)), "body": "other", "topology": "0" * 16})
    )
    with pytest.raises(ValueError, match="with other faces"):
        KeypointPicker(body, path=path)


def test_the_picker_opens_without_keras():
    code = (
        "import sys; from hmr_nb.keypoints.picker import _KEYS, KeypointPicker,"
        " _autosave_of, _still_spots; from hmr_nb.body.open_body import open_body;"
        " KeypointPicker(open_body(), path='/nonexistent/marks.json'); assert not"
        " {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_without_voila_says_what_to_install(tmp_path):
    code = (
        "import sys, importlib.util as u; real = u.find_spec; u.find_spec = lambda"
        " name, *a: None if name == 'voila' else real(name, *a); from"
        " hmr_nb.shell.commands import main; sys.argv = ['hmr_nb', *sys.argv[1:]];"
        " main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "pick"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (
        done.returncode == 1
        and len(done.stderr.splitlines()) == 1
        and "pip install 'hmr_nb[voila]'" in done.stderr
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code.replace("name == 'voila'", "False"),
            "pick",
            "--body",
            "nowhere.npz",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (
        done.returncode == 1
        and len(done.stderr.splitlines()) == 1
        and "nowhere.npz" in done.stderr
    )


def test_the_page_holds_the_picker_that_was_asked_for(tmp_path):
    from hmr_nb.shell.keypoints import _picker_page

    source = json.loads(
        _picker_page(
            tmp_path / "p.ipynb", tmp_path / "it's.npz", tmp_path / "marks.json"
        ).read_text()
    )["cells"][0]["source"]
    assert (
        repr(str(tmp_path / "it's.npz")) in source
        and repr(str(tmp_path / "marks.json")) in source
    )
    compile(source, "cell", "exec")


def test_the_line_names_the_pose_that_tells_most(body, tmp_path):
    marking = KeypointPicker(body, path=tmp_path / "toe.json")
    marking.click(100, int(np.flatnonzero((marking.view.F == 100).any(1))[0]))
    marking.fill_strip()
    known = np.stack([marking.mesh_of(pose, "mean") for pose in marking.poses])
    near = np.linalg.norm(known - known[:, 100:101], axis=2).mean(0) <= 0.1
    assert (
        marking.suggested
        == list(marking.poses)[suggest_poses(known, near, count=2, taken=[0])[0]]
        != "rest"
    )
    assert f"choose <b>{marking.suggested}</b>" in marking.controls["status"].value
    first = marking.suggested
    marking.controls["pose"].value = first
    marking.click(101, int(np.flatnonzero((marking.view.F == 101).any(1))[0]))
    assert marking.suggested not in (first, "rest", None)


def test_fits_of_trembling_marks_are_held_back_as_far_as_held_out_meshes_say(
    body, tmp_path
):
    shown = KeypointPicker(body, path=tmp_path / "toe.json")
    shown.open(body, shipped("toe_marks.json"))
    expected = fit_marks(load_marks(shipped("toe_marks.json")), body, local="auto")[
        "toe_l"
    ]
    assert shown.fits["toe_l"].report["options"] == expected.report["options"]
    assert (
        expected.report["options"]["local"] > 0
        and np.abs(shown.fits["toe_l"].weights - expected.weights).max() < 1e-4
    )
