"""Frames by number, cameras from labels, and what becomes of each frame of a video."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_data import (
    dot_errors,
    dots,
    figure_motion,
    intrinsics,
    seen_by,
    write_pictures,
    write_video,
)

from hmr_nb.basics.camera import Camera
from hmr_nb.basics.keypoints import keypoint_set
from hmr_nb.basics.values import Identity
from hmr_nb.records.pictures import decode_jpeg
from hmr_nb.records.schema import Sample
from hmr_nb.records.video import (
    Clip,
    VideoFile,
    convert_clip,
    cut_clips,
    find_video,
    fit_intrinsics,
    video_frames,
)
from hmr_nb.records.writer import Dropped

NAMES = keypoint_set("mpi_inf_3dhp17").names
K = np.array([[380.0, 0, 250.0], [0, 376.0, 262.0], [0, 0, 1]])
COUNT = 23


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    "The same dots in every container."
    root = tmp_path_factory.mktemp("videos")
    X = figure_motion(NAMES, COUNT)
    px = seen_by(K, X)
    shots = [dots(kp, (512, 512), 4) for kp in px]
    write_video(root / "a.avi", shots, "MJPG")
    write_video(root / "b.mp4", shots, "mp4v")
    write_video(root / "c.avi", shots, "XVID")
    write_pictures(root / "zero" / "frame_%06d.jpg", shots, 0)
    write_pictures(root / "one" / "%06d.jpg", shots, 1)
    places = {
        "mjpg": "a.avi",
        "mp4": "b.mp4",
        "xvid": "c.avi",
        "from 0": "zero/frame_%06d.jpg",
        "from 1": "one/%06d.jpg",
    }
    return root, {k: find_video([root / p]) for k, p in places.items()}, X, px


def clip_of(video, X, px, frames=None, **changes):
    frames = np.arange(COUNT) if frames is None else np.asarray(frames)
    inside = frames[frames < COUNT]

    def take(a):
        return np.concatenate(
            [a[inside], np.repeat(a[-1:], len(frames) - len(inside), 0)]
        ).astype(np.float32)

    clip = Clip(video, "video", frames, NAMES, take(px), take(X), Camera(K))
    return clip._replace(**changes)


@settings(max_examples=20, deadline=None)
@given(wanted=st.sets(st.integers(0, COUNT + 3), min_size=1).map(sorted))
@pytest.mark.parametrize("kind", ["mjpg", "mp4", "xvid"])
def test_wanted_frames_are_those_of_a_whole_pass(videos, kind, wanted):
    video = videos[1][kind]
    whole = dict(video_frames(video, range(COUNT)))
    assert all(p is not None for p in whole.values())
    for n, picture in video_frames(video, wanted):
        assert (picture is None) if n >= COUNT else (picture == whole[n]).all()


@pytest.mark.parametrize("kind", ["mjpg", "mp4", "xvid", "from 0", "from 1"])
def test_stored_points_lie_on_the_dots(videos, kind):
    _, by_kind, X, px = videos
    people = [
        e for c in cut_clips(clip_of(by_kind[kind], X, px), 6) for e in convert_clip(c)
    ]
    assert [e.frame for e in people] == list(range(COUNT))  # the last one too
    for e in people:
        found = dot_errors(replace(e, image=decode_jpeg(e.jpeg)))
        assert len(found) >= 5 and found.max() < 0.6
        np.testing.assert_allclose(e.crop.undo(e.kp2d), px[e.frame], atol=0.02)
        np.testing.assert_allclose(e.kp3d, X[e.frame], atol=1e-6)
        np.testing.assert_allclose(intrinsics(e), [380, 376, 250, 262])


@given(
    f=st.floats(200, 3000),
    ratio=st.floats(0.9, 1.1),
    c=st.tuples(st.floats(-100, 3000), st.floats(-100, 3000)),
    seed=st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_a_camera_is_found_in_its_labels(f, ratio, c, seed):
    camera = np.array([[f, 0, c[0]], [0, f * ratio, c[1]], [0, 0, 1]])
    X = np.random.default_rng(seed).uniform([-1, -1, 2], [1, 1, 6], (5, 7, 3))
    px = seen_by(camera, X)
    px[0, 0] = np.nan
    fitted, residual = fit_intrinsics(px, X)
    np.testing.assert_allclose(fitted, camera, rtol=1e-6, atol=1e-5 * f)
    assert residual < 1e-5 * f


@settings(max_examples=25, deadline=None)
@given(
    cut=st.integers(1, 99),
    frames=st.sets(st.integers(0, COUNT + 5), min_size=1).map(sorted),
)
def test_every_frame_of_a_cut_video_has_an_outcome(
    videos, tmp_path_factory, cut, frames
):
    root, by_kind, X, px = videos
    data = (root / "a.avi").read_bytes()
    file = tmp_path_factory.mktemp("cut") / "cut.avi"
    file.write_bytes(data[: len(data) * cut // 100])
    results = convert_clip(clip_of(VideoFile(str(file)), X, px, frames))
    assert len(results) == len(frames)
    for n, r in zip(frames, results):
        if isinstance(r, Sample):
            assert r.frame == n < COUNT
            decode_jpeg(r.jpeg)
        else:
            assert r.reason in ("video ends before this frame", "video unreadable")
    written = [r.frame for r in results if isinstance(r, Sample)]
    # nothing after a hole: no frame takes the place of another
    assert written == frames[: len(written)]


def test_reasons(videos, tmp_path):
    _, by_kind, X, px = videos
    (tmp_path / "page.avi").write_text("<html>")
    (tmp_path / "empty.mp4").write_bytes(b"")
    few = clip_of(by_kind["mp4"], X, px, [3, 4], min_inside=8)

    def reason(**k):
        return {r.reason for r in convert_clip(few._replace(**k))}

    assert (
        reason(video=None)
        == reason(video=VideoFile(str(tmp_path / "no.avi")))
        == {"video missing"}
    )
    assert (
        reason(video=VideoFile(str(tmp_path / "page.avi")))
        == reason(video=VideoFile(str(tmp_path / "empty.mp4")))
        == {"video unreadable"}
    )
    assert reason(video=VideoFile(str(tmp_path / "no_%06d.jpg"))) == {"image missing"}
    assert reason(kp=few.kp * np.nan) == {"no labels"}
    assert reason(kp=few.kp + 5000) == {"mostly outside the image"}
    assert reason(size=(2048, 2048)) == {
        "image not of the size that its labels are for"
    }
    assert reason(drop="as asked") == {"as asked"}
    assert all(
        isinstance(r, Sample) for r in convert_clip(few._replace(size=(512, 512)))
    )
    lone = few._replace(kp=np.where(np.arange(17)[:, None] == 3, few.kp, np.nan))
    assert {r.reason for r in convert_clip(lone)} == {"no labels"}


def test_state_is_occluded_outside_and_missing_where_nan(videos):
    _, by_kind, X, px = videos
    kp = px[:1].astype(np.float32)
    kp[0, 0], kp[0, 1] = np.nan, [600, 100]
    (e,) = convert_clip(clip_of(by_kind["mp4"], X, px, [0])._replace(kp=kp))
    assert e.state.tolist()[:3] == [0, 1, 2] and np.isnan(e.kp2d[0]).all()


def test_videos_cut_into_few_clips_that_are_the_whole():
    frames = np.arange(0, 12000, 3)
    clip = Clip(
        None,
        "s",
        frames,
        ("a",),
        frames[:, None, None] + np.zeros((1, 2), np.float32),
        None,
        None,
    )
    clips = cut_clips(clip)
    assert (
        len(clips) == 4
        and np.concatenate([c.frames for c in clips]).tolist() == frames.tolist()
    )
    assert all((c.kp[:, 0, 0] == c.frames).all() for c in clips)
    assert cut_clips(clip._replace(frames=frames[:0], kp=clip.kp[:0])) == []


def test_dropped_frames_name_video_and_number(videos):
    _, by_kind, X, px = videos
    (one,) = convert_clip(
        clip_of(
            by_kind["mp4"],
            X,
            px,
            [90],
            source="S1/Seq1/video_0",
            identity=Identity(split="val"),
        )
    )
    assert one == Dropped("S1/Seq1/video_0#90", "video ends before this frame", "val")
