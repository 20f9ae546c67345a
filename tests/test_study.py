"""What a study's tables must say: clusters by subject, no mean of two models."""

import numpy as np
import pandas as pd
import pytest

from hmr_nb.basics.values import Results, cluster_of
from hmr_nb.study.distances import error_by
from hmr_nb.study.report import Page, add_domain_study


def of_human36m(subject_mm, noise_mm=0.5, sequences=15, frames=4, seed=0):
    "Sequences of the same names by several subjects, each of another difficulty."
    rng = np.random.default_rng(seed)
    rows = [
        {
            "domain": "h36m",
            "subject": subject,
            "sequence": f"Walking {s}",
            "frame": frame,
            "keypoint": "knee_l",
            "err_mm": mm + rng.normal(0, noise_mm),
        }
        for subject, mm in subject_mm.items()
        for s in range(sequences)
        for frame in range(frames)
    ]
    table = pd.DataFrame(rows)
    return table.assign(sample=range(len(table)), err_pa_mm=table.err_mm / 2)


def width(row):
    return float(row.high - row.low)


def test_sequences_of_two_subjects_are_not_one_cluster():
    """Drawn by the sequence's name alone each draw holds as much of both subjects, and
    the interval is a fiftieth of what it should be."""
    table = of_human36m({"S9": 60.0, "S11": 85.0})
    by_name = error_by(table.drop(columns="subject")).iloc[0]
    row = error_by(table).iloc[0]
    assert (row.groups, by_name.groups) == (30, 15)
    # 30 sequences of two kinds, 12.5 mm off the mean: ± 1.96 * 12.5 / sqrt(30)
    assert width(row) == pytest.approx(2 * 1.96 * 12.5 / np.sqrt(30), rel=0.2)
    assert width(by_name) < 1
    assert cluster_of(table).nunique() == 30


def test_whole_sequences_are_drawn_where_there_are_eight():
    """Frames of one sequence resemble each other: forty frames of each of ten sequences
    tell no more than ten numbers; of seven sequences frames are drawn."""
    rng = np.random.default_rng(1)

    def table(sequences):
        level = rng.normal(80, 10, sequences)
        rows = [(f"s{i}", f, level[i]) for i in range(sequences) for f in range(40)]
        made = pd.DataFrame(rows, columns=["sequence", "frame", "err_mm"])
        return made.assign(domain="a", subject="")

    ten = table(10)
    row, spread = error_by(ten).iloc[0], ten.err_mm.std()
    assert row.groups == 10
    assert width(row) == pytest.approx(2 * 1.96 * spread / np.sqrt(10), rel=0.3)
    assert error_by(table(7)).groups.tolist() == [7 * 40]


def test_two_models_are_never_averaged(tmp_path):
    one = of_human36m({"S9": 60.0, "S11": 85.0}).assign(model="one")
    two = one.assign(model="two", err_mm=one.err_mm + 100)
    poses = {"h36m": np.zeros((len(one), 24, 3))}
    for table in (one, two):
        Results(table, poses).save(tmp_path / table.model[0])
    both = Results.load([tmp_path / "one", tmp_path / "two"])
    means = error_by(both.table)
    assert means.model.tolist() == ["one", "two"]
    np.testing.assert_allclose(np.diff(means["mean"]), 100, atol=0.01)
    found = both.summary().set_index("model").mpjpe_mm
    assert found["two"] - found["one"] == pytest.approx(100, abs=0.01)
    # the people were asked about twice and stand there once
    assert len(both.people) == len(one) == len(both.poses["h36m"])
    assert both.table["sample"].nunique() == 2 * len(one)


def test_frames_of_all_subjects_are_counted():
    table = of_human36m({"S9": 60.0, "S11": 85.0}).assign(
        azimuth=0.0, elevation=0.0, person_px=100.0, seen=1.0
    )
    rng = np.random.default_rng(0)
    poses = {"h36m": rng.normal(0, 0.3, (len(table), 24, 3))}
    page = add_domain_study(Page("one domain"), Results(table, poses))
    (shown,) = [p for p in page.parts if "frames</th>" in p]
    assert "<td>120</td>" in shown  # 2 subjects, 15 sequences, 4 frames


def test_results_of_0_3_0_are_read(tmp_path):
    "Without the columns model and camera."
    table = of_human36m({"S9": 60.0}).assign(split="test")
    table.to_csv(tmp_path / "errors.csv.gz", index=False)
    np.savez(tmp_path / "poses.npz", h36m=np.zeros((len(table), 24, 3), np.float32))
    results = Results.load(tmp_path)
    assert results.models == ("",) and set(results.table.camera) == {""}
    assert len(results.people) == len(table) and "Results(one model" in repr(results)
