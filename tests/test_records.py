"""Records: round trips, kill and resume, damage, order and mixing."""

import ast
import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hmr_nb.basics.camera import Camera, Crop
from hmr_nb.basics.keypoints import KeypointSet, keypoint_set
from hmr_nb.basics.values import Identity
from hmr_nb.records.card import card_table
from hmr_nb.records.pictures import (
    cut_person,
    decode_jpeg,
    encode_jpeg,
    stored_crop,
    stored_jpeg,
)
from hmr_nb.records.reader import card, examples, source_set
from hmr_nb.records.schema import Sample, decode_sample, encode_sample
from hmr_nb.records.stream import record_dataset
from hmr_nb.records.workers import convert_items
from hmr_nb.records.writer import Dropped, RecordWriter, file_digest

NAMES = ["nose", "wrist_l", "wrist_r"]
QUIET = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1"}
PIXEL = np.zeros((8, 9, 3), np.uint8)


def person(i, **changes):
    kp = np.array([[i, 1], [2, i], [np.nan, 3]], float)
    return Sample(
        NAMES,
        **{
            "kp2d": kp,
            "image": PIXEL + i % 200,
            "source": f"{i}.jpg",
            "identity": Identity(frame=i),
            **changes,
        },
    )


def who(i):
    return Identity(split="train" if i < 14 else "test", frame=i)


def write(folder, n=20, shard_size=6, **keywords):
    with RecordWriter(folder, "persons", shard_size=shard_size, **keywords) as writer:
        for i in range(writer.kept, n):
            writer.write(
                Dropped(f"{i}.jpg", "odd, or so")
                if i % 5 == 3
                else person(i, identity=who(i))
            )
    return folder


numbers = st.floats(-1e4, 1e4, width=32) | st.just(float("nan"))
finite = st.floats(-1e4, 1e4, width=32)
lengths = st.floats(1, 1e4, width=32)
crops = st.builds(
    lambda s, x, y: Crop(np.array([[s, 0, x], [0, s, y]]), PIXEL.shape[:2]),
    st.floats(0.0625, 4, width=32),
    finite,
    finite,
)
cameras = st.builds(
    lambda fx, fy, cx, cy, lens: Camera(
        np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), lens
    ),
    lengths,
    lengths,
    finite,
    finite,
    st.none() | hnp.arrays(np.float32, 5, elements=finite),
)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), k=st.integers(1, 30))
def test_what_goes_in_comes_out(data, k):
    def arrays(*shape):
        return data.draw(hnp.arrays(np.float32, shape, elements=numbers))

    def maybe(*shape):
        return arrays(*shape) if data.draw(st.booleans()) else None

    text = data.draw(st.text(max_size=20))
    kp = arrays(k, 2)
    state = np.where(
        np.isfinite(kp).all(1),
        data.draw(hnp.arrays(int, k, elements=st.integers(0, 2))),
        0,
    )
    one = Sample(
        [f"p{i}" for i in range(k)],
        kp,
        state,
        PIXEL,
        kp3d=maybe(k, 3),
        crop=data.draw(crops),
        box=maybe(4),
        pose=maybe(24, 3),
        betas=maybe(10),
        trans=maybe(3),
        camera=data.draw(st.none() | cameras),
        source=text,
        gender=data.draw(st.sampled_from(["", "neutral", "male", "female"])),
        identity=Identity(
            text,
            "train",
            text,
            text,
            data.draw(st.text(max_size=20)),
            data.draw(st.integers(-(2**60), 2**60)),
        ),
    )
    record = encode_sample(one)
    back = decode_sample(record, one.names)
    assert (one.camera is None) == (back.camera is None)
    assert one.crop.size == back.crop.size == PIXEL.shape[:2]
    pairs = [(one.crop.affine, back.crop.affine)]
    if one.camera is not None and back.camera is not None:
        pairs += [(one.camera.K, back.camera.K)]
        pairs += [(one.camera.distortion, back.camera.distortion)]
    fields = "kp2d state kp3d box pose betas trans focal center"
    pairs += [(getattr(one, f), getattr(back, f)) for f in fields.split()]
    for a, b in pairs:
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b)
            assert np.shape(a) == np.shape(b)
    assert (back.gender, back.has_smpl) == (
        one.gender,
        one.pose is not None and one.betas is not None,
    )
    assert (back.source, back.identity) == (one.source, one.identity)
    assert encode_sample(back) == record
    assert (
        np.isnan(back.kp2d[back.state == 0]).all()
        and np.isfinite(back.kp2d[back.state > 0]).all()
    )


