"""Small videos in the official containers, with a bright dot on every labelled point:
shared by the tests of the video datasets."""

from pathlib import Path

import cv2
import numpy as np

from hmr_nb.records.video import figure_motion


def intrinsics(sample):
    "fx, fy, cx, cy of the source's camera, px."
    return sample.camera.K[[0, 1, 0, 1], [0, 1, 2, 2]]


def seen_by(K, X):
    "(..., 3) m, camera frame -> (..., 2) px, without distortion."
    return (X @ np.asarray(K).T)[..., :2] / X[..., 2:]


def dots(kp_px, size, radius=5, shade=30):
    "One picture: white dots on a dark ground."
    image = np.full((*size, 3), shade, np.uint8)
    for x, y in kp_px[np.isfinite(kp_px).all(1)]:
        cv2.circle(
            image,
            (round(x * 16), round(y * 16)),
            round(radius * 16),
            (255, 255, 255),
            -1,
            cv2.LINE_AA,
            shift=4,
        )
    return image


def write_video(path, pictures, codec, fps=25):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    h, w = pictures[0].shape[:2]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, (w, h))
    assert video.isOpened()
    for picture in pictures:
        video.write(np.ascontiguousarray(picture[..., ::-1]))
    video.release()


def write_pictures(pattern, pictures, first):
    pattern = Path(pattern)
    pattern.parent.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        cv2.imwrite(
            str(pattern.with_name(pattern.name % (i + first))),
            picture[..., ::-1],
            [cv2.IMWRITE_JPEG_QUALITY, 97],
        )


def dot_errors(example, radius=4.0):
    """How far the stored points are from the middle of their dots, px; only of points
    that lie alone and inside."""
    kp, side = example.kp2d, example.image.shape[0]
    grey, found = example.image.min(-1).astype(float), []
    far = np.linalg.norm(kp[:, None] - kp[None], axis=-1) + 1e9 * np.eye(len(kp))
    alone = (
        (np.nan_to_num(far, nan=1e9).min(1) > 2 * radius + 2)
        & (kp > radius + 2).all(1)
        & (kp < side - radius - 3).all(1)
    )
    y, x = np.mgrid[:side, :side]
    for p in kp[alone]:
        w = np.where(
            np.hypot(x - p[0], y - p[1]) < radius + 1, np.clip(grey - 120, 0, None), 0
        )
        assert w.sum() > 0, f"no dot at {p} of {example.source}"
        found.append(
            np.hypot((w * x).sum() / w.sum() - p[0], (w * y).sum() / w.sum() - p[1])
        )
    return np.array(found)


def bytes_of(folder):
    return {f.name: f.read_bytes() for f in Path(folder).iterdir()}


__all__ = [
    "bytes_of",
    "dot_errors",
    "dots",
    "figure_motion",
    "seen_by",
    "write_pictures",
    "write_video",
]
