"""Laws of the marking state machine, over random walks through its moves."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmr_nb.keypoints.joint_regressor import check_marks, load_marks, save_marks
from hmr_nb.keypoints.marks import (
    PickerState,
    _flip,
    at,
    brush,
    brush_area,
    clear,
    from_marks,
    grow,
    lasso_area,
    marked,
    mirror_items,
    neighbours,
    redo,
    reflect,
    remove,
    seen_from,
    shrink,
    switch_mirror,
    to_marks,
    toggle,
    undo,
)

N, NF = 40, 57
MIRROR = np.arange(N) ^ 1  # vertices 2i and 2i + 1 are each other's mirror image
STRIP = np.array(
    [
        t
        for i in range(0, N - 2, 2)
        for t in ([i, i + 2, i + 1], [i + 1, i + 2, i + 3], [i + 1, i + 3, i])
    ]
)
LINKS = neighbours(STRIP, N)
IMAGES = np.r_[MIRROR, N + np.arange(NF - 1, -1, -1)]  # any involution will do
ids = st.lists(st.integers(0, N + NF - 1), max_size=8)
edits = st.one_of(
    st.tuples(st.just("toggle"), ids),
    st.tuples(st.just("brush"), ids),
    st.tuples(st.just("remove"), ids),
    st.just(("clear",)),
    st.just(("reflect",)),
    st.just(("switch",)),
    st.just(("grow",)),
    st.just(("shrink",)),
)
turns = st.tuples(
    st.just("at"),
    st.sampled_from(["toe_l", "toe_r", "nose"]),
    st.sampled_from(["rest", "squat"]),
    st.sampled_from(["mean", "tall +"]),
)
moves = st.lists(
    st.one_of(edits, turns, st.just(("undo",)), st.just(("redo",))), max_size=40
)


def move(state, what):
    name, *args = what
    return {
        "toggle": toggle,
        "brush": brush,
        "remove": remove,
        "clear": clear,
        "switch": switch_mirror,
        "reflect": lambda s: reflect(s, IMAGES),
        "at": lambda state, keypoint, pose, shape: at(
            state, keypoint, pose=pose, shape=shape
        ),
        "grow": lambda s: grow(s, LINKS),
        "shrink": lambda s: shrink(s, LINKS),
        "undo": undo,
        "redo": redo,
    }[name](state, *args)


def walk(steps, state=None):
    state = state or PickerState(N, NF)
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
    assert (back.marks, back.mirrored, back.done, back.keypoint, back.pose) == (
        before.marks,
        before.mirrored,
        before.done,
        before.keypoint,
        before.pose,
    )
    assert redo(back) == after


@settings(max_examples=80, deadline=None)
@given(moves)
def test_state_is_the_replay_of_its_history(steps):
    state = walk(steps)
    replayed = PickerState(N, NF)
    for change in state.done:
        replayed = _flip(replayed, change)
    assert (replayed.marks, replayed.mirrored) == (state.marks, state.mirrored)
    while state.done:
        state = undo(state)
    assert state.marks == {} and not state.mirrored


@settings(max_examples=80, deadline=None)
@given(moves)
def test_mirror_twice_is_identity(steps):
    state = walk(steps)
    assert reflect(reflect(state, IMAGES), IMAGES).marks == state.marks
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
    written = to_marks(
        state,
        "toy",
        poses={p: np.zeros((24, 3)) for p in ("rest", "squat")},
        shapes={"tall +": [1.0]},
    )
    check_marks(written)
    assert from_marks(json.loads(json.dumps(written)), N, NF) == state


@settings(max_examples=40, deadline=None)
@given(moves)
def test_a_file_without_history_keeps_its_marks(steps):
    state = walk(steps)
    plain = {k: v for k, v in to_marks(state).items() if k != "log"}
    opened = from_marks(json.loads(json.dumps(plain)), N, NF)
    assert (opened.marks, opened.mirrored) == (state.marks, state.mirrored)


def test_marks_file_survives_a_crash_while_writing(tmp_path, monkeypatch):
    poses = {"rest": np.zeros((24, 3))}
    path = save_marks(
        to_marks(PickerState(N), "toy", poses=poses), tmp_path / "marks.json"
    )
    before = path.read_bytes()
    monkeypatch.setattr(
        "os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk gone"))
    )
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
    faces = np.array(
        [
            t
            for x in range(columns - 1)
            for y in range(rows - 1)
            for i in [x * rows + y]
            for t in ([i, i + rows, i + 1], [i + 1, i + rows, i + rows + 1])
        ]
    )
    area = brush_area(grid, faces, 0, radius)
    assert (np.linalg.norm(grid[area], axis=1) <= radius + 1e-9).all() and 0 in area
    larger = brush_area(grid, faces, 0, radius * 1.5)
    assert set(area) <= set(larger)
    # a walk along the edges is never shorter than the brush's own way
    assert set(np.flatnonzero(np.abs(grid).sum(1) <= radius - 1e-9)) <= set(area)
    allowed = np.arange(len(grid)) % 2 == 0
    assert set(brush_area(grid, faces, 0, radius, allowed)) == {
        v for v in area if allowed[v]
    }


@settings(max_examples=40, deadline=None)
@given(moves)
def test_growing_then_shrinking_keeps_what_was_there(steps):
    state = walk(steps)
    wider = grow(state, LINKS)
    assert marked(state) <= marked(wider) and marked(state) <= marked(
        shrink(wider, LINKS)
    )
    assert marked(shrink(state, LINKS)) <= marked(state)
    by_hand = {
        int(j) for i in marked(state) for j in np.flatnonzero(LINKS[[i]].toarray()[0])
    }
    assert marked(wider) == marked(state) | by_hand


def test_triangles_mirror_where_there_is_an_image():
    corners = np.array([[0, 2, 4], [1, 5, 3], [2, 4, 6], [0, 1, 8]])
    images = mirror_items(np.arange(10) ^ 1, corners)
    assert images[10:].tolist() == [11, 10, -1, -1]
    lonely = toggle(PickerState(10, 4), [12])
    with pytest.raises(ValueError, match="no mirror image"):
        reflect(lonely, images)
    assert marked(reflect(toggle(PickerState(10, 4), [0, 10]), images)) == {1, 11}


def test_what_a_ball_shows_and_hides():
    import trimesh

    ball = trimesh.creation.icosphere(3)
    V, F = np.asarray(ball.vertices, float), np.asarray(ball.faces)
    seen = seen_from(V, F, [0, 0, 3])
    # of a ball of radius 1, an eye at distance 3 sees what is higher than 1 / 3
    height = V[:, 2]
    assert seen[height > 0.4].all() and not seen[height < 0.27].any()
    both, faces = np.concatenate([V, V + [0, 0, -2.5]]), np.concatenate([F, F + len(V)])
    assert not seen_from(both, faces, [0, 0, 3])[len(V) :][
        np.hypot(*V[:, :2].T) < 0.5
    ].any()  # the second ball's middle is behind the first


@settings(max_examples=40, deadline=None)
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.1, 1))
def test_a_lasso_is_its_inside(x, y, half):
    points = np.random.default_rng(0).uniform(-2, 2, (200, 2))
    square = [
        (x - half, y - half),
        (x + half, y - half),
        (x + half, y + half),
        (x - half, y + half),
    ]
    inside = np.flatnonzero((np.abs(points - [x, y]) < half).all(1))
    assert lasso_area(points, square).tolist() == inside.tolist()
    assert (
        lasso_area(points, square[::-1], np.arange(200) < 100).tolist()
        == inside[inside < 100].tolist()
    )


def test_marks_that_are_no_clicks_are_refused_by_name():
    file = {
        "body": "toy",
        "keypoints": {"hip": {"marks": [{"pose": "rest", "through": [1, 2]}]}},
    }
    with pytest.raises(ValueError, match="hip in pose 'rest' is given by through"):
        from_marks(file, N)


@pytest.mark.parametrize(
    "kind, value",
    [("through", [1, 2]), ("point", [0.0, 0.0, 0.0]), ("regressor", "knee_l")],
)
def test_marks_that_a_mouse_cannot_edit_are_refused(kind, value):
    with pytest.raises(ValueError, match=f"knee in pose 'rest' is given by {kind}"):
        from_marks(
            {
                "body": "any",
                "keypoints": {"knee": {"marks": [{"pose": "rest", kind: value}]}},
            },
            10,
        )