def test_what_is_read_is_written_or_dropped(tmp_path):
    facts = card(write(tmp_path / "r"))
    assert (
        facts["read"] == 20
        and facts["written"] == 16
        and facts["dropped"] == {"odd, or so": 4}
    )
    assert facts["splits"] == {"train": 11, "test": 5}
    assert card_table(tmp_path / "r").loc["wrist_r"].tolist() == [0, 0, 16]
    assert (tmp_path / "r" / "dropped.csv").read_text().count('"odd, or so"') == 4


@pytest.mark.parametrize("crash", [0, 1, 5, 6, 7, 12, 13, 14, 15, 19])
def test_resumed_is_the_same_bytes(tmp_path, crash):
    class Stop(Exception):
        pass

    whole = write(tmp_path / "whole")
    with (
        pytest.raises(Stop),
        RecordWriter(tmp_path / "r", "persons", shard_size=6) as writer,
    ):
        for i in range(20):
            if i == crash:
                raise Stop
            writer.write(
                Dropped(f"{i}.jpg", "odd, or so")
                if i % 5 == 3
                else person(i, identity=who(i))
            )
    with pytest.raises(ValueError, match="already holds records"):
        write(tmp_path / "r")
    write(tmp_path / "r", resume=True)
    assert {f.name: f.read_bytes() for f in whole.iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "r").iterdir()
    }
    write(tmp_path / "r", resume=True)  # a finished one stays as it is


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_records import *
import hmr_nb.records.writer as records
import tensorflow as tf

def mortal(function):
    def step(*a, **k):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*a, **k)
    return step

parts = records.encode_sample, records._put, os.replace
records.encode_sample, records._put, os.replace = map(mortal, parts)
for left in map(int, sys.argv[1:]):  # so many steps of writing to live
    child = os.fork()
    if not child:
        {job}
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found = sorted(Path({out!r}).glob("[!.]*.tfrecord"))
    shards = [(f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in found]
    print(os.WTERMSIG(status), dict(shards), flush=True)
"""
CLIPS = (
    'with RecordWriter({out!r}, "clips", shard_size=4, resume=True) as w:'
    " convert_items(w, clip, list(range(8)), workers=1, progress=False)"
)


def clip(i):
    "Several people of one item, of which some are dropped."
    return [some(10 * i + j) for j in range(i % 4)]


def test_killed_at_ten_random_moments(tmp_path):
    """kill -9 between any two steps of writing; a run that is resumed each time ends
    with the same bytes."""
    with RecordWriter(tmp_path / "whole", "clips", shard_size=4) as writer:
        convert_items(writer, clip, list(range(8)), workers=1, progress=False)
    out, moments = (
        tmp_path / "killed",
        np.random.default_rng().integers(1, 22, 10).tolist(),
    )
    code = KILLED.format(
        tests=str(Path(__file__).parent), out=str(out), job=CLIPS.format(out=str(out))
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, moments)],
        capture_output=True,
        text=True,
        env=QUIET,
        check=False,
    )
    whole = {f.name: f.read_bytes() for f in (tmp_path / "whole").iterdir()}
    lines = done.stdout.splitlines()
    assert len(lines) == 10 and lines[0].startswith(f"{int(signal.SIGKILL)} "), (
        done.stderr[-800:]
    )
    for line in lines:  # what carries a real name is whole
        status, shards = line.split(" ", 1)
        assert status in ("0", str(int(signal.SIGKILL)))
        assert all(
            hashlib.sha256(whole[f]).hexdigest() == digest
            for f, digest in ast.literal_eval(shards).items()
        ), moments
    with RecordWriter(out, "clips", shard_size=4, resume=True) as writer:
        convert_items(writer, clip, list(range(8)), workers=1, progress=False)
    assert whole == {f.name: f.read_bytes() for f in out.iterdir()}, moments


FULL = """
import os, resource, signal, sys
sys.path.insert(0, {tests!r})
from test_records import *
import tensorflow as tf

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (0, 300, 3000):
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            write(os.path.join({out!r}, str(limit)))
        except OSError as error:
            os._exit(7 if "could not be written" in str(error) else 8)
        os._exit(9)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_full_disk_is_named_and_nothing_half_remains(tmp_path):
    "No file may grow beyond some bytes: what a full disk does, without one."
    code = FULL.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=QUIET,
        check=False,
    )
    assert done.stdout.split() == ["7", "7", "7"], done.stderr[-800:]
    whole = {f.name: f.read_bytes() for f in write(tmp_path / "whole").iterdir()}
    for limit in ("0", "300", "3000"):
        assert not [
            f.name
            for f in (tmp_path / limit).iterdir()
            if ".part" in f.name or f.suffix == ".tfrecord"
        ]
        with pytest.raises(FileNotFoundError, match="no card.json"):
            card(tmp_path / limit)
        write(tmp_path / limit, resume=True)
        assert {f.name: f.read_bytes() for f in (tmp_path / limit).iterdir()} == whole


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(),
    reason="no /proc: a folder in which nobody can write",
)
def test_a_read_only_place_is_named():
    with (
        pytest.raises(
            OSError,
            match="/proc/self/records: the directory for the records cannot be made",
        ),
        RecordWriter("/proc/self/records", "persons"),
    ):
        pass


