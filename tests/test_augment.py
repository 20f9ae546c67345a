"""Views: the same scale in training and test, pixels and points together, sides by
name."""

import numpy as np
import pytest
import tensorflow as tf

from hmr_nb.basics.camera import (
    apply_affine,
    box_from_keypoints,
    compose,
    flip_affine,
    ndc_to_px,
    warp_image,
)
from hmr_nb.basics.keypoints import keypoint_set
from hmr_nb.basics.values import Identity
from hmr_nb.model.view import View
from hmr_nb.records.augment import (
    _view_affine,
    _view_pixels,
    _view_window,
    augment,
    test_view,
)
from hmr_nb.records.pictures import decode_jpeg, encode_jpeg
from hmr_nb.records.schema import Sample
from hmr_nb.records.stream import record_dataset
from hmr_nb.records.writer import RecordWriter
from hmr_nb.training.batches import training_batches
from hmr_nb.training.experiment import Experiment

LSP = keypoint_set("lsp14")
N = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("records") / "r"
    rng = np.random.default_rng(0)
    with RecordWriter(out, "noise") as writer:
        for i in range(N):
            side = int(rng.integers(60, 300))
            image = np.kron(
                rng.integers(0, 256, (6, 6, 3), dtype=np.uint8),
                np.ones((side // 6 + 1, side // 6 + 1, 1), np.uint8),
            )[:side, :side]
            kp = side * rng.uniform(1 / 6, 5 / 6, (14, 2))
            kp[i % 14] = np.nan
            writer.write(
                Sample(
                    LSP.names,
                    kp,
                    image=image,
                    box=box_from_keypoints(kp),
                    kp3d=rng.normal(size=(14, 3)),
                    pose=rng.normal(0, 0.5, (24, 3)),
                    betas=rng.normal(size=10),
                    identity=Identity(frame=i),
                )
            )
    return out


def items(dataset):
    return list(dataset.as_numpy_iterator())


def test_the_person_fills_the_view_as_the_rule_says(folder):
    for stored, view in zip(
        items(record_dataset(folder, LSP, seed=None)),
        items(test_view(record_dataset(folder, LSP, seed=None), View(224), LSP)),
    ):
        kp = np.where(stored["state"][:, None] > 0, stored["kp2d"], np.nan)
        rule = View(224).crop(box_from_keypoints(kp)).affine
        pixel = 224 / (1.25 * max(stored["box"][2:]))  # a stored pixel in the view
        seen = stored["state"] > 0
        off = apply_affine(view["affine"], kp) - apply_affine(rule, kp)
        # rounding to whole pixels and no more
        assert np.abs(off[seen]).max() < 1.2 * pixel
        np.testing.assert_allclose(
            ndc_to_px(view["kp2d"][:, :2], 224)[seen],
            apply_affine(view["affine"], kp)[seen],
            atol=1e-3,
        )
        np.testing.assert_array_equal(view["kp2d"][:, 2], seen)


def test_without_chance_training_is_testing(folder):
    data = record_dataset(folder, LSP, seed=None)
    for a, b in zip(
        items(
            augment(data, View(96), LSP, jitter_px=0, scale=(1, 1), flip=False, color=0)
        ),
        items(test_view(data, View(96), LSP)),
    ):
        for field in ("image", "kp2d", "kp3d", "pose", "betas", "affine"):
            np.testing.assert_array_equal(a[field], b[field])


def test_chance_is_a_function_of_seed_epoch_and_place(folder):
    def look(seed, **kw):
        return [
            d["image"].tobytes()
            for d in items(
                augment(
                    record_dataset(folder, LSP, seed=1, **kw), View(64), LSP, seed=seed
                )
            )
        ]

    two = look(3, epochs=2)
    assert two == look(3, epochs=2) and len(set(two)) == 2 * N
    assert two[N + 9 :] == look(3, epochs=2, start=(1, 9))
    assert not set(two) & set(look(4, epochs=2))


def test_shift_scale_and_mirror_stay_in_their_ranges(folder):
    scales, shifts, mirrored = [], [], []
    data = record_dataset(folder, LSP, seed=None, epochs=8)
    for d, s in zip(items(augment(data, View(224), LSP, color=0)), items(data)):
        x, y, w, h = s["box"]
        scales.append(abs(d["affine"][0, 0]) * 1.25 * max(w, h) / 224)
        shifts.append(
            apply_affine(d["affine"], np.array([[x + w / 2, y + h / 2]]))[0] - 111.5
        )
        mirrored.append(d["affine"][0, 0] < 0)
    assert (
        0.78 < min(scales) < 0.83
        and 1.19 < max(scales) < 1.26
        and abs(np.mean(np.log(scales))) < 0.03
    )
    assert np.abs(shifts).max() < 20 + 4 and np.abs(shifts).max() > 17
    assert 0.42 < np.mean(mirrored) < 0.58


def test_a_mirrored_person_has_its_sides_exchanged(folder):
    data = record_dataset(folder, LSP, seed=None, epochs=2)
    joints = keypoint_set("smpl24").flip
    for d, s in zip(items(augment(data, View(96), LSP)), items(data)):
        seen = s["state"] > 0
        px = apply_affine(d["affine"], s["kp2d"])
        back = LSP.flip if d["affine"][0, 0] < 0 else np.arange(14)
        np.testing.assert_array_equal(d["kp2d"][back, 2], seen)
        np.testing.assert_allclose(
            ndc_to_px(d["kp2d"][back, :2], 96)[seen], px[seen], atol=1e-3
        )
        sign = np.sign(d["affine"][0, 0])
        np.testing.assert_array_equal(d["kp3d"][back], s["kp3d"] * [sign, 1, 1])
        order = joints if sign < 0 else np.arange(24)
        np.testing.assert_array_equal(d["pose"][order], s["pose"] * [1, sign, sign])
        np.testing.assert_array_equal(d["betas"], s["betas"])


@pytest.mark.parametrize(
    "corner", [(0, 0), (-30, 20), (70, -60), (90, 90), (-500, 10), (400, -400)]
)
@pytest.mark.parametrize(("side", "size"), [(60, 60), (100, 75), (40, 96), (150, 30)])
def test_pixels_against_opencv(corner, side, size):
    rng = np.random.default_rng(0)
    image = np.kron(
        rng.integers(0, 256, (13, 16, 3), dtype=np.uint8),
        np.ones((10, 10, 1), np.uint8),
    )
    jpeg = encode_jpeg(image)
    seen = _view_pixels(tf.constant(jpeg), corner, side, size).numpy()
    A = _view_affine(tf.constant(corner), tf.constant(side), size).numpy()
    expected = warp_image(decode_jpeg(jpeg), A.astype(float), size) / 127.5 - 1
    assert seen.shape == (size, size, 3) and np.abs(seen).max() <= 1 + 1e-6
    # another filter when it shrinks much
    assert np.abs(seen - expected).mean() < (
        1e-6 if side == size else 0.035 if side < 1.5 * size else 0.1
    )


def test_an_unknown_box_is_the_middle():
    for box in ([0.0, 0, 0, 0], [np.nan] * 4):
        corner, side = _view_window(tf.constant(box), 120, 120, View(96))
        assert corner.numpy().tolist() == [10, 10] and int(side) == 100


def test_the_mirrored_map_is_the_map_then_the_mirror():
    corner, side = tf.constant([7, -3]), tf.constant(90)
    plain, mirrored = (
        _view_affine(corner, side, 64, flip).numpy() for flip in (False, True)
    )
    np.testing.assert_allclose(mirrored, compose(flip_affine(64), plain), atol=1e-5)


def test_turned_views_turn_the_person_too(folder):
    "What is measured in the picture and what is said in 3D turn by the same angle."
    data = record_dataset(folder, LSP, seed=None)
    angles = []
    for d, s in zip(
        items(augment(data, View(96), LSP, jitter_px=0, scale=(1, 1), rotation_deg=40)),
        items(data),
    ):
        A, sign = d["affine"][:, :2], np.sign(np.linalg.det(d["affine"][:, :2]))
        R = A @ np.diag([sign, 1]) / np.sqrt(abs(np.linalg.det(A)))
        np.testing.assert_allclose(R @ R.T, np.eye(2), atol=1e-4)
        angles.append(np.degrees(np.arctan2(R[1, 0], R[0, 0])))
        back = LSP.flip if sign < 0 else np.arange(14)
        np.testing.assert_allclose(
            d["kp3d"][back][:, :2], (s["kp3d"] * [sign, 1, 1])[:, :2] @ R.T, atol=1e-4
        )
        np.testing.assert_allclose(d["kp3d"][back][:, 2], s["kp3d"][:, 2], atol=1e-6)
        seen = s["state"] > 0
        px = apply_affine(d["affine"], s["kp2d"])
        np.testing.assert_allclose(
            ndc_to_px(d["kp2d"][back, :2], 96)[seen], px[seen], atol=1e-3
        )
    assert np.abs(angles).max() <= 40 and np.ptp(angles) > 50


def test_cover_hides_pixels_and_keeps_points(folder):
    data = record_dataset(folder, LSP, seed=None)
    plain, covered = (
        items(augment(data, View(64), LSP, seed=2, occlusion=o)) for o in (0.0, 0.5)
    )
    hidden = np.array(
        [np.any(a["image"] != b["image"], -1).mean() for a, b in zip(plain, covered)]
    )
    assert 0.25 < np.mean(hidden > 0) < 0.75 and hidden.max() <= 0.36
    for a, b in zip(plain, covered):
        np.testing.assert_array_equal(a["kp2d"], b["kp2d"])


def test_an_experiment_says_how_people_are_drawn_and_changed(folder, tmp_path):
    """Its settings reach the batches; weights belong to the directories as given, also
    where one has nobody to train on."""
    for name, split in (("few", "train"), ("val", "val")):
        with RecordWriter(tmp_path / name, name) as writer:
            for i in range(6):
                writer.write(
                    Sample(
                        LSP.names,
                        np.full((14, 2), 5.0),
                        image=np.zeros((20, 20, 3), np.uint8),
                        identity=Identity(split=split, frame=i),
                    )
                )
    dirs = [folder, tmp_path / "val", tmp_path / "few"]

    def batch(**settings):
        e = Experiment(input_size=32, batch_size=66, color=0.0, flip=False, **settings)
        return next(iter(training_batches(e, dirs, LSP).as_numpy_iterator()))

    def few(b):
        return int((b["has_smpl"] == 0).sum())

    plain = batch()
    assert [
        few(b)
        for b in (plain, batch(balance="datasets"), batch(data_weights=(2, 7, 1)))
    ] == [6, 33, 22]
    covered, turned = batch(occlusion=1.0), batch(rotation_deg=40)
    np.testing.assert_array_equal(covered["kp2d"], plain["kp2d"])
    assert (covered["image"] != plain["image"]).any((1, 2, 3)).mean() > 0.8 and np.abs(
        turned["pose"] - plain["pose"]
    ).max() > 0.1
    with pytest.raises(
        ValueError, match="data_weights has 2 numbers for 3 directories"
    ):
        batch(data_weights=(2, 1))


def test_balance_by_frames_or_by_datasets(folder, tmp_path):
    with RecordWriter(tmp_path / "few", "few") as writer:
        for i in range(6):
            writer.write(
                Sample(
                    LSP.names,
                    np.full((14, 2), 5.0),
                    image=np.zeros((20, 20, 3), np.uint8),
                    identity=Identity("few", frame=i),
                )
            )

    def count(**k):
        return sum(
            d["dataset"] == b"few"
            for d in items(
                record_dataset([folder, tmp_path / "few"], LSP, meta=True, **k)
            )
        )

    assert (
        count() == count(weights="frames") == 6
        and count(weights="datasets") == 33
        and count(weights=[2, 1]) == 22
    )
    with pytest.raises(ValueError, match="'frames' or 'datasets'"):
        record_dataset(folder, LSP, weights="people")
    with pytest.raises(ValueError, match="one for each of 2"):
        record_dataset([folder, tmp_path / "few"], LSP, weights=[1])
