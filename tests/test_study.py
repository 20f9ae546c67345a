"""What a study's tables must say: clusters by subject, no mean of two models."""

import numpy as np
import pandas as pd
import pytest

from hmr_nb.basics.files import shipped
from hmr_nb.basics.values import Results, cluster_of
from hmr_nb.model.weights import small_hmr
from hmr_nb.study import evaluate as evaluation
from hmr_nb.study.causes import walk_effects
from hmr_nb.study.distances import compare_domains
from hmr_nb.study.intervals import cluster_interval, error_by
from hmr_nb.study.report import Page, add_domain_study, study_answer, study_tables


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
    """Taken by the sequence's name alone each one holds as much of both subjects, and
    the interval is a fiftieth of what it should be."""
    table = of_human36m({"S9": 60.0, "S11": 85.0})
    by_name = error_by(table.drop(columns="subject")).iloc[0]
    row = error_by(table).iloc[0]
    assert (row.clusters, by_name.clusters) == (30, 15)
    # 30 sequences of two kinds, 12.5 mm off the mean: ± t * 12.5 / sqrt(30)
    assert width(row) == pytest.approx(2 * 2.05 * 12.5 / np.sqrt(30), rel=0.05)
    assert width(by_name) < 1
    assert cluster_of(table).nunique() == 30


def test_cameras_of_one_recording_are_one_cluster():
    table = of_human36m({"S9": 60.0})
    seen = pd.concat([table.assign(camera=c) for c in ("1", "2", "3")])
    named = seen.assign(sequence=seen.sequence + "_" + seen.camera)
    assert cluster_of(seen).nunique() == cluster_of(named).nunique() == 15


@pytest.mark.parametrize("clusters", [4, 6, 8, 15, 37])
def test_intervals_hold_what_they_promise(clusters):
    "Of 500 studies 95 % of intervals contain the truth, within chance."
    rng, held = np.random.default_rng(clusters), 0
    sequence = np.repeat(np.arange(clusters), 30)
    for _ in range(500):
        level = rng.normal(100, 20, clusters)[sequence]
        found = cluster_interval(level + rng.normal(0, 40, len(sequence)), sequence)
        held += found["low"] <= 100 <= found["high"]
    assert 0.92 <= held / 500 <= 0.98


def test_one_cluster_gives_no_interval():
    table = of_human36m({"S9": 60.0}, sequences=1, frames=40)
    row = error_by(table).iloc[0]
    assert np.isnan(row.low) and row.note == "one cluster: no interval"
    with pytest.raises(ValueError, match="at least two clusters"):
        cluster_interval(table.err_mm, cluster_of(table))
    text = study_answer(study_tables(Results(table)))[0]
    assert "one cluster: no interval" in text and "[" not in text


def of_two_domains(subjects, people, seed=0):
    "People of two domains with one distribution of shapes: 20 subjects against many."
    rng = np.random.default_rng(seed)
    who = np.concatenate([np.repeat(np.arange(subjects), 7), 1000 + np.arange(people)])
    own = {s: rng.normal(size=10) for s in np.unique(who)}
    table = pd.DataFrame({"domain": np.where(who < 1000, "a", "b"), "subject": who})
    table = table.astype(str).assign(sequence="x")
    return table, {"shape": np.stack([own[s] for s in who])}


def test_twenty_people_seen_often_are_twenty():
    "p < 0.05 in about 5 % of sets that differ in nothing; frame by frame in most."
    alarms = frame_by_frame = 0
    for seed in range(60):
        table, spaces = of_two_domains(20, 150, seed)
        row = compare_domains(table, spaces, repeats=199, seed=seed).iloc[0]
        assert (row.clusters_a, row.clusters_b) == (20, 150)
        alarms += row.p < 0.05
        alone = table.assign(subject=np.arange(len(table)).astype(str))
        frame_by_frame += compare_domains(alone, spaces, repeats=199).p[0] < 0.05
    assert alarms / 60 <= 0.13 < 0.5 < frame_by_frame / 60  # 8 % and two errors of 60


def test_a_domain_split_in_two_does_not_differ_from_itself():
    "And what differs by half a standard deviation is found."
    rng, alarms, found = np.random.default_rng(0), 0, 0
    who = np.arange(150).astype(str)
    table = pd.DataFrame({"domain": ["a"] * 75 + ["b"] * 75, "subject": who})
    for seed in range(100):
        values = rng.normal(size=(150, 3))
        halves = {"half": values}
        moved = {"moved": values + 0.5 * (np.arange(150) >= 75)[:, None]}
        asked = {"repeats": 199, "seed": seed}
        alarms += compare_domains(table, halves, **asked).p[0] < 0.05
        found += compare_domains(table, moved, **asked).p[0] < 0.05
    assert alarms <= 11 and found >= 60