def test_a_half_written_shard_is_done_again(tmp_path):
    whole = write(tmp_path / "whole")
    with (
        pytest.raises(KeyboardInterrupt),
        RecordWriter(tmp_path / "r", "persons", shard_size=6) as writer,
    ):
        for i in range(13):
            writer.write(Dropped(f"{i}.jpg", "odd, or so") if i % 5 == 3 else person(i))
        raise KeyboardInterrupt
    shard = tmp_path / "r" / "train-00001.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-1])
    (tmp_path / "r" / ".train-00002.7.part.tfrecord").write_bytes(b"half")
    (tmp_path / "r" / ".train-00002.7.part.json").write_bytes(b"{half")
    write(tmp_path / "r", resume=True)
    assert {f.name: f.read_bytes() for f in whole.iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "r").iterdir()
    }


def test_other_settings_are_not_resumed(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        RecordWriter(tmp_path, "persons", shard_size=3),
    ):
        raise KeyboardInterrupt
    with (
        pytest.raises(ValueError, match="shard_size: 3, now 4"),
        RecordWriter(tmp_path, "persons", shard_size=4, resume=True),
    ):
        pass
    with pytest.raises(FileNotFoundError, match="begun and not finished"):
        card(tmp_path)


def test_one_directory_one_set_of_points(tmp_path):
    with (
        pytest.raises(ValueError, match="one set of points"),
        RecordWriter(tmp_path, "persons", shard_size=1) as writer,
    ):
        writer.write(person(1))
        writer.write(Sample(["nose"], [[1, 2]], image=PIXEL))


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(OSError, match="file"),
        RecordWriter(tmp_path / "file" / "r", "persons"),
    ):
        pass


@pytest.mark.parametrize("damage", ["tail", "byte", "gone", "empty"])
def test_damage_is_found_and_counted(tmp_path, damage):
    write(tmp_path)
    shard = tmp_path / "train-00001.tfrecord"
    data = bytearray(shard.read_bytes())
    if damage == "gone":
        shard.unlink()
    else:
        data[30] ^= 4
        shard.write_bytes(
            {"tail": shard.read_bytes()[:-3], "byte": bytes(data), "empty": b""}[damage]
        )
    with pytest.raises(ValueError, match="train-00001.tfrecord"):
        list(examples(tmp_path))
    with pytest.raises(ValueError, match="train-00001.tfrecord"):
        record_dataset(tmp_path, source_set(NAMES))
    with pytest.warns(UserWarning, match="left out"):
        rest = [e.frame for e in examples(tmp_path, skip_bad=True)]
    assert set(rest) < {i for i in range(20) if i % 5 != 3} and {
        0,
        1,
        2,
        4,
        5,
        12,
        14,
        19,
    } <= set(rest)
    with pytest.warns(UserWarning, match="left out with its"):
        data = record_dataset(tmp_path, source_set(NAMES), skip_bad=True)
    assert len(list(data)) == 16 - 5


