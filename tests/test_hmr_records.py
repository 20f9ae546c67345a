"""Records of HMR and hmr2.0: real files, damage, and what a command says."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from hmr_nb.records.datasets.hmr_records import (
    convert_hmr2_records,
    convert_hmr_records,
    read_poses,
)
from hmr_nb.records.pictures import encode_jpeg
from hmr_nb.records.reader import examples

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
RECORDS = REAL / "hmr2_records"
PICTURE = encode_jpeg(np.full((60, 50, 3), 90, np.uint8))
real = pytest.mark.skipif(
    not RECORDS.is_dir(), reason="the real records of hmr2.0 are not on this machine"
)


def write(path, rows):
    def feature(v):
        if isinstance(v, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[v]))
        v = np.ravel(v)
        return (
            tf.train.Feature(int64_list=tf.train.Int64List(value=v))
            if v.dtype.kind == "i"
            else tf.train.Feature(float_list=tf.train.FloatList(value=v))
        )

    with tf.io.TFRecordWriter(str(path)) as file:
        for row in rows:
            file.write(
                tf.train.Example(
                    features=tf.train.Features(
                        feature={k: feature(v) for k, v in row.items()}
                    )
                ).SerializeToString()
            )


def hmr2_row(seed=0, **changes):
    points = np.c_[np.random.default_rng(seed).uniform(5, 45, (19, 2)), np.ones(19)]
    return {
        "image_raw": PICTURE,
        "keypoints_2d": points,
        "has_3d": np.array(0),
        **changes,
    }


def hmr_row(**changes):
    xy = np.random.default_rng(1).uniform(5, 45, (2, 14))
    return {
        "image/x": xy[0],
        "image/y": xy[1],
        "image/visibility": np.ones(14, int),
        "image/encoded": PICTURE,
        "image/filename": b"a.jpg",
        **changes,
    }


@real
def test_real_records(tmp_path):
    facts = convert_hmr2_records(RECORDS, tmp_path / "r", workers=1, progress=False)
    assert (
        facts["read"] == 10005
        and facts["written"] == 5
        and facts["dropped"] == {"pose without a picture": 10000}
    )
    z = np.load(REAL / "goldens" / "records_goldens.npz")
    for split, unit in (("train", 1), ("val", 1), ("test", 1000)):
        people = list(examples(tmp_path / "r", split))
        kp2d, kp3d = (
            z[f"dataset_000_{split}_keypoints_2d"],
            z[f"dataset_000_{split}_keypoints_3d"],
        )
        assert len(people) == len(kp2d)
        for e, two, three in zip(people, kp2d, kp3d):
            np.testing.assert_array_equal(e.kp2d[:14], two[:14, :2])
            # pelvis, spine, head, which hmr2.0 trains as nose and eyes
            np.testing.assert_array_equal(e.kp2d[-3:], two[14:17, :2])
            np.testing.assert_allclose(e.kp3d[:14], three / unit, rtol=1e-6)
            assert (
                0.5 < np.ptp(e.kp3d[:14], axis=0).max() < 2.3
                and np.isnan(e.kp2d[14:21]).all()
            )
            hips, pelvis = e.kp2d[[2, 3]].mean(0), e.kp2d[e.names.index("mpi_pelvis")]
            assert np.linalg.norm(hips - pelvis) < 8


@real
def test_real_poses():
    poses, betas = read_poses(RECORDS / "smpl_000_train.tfrecord")
    first = np.load(REAL / "goldens" / "records_goldens.npz")["smpl_000_train_first4"]
    assert poses.shape == (10000, 24, 3) and betas.shape == (10000, 10)
    np.testing.assert_array_equal(np.c_[poses[:4].reshape(4, 72), betas[:4]], first)


def test_every_record_is_accounted_for(tmp_path):
    nothing = np.zeros((19, 3))
    one_point = nothing.copy()
    one_point[3] = [7, 8, 1]
    bad = np.c_[np.full((19, 2), np.nan), np.ones(19)]
    rows = [
        hmr2_row(),
        hmr2_row(keypoints_2d=nothing),
        hmr2_row(keypoints_2d=one_point),
        hmr2_row(keypoints_2d=bad),
        hmr2_row(image_raw=b"no picture"),
        {"something": np.array(3)},
        hmr2_row(1),
    ]
    write(tmp_path / "train.tfrecord", rows)
    facts = convert_hmr2_records(tmp_path, tmp_path / "r", workers=1, progress=False)
    assert (facts["read"], facts["written"]) == (7, 2)
    assert facts["dropped"] == {
        "image unreadable": 1,
        "not a record of hmr2": 1,
        "too few points": 3,
    }


def test_a_damaged_file_is_named_or_taken_as_far_as_it_goes(tmp_path):
    file = tmp_path / "train.tfrecord"
    write(file, [hmr2_row(i) for i in range(3)])
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match="train.tfrecord: not a whole TFRecord file"):
        convert_hmr2_records(file, tmp_path / "r", workers=1, progress=False)
    facts = convert_hmr2_records(
        file, tmp_path / "s", workers=1, progress=False, skip_bad=True
    )
    assert facts["written"] == 2 and facts["dropped"] == {
        "file damaged from here on": 1
    }


def test_a_camera_that_does_not_fit_is_left_out(tmp_path):
    kp3d = np.c_[np.random.default_rng(0).uniform(-0.5, 0.5, (14, 2)), np.full(14, 4.0)]
    xy = 100 * kp3d[:, :2] / 4 + [25, 30]
    row = hmr_row(
        **{
            "image/x": xy[:, 0],
            "image/y": xy[:, 1],
            "mosh/gt3d": kp3d,
            "meta/has_3d": np.array(0),
            "mosh/pose": np.full(72, -1.0),
        }
    )
    write(
        tmp_path / "a.tfrecord",
        [
            row | {"image/cam": np.array([100.0, 25, 30])},
            row | {"image/cam": np.array([900.0, 25, 30])},
        ],
    )
    convert_hmr_records(tmp_path, tmp_path / "r", workers=1, progress=False)
    fits, does_not = examples(tmp_path / "r")
    assert (
        fits.focal == 100
        and fits.center.round(9).tolist() == [25, 30]
        and does_not.focal is None
    )
    assert fits.pose is None and np.isfinite(fits.kp3d[:14]).all()


def test_occluded_points_of_coco_stay_occluded(tmp_path):
    seen = np.array([2, 1, 0, *[2] * 11])
    write(
        tmp_path / "train.tfrecord",
        [
            hmr_row(
                **{
                    "image/visibility": seen,
                    "image/face_pts": np.array([*np.ones((2, 5)) * 9, [2, 2, 1, 0, 0]]),
                }
            )
        ],
    )
    convert_hmr_records(tmp_path, tmp_path / "r", workers=1, progress=False)
    (one,) = examples(tmp_path / "r")
    assert one.state.tolist() == [*seen.tolist(), 2, 2, 1, 0, 0]
