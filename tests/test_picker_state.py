"""Laws of the marking state machine, over random walks through its moves."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmr_nb.joint_regressor import check_marks, load_marks, save_marks
from hmr_nb.picker_state import (
    PickerState,
    at,
    brush,
    brush_area,
    clear,
    flip,
    from_marks,
    marked,
    redo,
    reflect,
    remove,
    switch_mirror,
    to_marks,
    toggle,
    undo,
)

N = 40
MIRROR = np.arange(N) ^ 1  # vertices 2i and 2i + 1 are each other's mirror image
ids = st.lists(st.integers(0, N - 1), max_size=8)
edits = st.one_of(
    st.tuples(st.just("toggle"), ids), st.tuples(st.just("brush"), ids), st.tuples(st.just("remove"), ids),
    st.just(("clear",)), st.just(("reflect",)), st.just(("switch",)),
)
turns = st.tuples(st.just("at"), st.sampled_from(["toe_l", "toe_r", "nose"]), st.sampled_from(["rest", "squat"]))
moves = st.lists(st.one_of(edits, turns, st.just(("undo",)), st.just(("redo",))), max_size=40)


def move(state, what):
    name, *args = what
    return {"toggle": toggle, "brush": brush, "remove": remove, "clear": clear, "switch": switch_mirror,
            "reflect": lambda s: reflect(s, MIRROR), "at": lambda s, k, p: at(s, k, p), "undo": undo, "redo": redo}[name](state, *args)


def walk(steps, state=None):
    state = state or PickerState(N)
    for step in steps:
        state = move(state, step)
    return state


@settings(max_examples=80, deadline=None)
@given(moves, edits)
def test_undo_takes_back_what_was_done(steps, edit):
    before = walk(steps)
    after = move(before, edit)
    if after is before:
        return
    back = undo(after)
    assert (back.marks, back.mirrored, back.done, back.keypoint, back.pose) == (before.marks, before.mirrored, before.done, before.keypoint, before.pose)
    assert redo(back) == after


@settings(max_examples=80, deadline=None)
@given(moves)
def test_state_is_the_replay_of_its_history(steps):
    state = walk(steps)
    replayed = PickerState(N)
    for change in state.done:
        replayed = flip(replayed, change)
    assert (replayed.marks, replayed.mirrored) == (state.marks, state.mirrored)
    while state.done:
        state = undo(state)
    assert state.marks == {} and not state.mirrored


@settings(max_examples=80, deadline=None)
@given(moves)
def test_mirror_twice_is_identity(steps):
    state = walk(steps)
    assert reflect(reflect(state, MIRROR), MIRROR).marks == state.marks
    assert switch_mirror(switch_mirror(state)).mirrored == state.mirrored


@settings(max_examples=80, deadline=None)
@given(moves, ids)
def test_moves_do_what_they_say(steps, vertices):
    state, touched = walk(steps), set(vertices)
    assert marked(brush(state, vertices)) == marked(state) | touched
    assert marked(remove(state, vertices)) == marked(state) - touched
    assert marked(toggle(state, vertices)) == marked(state) ^ touched
    assert marked(clear(state)) == frozenset()
    elsewhere = at(state, "elsewhere")
    assert marked(at(toggle(elsewhere, vertices), state.keypoint)) == marked(state)


@settings(max_examples=80, deadline=None)
@given(moves)
def test_nothing_is_lost_in_a_file(steps):
    state = walk(steps)
    written = to_marks(state, "toy", poses={p: np.zeros((24, 3)) for p in ("rest", "squat")})
    check_marks(written)
    assert from_marks(json.loads(json.dumps(written)), N) == state


@settings(max_examples=40, deadline=None)
@given(moves)
def test_a_file_without_history_keeps_its_marks(steps):
    state = walk(steps)
    plain = {k: v for k, v in to_marks(state).items() if k != "history"}
    opened = from_marks(json.loads(json.dumps(plain)), N)
    assert (opened.marks, opened.mirrored) == (state.marks, state.mirrored)


def test_marks_file_survives_a_crash_while_writing(tmp_path, monkeypatch):
    poses = {"rest": np.zeros((24, 3))}
    path = save_marks(to_marks(PickerState(N), "toy", poses=poses), tmp_path / "marks.json")
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError):
        save_marks(to_marks(toggle(PickerState(N), [1]), "toy", poses=poses), path)
    assert path.read_bytes() == before
    (tmp_path / "broken.json").write_text('{"keypoints": ')
    with pytest.raises(ValueError, match="broken.json: expected a marks file"):
        load_marks(tmp_path / "broken.json")
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        load_marks(tmp_path / "nowhere.json")


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 9), st.integers(3, 9), st.floats(0.1, 4))
def test_brush_on_a_plane_stays_within_its_radius(rows, columns, radius):
    grid = np.array([[x, y, 0] for x in range(columns) for y in range(rows)], float)
    faces = np.array([t for x in range(columns - 1) for y in range(rows - 1)
                      for i in [x * rows + y] for t in ([i, i + rows, i + 1], [i + 1, i + rows, i + rows + 1])])
    area = brush_area(grid, faces, 0, radius)
    assert (np.linalg.norm(grid[area], axis=1) <= radius + 1e-9).all() and 0 in area
    larger = brush_area(grid, faces, 0, radius * 1.5)
    assert set(area) <= set(larger)