def test_every_epoch_has_everybody_once_in_another_order(tmp_path):
    write(tmp_path)
    data = record_dataset(tmp_path, source_set(NAMES), seed=5, epochs=3, meta=True)
    frames = np.array([d["frame"] for d in data.as_numpy_iterator()]).reshape(3, 16)
    everybody = [i for i in range(20) if i % 5 != 3]
    assert (
        all(sorted(epoch) == everybody for epoch in frames.tolist())
        and len({tuple(e) for e in frames}) == 3
    )
    for start in [(0, 7), (1, 0), (2, 15)]:
        rest = [
            d["frame"]
            for d in record_dataset(
                tmp_path, source_set(NAMES), seed=5, epochs=3, start=start, meta=True
            ).as_numpy_iterator()
        ]
        assert rest == frames.ravel()[start[0] * 16 + start[1] :].tolist()
    endless = record_dataset(
        tmp_path, source_set(NAMES), seed=5, epochs=None, meta=True
    ).take(48)
    assert [d["frame"] for d in endless.as_numpy_iterator()] == frames.ravel().tolist()


def test_mixing_sets_with_different_points(tmp_path):
    write(tmp_path / "a")
    with RecordWriter(tmp_path / "b", "others") as writer:
        for i in range(4):
            writer.write(
                Sample(
                    ["wrist_r", "tail", "nose"],
                    [[5, 5], [6, 6], [7, 7]],
                    [2, 2, 1],
                    PIXEL,
                    identity=Identity(frame=100 + i),
                    kp3d=np.ones((3, 3)) * i,
                )
            )
    wanted = KeypointSet("w", ("tail_tip", "nose", "wrist_r", "wrist_l"))
    data = record_dataset(
        [tmp_path / "a", tmp_path / "b"],
        wanted,
        weights=[1, 3],
        rename={"tail": "tail_tip"},
        meta=True,
    )
    items = list(data.as_numpy_iterator())
    assert sum(d["frame"] >= 100 for d in items) == 15 and len(items) == 20
    for d in items:
        if d["frame"] >= 100:
            assert d["state"].tolist() == [2, 1, 2, 0] and d["kp2d"].tolist() == [
                [6, 6],
                [7, 7],
                [5, 5],
                [0, 0],
            ]
            assert d["mask_3d"].tolist() == [1, 1, 1, 0] and d["has_3d"] == 1
        else:
            assert (
                d["state"].tolist() == [0, 2, 0, 2]
                and d["has_3d"] == 0
                and not d["mask_3d"].any()
            )
        assert np.isfinite(
            np.concatenate([d["kp2d"].ravel(), d["kp3d"].ravel(), d["pose"].ravel()])
        ).all()


def some(i):
    return Dropped(f"{i}.jpg", "odd") if i % 7 == 3 else person(i)


def test_two_workers_write_the_same(tmp_path):
    for workers in (1, 2):
        with RecordWriter(tmp_path / str(workers), "persons", shard_size=9) as writer:
            convert_items(
                writer, some, list(range(40)), workers=workers, progress=False
            )
    assert {f.name: f.read_bytes() for f in (tmp_path / "1").iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "2").iterdir()
    }


