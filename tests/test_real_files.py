"Readers on real files that may not be shipped; skipped where they are absent."

from pathlib import Path

import numpy as np
import pytest

from hmr_nb.basics.keypoints import SMPL_JOINTS
from hmr_nb.records.mocap import load_mocap
from hmr_nb.records.open_poses import place_joints, within_limits

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"


@pytest.fixture
def recording():
    path = REAL / "smpl_poses" / "cmu_smpl_01_01.pkl"
    if not path.is_file():
        pytest.skip(
            "no recorded motion beside the checkout (shared/real/smpl_poses): licensed,"
            " not shipped"
        )
    return path


def test_recorded_motion_reads(recording):
    motion = load_mocap(recording)
    assert (
        motion.poses.shape[1:] == (24, 3)
        and len(motion.trans) == len(motion.poses)
        and motion.betas.shape == (10,)
    )
    assert np.isfinite(motion.poses).all() and motion.fps is None


def test_recorded_motion_is_thinned_and_says_so(recording):
    whole = load_mocap(recording)
    with pytest.warns(UserWarning, match="120 frames a second assumed"):
        thin = load_mocap(recording, fps=12)
    np.testing.assert_array_equal(thin.poses, whole.poses[::10])


def test_recorded_people_bend_as_our_limits_say(recording):
    """The conventions of the sampler (which way knees and elbows bend) are those of
    real SMPL data."""
    poses = load_mocap(recording).poses[::5]
    assert within_limits(poses).mean() > 0.95
    flat = poses.copy()
    flat[:, 0] = 0
    knee, ankle = (
        place_joints(flat)[:, SMPL_JOINTS.index(f"left_{n}")] for n in ("knee", "ankle")
    )
    hip = place_joints(flat)[:, SMPL_JOINTS.index("left_hip")]
    thigh, shin = knee - hip, ankle - knee
    # along the body's left: positive when the shin folds back
    bend = np.cross(thigh, shin)[:, 0]
    assert (bend > -0.02).mean() > 0.95
