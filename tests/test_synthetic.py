"""Rendered domains: a picture depends on (domain, seed, index) alone, not on processes,
interruptions or counts."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from hmr_nb.basics.camera import Camera, perspective
from hmr_nb.basics.keypoints import keypoint_set
from hmr_nb.basics.rendering import render, silhouette
from hmr_nb.making import domains
from hmr_nb.making.domains import (
    _NAMES,
    DOMAINS,
    render_domain,
    render_example,
    sample_scene,
)
from hmr_nb.records.reader import card, examples

QUICK = {"size": 48, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def one_layer():
    "One compiled SMPL layer for all tests of this file."
    QUICK["smpl"] = domains.smpl_layer(domains.open_body())
    yield
    del QUICK["smpl"]


def same_bytes(a, b):
    files = sorted(f.name for f in a.iterdir())
    assert files == sorted(f.name for f in b.iterdir()) and "card.json" in files
    return all((a / f).read_bytes() == (b / f).read_bytes() for f in files)


def facts(scene):
    "All that a scene holds; a camera by its arrays."
    camera = scene.camera
    return *scene._replace(camera=0), camera.K, camera.R, camera.t


@pytest.mark.parametrize("name", DOMAINS)
def test_scene_is_a_function_of_its_arguments(name):
    one, again = sample_scene(name, 5, 200), sample_scene(name, 5, 200)
    for a, b in zip(facts(one), facts(again), strict=True):
        assert np.array_equal(a, b)
    for other in (sample_scene(name, 6, 200), sample_scene(name, 5, 201)):
        assert not np.array_equal(one.pose, other.pose)
    assert not np.array_equal(one.betas, sample_scene(name, 6, 200).betas)
    assert (
        one.pose.shape == (24, 3)
        and np.isfinite(one.pose).all()
        and np.abs(one.betas).max() <= 2
    )
    assert np.isclose(np.linalg.norm(one.up), 1) and one.foot[2] > 1


@pytest.mark.parametrize("name", DOMAINS)
def test_parallel_equals_serial(name, tmp_path):
    render_domain(name, 20, tmp_path / "serial", seed=3, workers=1, **QUICK)
    render_domain(name, 20, tmp_path / "parallel", seed=3, workers=2, **QUICK)
    assert same_bytes(tmp_path / "serial", tmp_path / "parallel")


def test_a_dask_cluster_renders_the_same(tmp_path):
    "Two worker processes of a cluster that runs already."
    from dask.distributed import LocalCluster

    render_domain("studio", 20, tmp_path / "serial", seed=3, workers=1, **QUICK)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        render_domain(
            "studio",
            20,
            tmp_path / "cluster",
            seed=3,
            workers="dask://" + cluster.scheduler_address.removeprefix("tcp://"),
            **QUICK,
        )
    assert same_bytes(tmp_path / "serial", tmp_path / "cluster")


def test_resume_after_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(domains, "_SHARD", 6)
    render_domain("studio", 20, tmp_path / "whole", workers=1, **QUICK)
    _render_task = domains._render_task

    def dies(scenes, *rest):
        if scenes[0].index > 0:
            raise KeyboardInterrupt
        return _render_task(scenes, *rest)

    monkeypatch.setattr(domains, "_render_task", dies)
    with pytest.raises(KeyboardInterrupt):
        render_domain("studio", 20, tmp_path / "broken", workers=1, **QUICK)
    # 16 pictures done, whole shards kept
    assert len(list((tmp_path / "broken").glob("*.tfrecord"))) == 2
    monkeypatch.setattr(domains, "_render_task", _render_task)
    with pytest.raises(ValueError, match="resume"):
        render_domain("studio", 20, tmp_path / "broken", workers=1, **QUICK)
    render_domain("studio", 20, tmp_path / "broken", workers=1, resume=True, **QUICK)
    assert same_bytes(tmp_path / "whole", tmp_path / "broken")
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "whole").iterdir()}
    # nothing left to do
    facts = render_domain(
        "studio", 20, tmp_path / "whole", workers=1, resume=True, **QUICK
    )
    assert facts["written"] == 20 and before == {
        f: f.stat().st_mtime_ns for f in (tmp_path / "whole").iterdir()
    }


@pytest.mark.parametrize("count", [1, 17])
def test_small_counts_hold_their_truth(count, tmp_path):
    facts = render_domain(
        "street", count, tmp_path / "r", seed=1, workers=1, split="val", **QUICK
    )
    assert facts["written"] == facts["with_3d"] == facts[
        "with_smpl"
    ] == count and facts["splits"] == {"val": count}
    found = list(examples(tmp_path / "r"))
    assert [e.frame for e in found] == list(range(count))
    for e in found:
        assert (
            tuple(e.names) == _NAMES
            and e.image.shape == (48, 48, 3)
            and set(e.state) <= {1, 2}
        )
        assert np.allclose(e.kp2d, perspective(e.kp3d, e.focal, e.center), atol=2e-3)
        # the photograph's middle
        assert np.allclose(e.crop.apply(np.full((1, 2), 499.5))[0], e.center, atol=2e-3)
        inside = ((e.kp2d > -0.5) & (e.kp2d < 47.5)).all(1)
        assert (
            inside.mean() > 0.4
            and not (e.state[~inside] == 2).any()
            and (e.kp3d[:, 2] > 0.5).all()
        )
        assert np.isclose(max(e.box[2:]), 48 / 1.5, atol=1e-3)
        # the photograph's own camera
        assert np.allclose(e.crop.apply(e.camera.project(e.kp3d)), e.kp2d, atol=2e-2)


def test_other_seeds_give_other_people(tmp_path):
    a, b = (
        [e.pose for e in examples(tmp_path / s)]
        for s in ("a", "b")
        if render_domain("studio", 2, tmp_path / s, seed=ord(s), workers=1, **QUICK)
    )
    assert all(not np.allclose(x, y) for x in a for y in b)


def test_errors_are_clear(tmp_path):
    with pytest.raises(ValueError, match="studio"):
        render_domain("hall", 2, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    render_domain("studio", 1, tmp_path / "y", workers=1, **QUICK)
    with pytest.raises(ValueError, match="already holds"):
        render_domain("studio", 1, tmp_path / "y", workers=1, **QUICK)
    with pytest.raises(ValueError, match="other settings"):
        render_domain(
            "studio", 1, tmp_path / "y", seed=9, workers=1, resume=True, **QUICK
        )
    assert card(tmp_path / "y")["options"]["seed"] == 0


def test_a_street_without_a_box_between_camera_and_person_renders():
    # every box of this scene stood before the person
    rendered = render_example(
        "street", 3, 2184, size=48, want=("mask",), smpl=QUICK["smpl"]
    )
    assert (rendered.mask >= 0).any()


def test_workers_need_no_tensorflow():
    code = (
        "import sys, hmr_nb.making.domains; sys.exit(bool({'tensorflow', 'keras'} &"
        " set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_bad_numbers_are_refused_before_anything_is_written(tmp_path):
    for bad in ({"count": 0}, {"count": 2, "seed": -1}, {"count": 2, "size": 3}):
        with pytest.raises(ValueError, match="expected count"):
            render_domain("street", out=tmp_path / "x", **bad)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        render_domain("street", 2, tmp_path / "file" / "x", workers=1, **QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_want_is_checked_and_needs_part_labels():
    with pytest.raises(ValueError, match="'mask' or 'depth', got 'normals'"):
        render_example("street", 0, 0, want=["normals"])
    with pytest.raises(ValueError, match="index -1"):
        render_example("street", 0, -1)
    bare = replace(domains.open_body(), extras={})
    with pytest.raises(ValueError, match="no part labels"):
        render_example("studio", 0, 0, size=48, body=bare, smpl=QUICK["smpl"])
    assert np.isfinite(
        render_example(
            "studio", 0, 0, size=48, want=["depth"], body=bare, smpl=QUICK["smpl"]
        ).depth
    ).any()


@pytest.fixture(scope="module")
def many(one_layer):
    "Thirty pictures of each domain with mask and depth, and their meshes."
    body, smpl = domains.open_body(), QUICK["smpl"]
    wardrobe, found = domains.wardrobe_of(body, smpl), {}
    for name in DOMAINS:
        scenes = domains._sample_block(name, 11, 0)
        V, kp3d = domains._pose_block(smpl, scenes)
        rendered = [
            domains._render_scene(*one, wardrobe, size=96, want=("mask", "depth"))
            for one in list(zip(scenes, V, kp3d))[:30]
        ]
        found[name] = [(r, v + r.example.trans) for r, v in zip(rendered, V)]
    return body, found


@pytest.mark.parametrize("name", DOMAINS)
def test_mask_and_depth_are_those_of_the_mesh(name, many):
    body, found = many
    for r, V in found[name]:
        e, shows = r.example, r.mask >= 0
        assert np.array_equal(shows, np.isfinite(r.depth))
        camera = Camera.simple(e.focal, e.center)
        truth = render(V, body.faces, camera, (96, 96), supersample=2)
        assert not (shows & ~truth.mask).any() and shows.sum() > 0.2 * truth.mask.sum()
        assert np.allclose(r.depth[shows], truth.depth[shows], atol=2e-3)
        labels = body.extras["part_labels"][body.faces[truth.face[shows]]]
        # the part of one of the triangle's corners
        assert (labels == r.mask[shows][:, None]).any(1).all()
        if name == "studio":
            outline = silhouette(V, body.faces, camera, (96, 96))
            # nothing stands in the way there, but for a stool
            assert (shows & outline).sum() / outline.sum() > 0.75


def test_states_agree_with_the_pictures(many):
    """Points beyond the picture are never visible; nearly every visible point lies on a
    pixel of the person; hidden things are found."""
    _, found = many
    on_person, shares = [], {}
    for name in DOMAINS:
        for r, _ in found[name]:
            e = r.example
            col, row = np.clip(np.rint(e.kp2d), 0, 95).astype(int).T
            near = np.array(
                [
                    (r.mask[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] >= 0).any()
                    for x, y in zip(col, row)
                ]
            )
            on_person += near[e.state == 2].tolist()
            inside = ((e.kp2d > -0.5) & (e.kp2d < 95.5)).all(1)
            assert not (e.state[~inside] == 2).any()
        shares[name] = np.mean([(r.example.state == 2).mean() for r, _ in found[name]])
    assert np.mean(on_person) > 0.99
    assert shares["studio"] > max(shares["street"], shares["sports"])


def test_people_stand_on_the_floor(many):
    "The lowest point of the body is on the ground, but for athletes in the air."
    _, found = many
    for name in DOMAINS:
        gaps, scenes = [], domains._sample_block(name, 11, 0)
        for r, V in found[name]:
            scene = scenes[r.example.frame]
            gaps.append((V @ scene.up).min() - scene.up @ scene.foot)
        gaps = np.array(gaps)
        assert (gaps > -2e-3).all() and gaps.max() < 0.65
        assert (gaps > 0.03).any() == (name == "sports"), gaps


def test_every_point_of_the_common_sets_is_there():
    for s in (
        "lsp14",
        "cocoplus19",
        "coco17",
        "mpii16",
        "openpose18",
        "body25",
        "smpl24",
    ):
        assert set(keypoint_set(s).names) <= set(_NAMES)


def test_studio_has_few_people_and_four_cameras():
    scenes = domains._sample_block("studio", 2, 0)
    by_subject = {s.subject: s.betas for s in scenes}
    assert len(by_subject) <= 20 and all(
        np.array_equal(s.betas, by_subject[s.subject]) for s in scenes
    )
    assert len({(s.camera_number, round(s.camera.focal)) for s in scenes}) == 4
    assert len({domains._look_of(s).shirt for s in scenes}) > 120  # but many clothes
    assert len(
        {s.betas.tobytes() for s in domains._sample_block("street", 2, 0)}
    ) == len(scenes)