def test_a_dask_cluster_writes_the_same(tmp_path):
    "Two worker processes of a cluster that runs already."
    from dask.distributed import LocalCluster

    from hmr_nb.basics.files import shipped
    from hmr_nb.records.datasets.lsp import convert_lsp

    raw = shipped("goldens") / "raw" / "lsp"
    convert_lsp(raw, tmp_path / "one", workers=1, progress=False)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        address = "dask://" + cluster.scheduler_address.removeprefix("tcp://")
        convert_lsp(raw, tmp_path / "two", workers=address, progress=False)
        assert len(cluster.workers) == 2
    assert {f.name: f.read_bytes() for f in (tmp_path / "one").iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "two").iterdir()
    }


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        ("dask://nowhere", "expected a number, or dask://host:port"),
        ("dask://127.0.0.1:9", "no Dask scheduler answers"),
    ],
)
def test_a_cluster_that_is_not_there(tmp_path, workers, says, monkeypatch):
    monkeypatch.setattr("hmr_nb.records.workers._DASK_PATIENCE", 0.2)
    with (
        pytest.raises((OSError, ValueError), match=says),
        RecordWriter(tmp_path, "persons") as writer,
    ):
        convert_items(writer, some, list(range(9)), workers=workers, progress=False)


def dask_address(cluster):
    return "dask://" + cluster.scheduler_address.removeprefix("tcp://")


def test_workers_that_lack_the_function_are_an_error_and_no_wait(tmp_path, monkeypatch):
    "The module lies here, and not where the worker looks."
    from dask.distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        (tmp_path / "only_here.py").write_text("def convert(i):\n    return []\n")
        monkeypatch.syspath_prepend(tmp_path)
        import only_here

        with (
            pytest.raises(
                ImportError, match="cannot load what they are to run.*only_here"
            ),
            RecordWriter(tmp_path / "out", "persons") as writer,
        ):
            convert_items(
                writer,
                only_here.convert,
                list(range(9)),
                workers=dask_address(cluster),
                progress=False,
            )


def test_a_cluster_without_workers_is_named(tmp_path, monkeypatch):
    from dask.distributed import LocalCluster

    monkeypatch.setattr("hmr_nb.records.workers._DASK_PATIENCE", 2)
    says = "has no workers; start some with: dask worker tcp:"
    cluster = LocalCluster(n_workers=0, processes=True, dashboard_address=None)
    with (
        cluster,
        pytest.raises(OSError, match=says),
        RecordWriter(tmp_path, "persons") as writer,
    ):
        convert_items(
            writer, some, list(range(9)), workers=dask_address(cluster), progress=False
        )


def test_nothing_to_convert(tmp_path):
    with RecordWriter(tmp_path, "nobody") as writer:
        convert_items(writer, some, [3, 10], workers=1, progress=False)
    assert card(tmp_path)["written"] == 0 and list(examples(tmp_path)) == []
    with pytest.raises(ValueError, match="no records"):
        record_dataset(tmp_path, keypoint_set("lsp14"))


def test_the_camera_of_the_whole_picture_gives_that_of_the_crop():
    crop = Crop(np.array([[0.5, 0, -30], [0, 0.5, 20]]), 100)
    e = person(1, camera=Camera.simple(1000, (512, 384)), crop=crop)
    assert e.focal == 500 and e.center.tolist() == [226, 212]
    point = np.array([0.3, -0.2, 4.0])
    source = 1000 * point[:2] / point[2] + [512, 384]
    np.testing.assert_allclose(
        crop.affine[:, :2] @ source + crop.affine[:, 2],
        e.focal * point[:2] / point[2] + e.center,
    )
    stored = e.crop.camera(e.camera)
    assert stored.focal == e.focal and stored.center.tolist() == e.center.tolist()
    with pytest.raises(ValueError, match="gender"):
        person(1, gender="f")


def test_a_set_of_poses_is_not_mistaken_for_old_records(tmp_path):
    (tmp_path / "card.json").write_text('{"schema": "mocap 1", "dataset": "mocap"}')
    with pytest.raises(
        ValueError, match="card.json: a set of poses, not of pictures.*load_mocap"
    ):
        card(tmp_path)


def test_the_bar_counts_what_the_writer_counts(tmp_path, capsys):
    with RecordWriter(tmp_path, "persons") as writer:
        convert_items(writer, some, list(range(6)), workers=1)
        assert "images/s" in capsys.readouterr().err
    with RecordWriter(tmp_path / "other", "persons") as writer:
        writer.unit = "recordings"
        convert_items(writer, some, list(range(6)), workers=1)
        assert "recordings/s" in capsys.readouterr().err