def test_effects_add_up_and_nothing_comes_of_nothing():
    "A planted cause, one with an interaction, and a factor that does nothing at all."
    rng, rows = np.random.default_rng(0), []
    for scene in range(40):
        order = rng.permutation(["place", "camera", "light", "zoom"])
        for step in range(5):
            on = set(order[:step])
            place, camera = "place" in on, "camera" in on
            error = 90 + scene + 100 * place + 50 * camera - 40 * place * camera
            error -= 12 * ("light" in on)
            rows.append(("m", scene, step, "|".join(order[:step]), error))
    columns = ["model", "scene", "step", "swapped", "mpjpe_mm"]
    effects = walk_effects(pd.DataFrame(rows, columns=columns)).set_index("factor")
    assert effects.effect_mm.sum() == pytest.approx(98, abs=1e-9)
    assert effects.effect_mm["light"] == pytest.approx(-12, abs=1e-9)
    assert effects.loc["zoom", ["effect_mm", "low", "high"]].tolist() == [0, 0, 0]
    assert effects.effect_mm["place"] == pytest.approx(80, abs=8)
    assert effects.effect_mm.idxmax() == "place"


def test_an_evaluation_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    "Stopped after its first part; the same call makes the others, and only them."
    data, how = shipped("samples/studio"), {"part": 24, "batch_size": 24}
    asked = {"models": {"m/1": small_hmr}, "data": data, "progress": False, **how}
    made, save = [], Results.save

    def watched(self, folder):
        made.append(folder.name)
        if len(made) == 2:
            raise KeyboardInterrupt
        return save(self, folder)

    monkeypatch.setattr(Results, "save", watched)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate_files(out=tmp_path / "stopped", **asked)
    assert not (tmp_path / "stopped" / "errors.csv.gz").exists()
    evaluation.evaluate_files(out=tmp_path / "stopped", **asked)
    assert made == ["00-000000000", "00-000000024", "00-000000024"]
    stopped = Results.load(tmp_path / "stopped")
    assert stopped.models == ("m/1",) and stopped.points["pred"].shape == (48, 14, 3)
    assert stopped.frames["sample"].tolist() == list(range(48))
    assert not (tmp_path / "stopped" / "parts").exists()
    with pytest.raises(ValueError, match="no records of split 'train' in"):
        evaluation.evaluate_files(out=tmp_path / "none", **asked, split="train")
    assert not (tmp_path / "none").exists()


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
    )  # as version 0.3.0 called them
    rng = np.random.default_rng(0)
    poses = {"h36m": rng.normal(0, 0.3, (len(table), 24, 3))}
    page = add_domain_study(Page("one domain"), Results(table, poses))
    (shown,) = [p for p in page.parts if "MPJPE, mm</th>" in p]
    assert "<td>120</td>" in shown  # 2 subjects, 15 sequences, 4 frames


def test_every_number_of_the_sentences_is_in_the_tables(tmp_path, run):
    "Two models on two domains: read the csv files, write the sentences again."
    rng = np.random.default_rng(0)
    base = of_human36m({"S9": 60.0, "S11": 85.0})
    both = pd.concat([base, base.assign(domain="street", err_mm=base.err_mm * 2)])
    both = both.assign(sample=np.arange(len(both)), model="one").reset_index(drop=True)
    worse = both.err_mm + rng.normal(20, 5, len(both))
    table = pd.concat([both, both.assign(model="two", err_mm=worse)])
    Results(table.reset_index(drop=True)).save(tmp_path / "r")
    code, out, _ = run("domain", tmp_path / "r", "--out", tmp_path / "s")
    assert code == 0
    names = ("errors", "differences", "left_out")
    words = {"note": str}
    read = {n: pd.read_csv(tmp_path / "s" / f"{n}.csv", dtype=words) for n in names}
    said = study_answer(read)
    assert out.splitlines()[0] == said[0]
    page = (tmp_path / "s" / "report.html").read_text()
    assert all(sentence in page for sentence in said)
    rows = read["errors"].set_index(["model", "domain"])
    for model in ("one", "two"):
        for domain in ("h36m", "street"):
            assert f"{rows.loc[(model, domain), 'mean']:.0f} mm [" in said[0]
    assert "two is 2" in said[1] and "worse than one" in said[1]


def test_results_of_0_3_0_are_read(tmp_path):
    "Without the columns model and camera."
    table = of_human36m({"S9": 60.0}).assign(split="test")
    table.to_csv(tmp_path / "errors.csv.gz", index=False)
    np.savez(tmp_path / "poses.npz", h36m=np.zeros((len(table), 24, 3), np.float32))
    results = Results.load(tmp_path)
    assert results.models == ("",) and set(results.table.camera) == {""}
    assert len(results.people) == len(table) and "Results(one model" in repr(results)