def test_records_of_earlier_schemas_are_read(tmp_path):
    write(tmp_path)
    facts = tmp_path / "card.json"
    for version in (1, 2):
        text = re.sub('"schema": [0-9]', f'"schema": {version}', facts.read_text())
        facts.write_text(text)
        assert (
            len(list(examples(tmp_path))) == 16
            and len(list(record_dataset(tmp_path, source_set(NAMES), meta=True))) == 16
        )
    facts.write_text(re.sub('"schema": [0-9]', '"schema": 4', facts.read_text()))
    with pytest.raises(ValueError, match="schema 4"):
        card(tmp_path)


def test_a_shard_is_full_by_bytes_too(tmp_path):
    write(tmp_path, shard_bytes=2 * len(encode_jpeg(PIXEL)))
    assert len(card(tmp_path)["shards"]) > 6
    assert [e.frame for e in examples(tmp_path)] == [i for i in range(20) if i % 5 != 3]


def test_label_files_are_known_by_their_checksum(tmp_path):
    labels = tmp_path / "labels.mat"
    labels.write_text("one")
    with (
        pytest.raises(KeyboardInterrupt),
        RecordWriter(tmp_path / "r", "persons", sources=[labels]),
    ):
        raise KeyboardInterrupt
    labels.write_text("two")
    with (
        pytest.raises(ValueError, match="begun with other settings.*sources"),
        RecordWriter(tmp_path / "r", "persons", sources=[labels], resume=True),
    ):
        pass


def test_label_files_of_one_name_are_told_apart(tmp_path):
    "Sixteen annot.mat, one in each folder: each has its own line on the card."
    files = [
        tmp_path / f"S{s}" / f"Seq{q}" / "annot.mat" for s in (1, 2) for q in (1, 2)
    ]
    for i, file in enumerate(files):
        file.parent.mkdir(parents=True)
        file.write_text(str(i))
    sources = RecordWriter(tmp_path / "r", "persons", sources=files).plan["sources"]
    assert {
        name: digest == file_digest(tmp_path / name) for name, digest in sources.items()
    } == {f"S{s}/Seq{q}/annot.mat": True for s in (1, 2) for q in (1, 2)}
    assert list(
        RecordWriter(tmp_path / "r", "persons", sources=files[:1]).plan["sources"]
    ) == ["annot.mat"]


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(-50, 250),
    y=st.floats(-50, 250),
    side=st.floats(2, 900),
    width=st.integers(20, 260),
    height=st.integers(20, 260),
)
def test_the_stored_map_is_true_for_the_pixels(x, y, side, width, height):
    """A soft dot at a known place of a picture lies where the map says, kept whole or
    cut, enlarged never."""
    at = np.array([width * 0.4, height * 0.55])
    grid_y, grid_x = np.mgrid[:height, :width]
    light = np.uint8(
        200 * np.exp(-((grid_x - at[0]) ** 2 + (grid_y - at[1]) ** 2) / 18)
    )[..., None].repeat(3, -1)
    jpeg, crop, size = stored_jpeg(encode_jpeg(light), (x, y, side, side))
    A = crop.affine
    assert size == (height, width) and A[0, 0] == A[1, 1] <= 1
    stored = decode_jpeg(jpeg)[..., 0].astype(float)
    h, w = stored.shape
    place = A[:, :2] @ at + A[:, 2]
    if (
        (place > 15 * A[0, 0]).all()
        and (place < np.array([w, h]) - 15 * A[0, 0]).all()
        and A[0, 0] > 0.3
    ):
        stored[stored < 12] = 0
        found = (
            np.array([stored.sum(0) @ np.arange(w), stored.sum(1) @ np.arange(h)])
            / stored.sum()
        )
        assert np.abs(found - place).max() < 0.35


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    x=st.floats(-200, 900),
    y=st.floats(-200, 900),
    w=st.floats(1, 900),
    h=st.floats(1, 900),
)
def test_any_box_can_be_cut(x, y, w, h):
    image = np.zeros((60, 80, 3), np.uint8) + np.uint8([200, 30, 90])
    cut, crop, size = cut_person(encode_jpeg(image), (x, y, w, h))
    A, side = crop.affine, stored_crop((x, y, w, h)).size[1]
    assert cut.shape == (side, side, 3) and side <= 300 and size == (60, 80)
    # border repeated, colours in order
    assert np.abs(cut.astype(int) - [200, 30, 90]).max() < 6
    middle = A[:, :2] @ [x + w / 2, y + h / 2] + A[:, 2]
    assert np.abs(middle - (side - 1) / 2).max() <= 1


def old_record(**features):
    "A record as versions 1 and 2 wrote them: no name of a camera."
    import tensorflow as tf

    def feature(v):
        if isinstance(v, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[v]))
        v = np.ravel(v)
        if v.dtype.kind == "i":
            return tf.train.Feature(int64_list=tf.train.Int64List(value=v))
        return tf.train.Feature(float_list=tf.train.FloatList(value=v))

    always = {
        "image": encode_jpeg(PIXEL),
        "kp2d": np.ones((3, 2)),
        "state": np.full(3, 2),
        "crop": np.array([[0.5, 0, -3], [0, 0.5, 2]]),
        "source": b"a.jpg",
        "dataset": b"old",
        "split": b"val",
        "subject": b"S1",
        "sequence": b"walk",
        "frame": np.array(7),
    }
    features = {k: feature(v) for k, v in (always | features).items()}
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString()


def test_a_camera_in_stored_pixels_alone_is_brought_back_through_the_crop():
    """Versions 1 and 2 could hold a focal length and a centre without intrinsics: they
    are the same in the sample, and in the record that is written of it."""
    old = decode_sample(old_record(focal=500.0, center=[20.0, 30.0]), NAMES)
    assert old.identity == Identity("old", "val", "S1", "walk", "", 7)
    for e in (old, decode_sample(encode_sample(old), NAMES)):
        np.testing.assert_allclose(e.focal, 500, rtol=1e-6)
        np.testing.assert_allclose(e.center, [20, 30], rtol=1e-5)
        np.testing.assert_allclose(e.camera.focal, 1000, rtol=1e-6)
        np.testing.assert_allclose(e.camera.center, [46, 56], rtol=1e-6)
    assert decode_sample(old_record(), NAMES).camera is None


def test_a_lens_and_a_camera_s_name_come_back(tmp_path):
    lens = np.array([-0.2, 0.25, -0.001, -0.002, -0.003])
    room = Camera(np.array([[1145.0, 0, 512], [0, 1143, 515], [0, 0, 1]]), lens)
    where = Identity("", "test", "S9", "Walking_1", "60457274", 3)
    with RecordWriter(tmp_path, "h36m") as writer:
        writer.write(person(3, camera=room, identity=where))
    (e,) = examples(tmp_path)
    assert e.identity == Identity("h36m", "test", "S9", "Walking_1", "60457274", 3)
    np.testing.assert_allclose(e.camera.distortion, lens, rtol=1e-6)
    (item,) = record_dataset(tmp_path, source_set(NAMES), meta=True)
    assert item["camera"].numpy() == b"60457274"
    np.testing.assert_allclose(item["intrinsics"], [1145, 1143, 512, 515])


def test_a_sample_does_not_change():
    e = person(1)
    with pytest.raises(AttributeError):
        e.kp3d = np.zeros((3, 3))
    for array in (e.kp2d, e.state):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    kp = np.ones((3, 2), np.float32)
    e = person(1, kp2d=kp)
    kp[:] = 5  # the sample has its own copy
    assert (e.kp2d == 1).all()


def test_a_shard_that_changed_is_hashed_again(tmp_path):
    "The checksum of a file at rest is kept; another time of change means another file."
    file = tmp_path / "shard"
    file.write_bytes(b"one")
    os.utime(file, (1e9, 1e9))
    assert file_digest(file) == file_digest(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two")
    assert file_digest(file) == hashlib.sha256(b"two").hexdigest()
    file.write_bytes(b"six")  # at once, of the same size
    assert file_digest(file) == hashlib.sha256(b"six").hexdigest()
