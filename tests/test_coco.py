"""COCO: the old converter's numbers, layouts and years, real people, bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmr_nb.basics.files import shipped
from hmr_nb.basics.keypoints import keypoint_set, map_points
from hmr_nb.records.card import card_table
from hmr_nb.records.datasets.coco import _read_points, convert_coco, read_coco
from hmr_nb.records.reader import examples

GOLDENS = shipped("goldens")
RAW = GOLDENS / "raw" / "coco"
TRAIN = "annotations/person_keypoints_train2017.json"
REAL = Path(__file__).resolve().parents[2] / "shared" / "real" / "coco"
COCO17, COCOPLUS = keypoint_set("coco17"), keypoint_set("cocoplus19")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    out = tmp_path_factory.mktemp("coco") / "r"
    return convert_coco(RAW, out, workers=1, progress=False), out


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(RAW, tmp_path / "coco")
    return tmp_path / "coco"


def change(folder, edit, file=TRAIN):
    "Edit a label file."
    content = json.loads((folder / file).read_text())
    edit(content)
    (folder / file).write_text(json.dumps(content))


def test_points_are_the_old_converters_where_it_kept_them(converted):
    old, table = (
        json.loads((GOLDENS / "converter_coco.json").read_text()),
        np.load(GOLDENS / "converter_coco.npz")["keypoints_2d"],
    )
    ours = list(examples(converted[1]))
    matched, points = set(), 0
    for row, kp, call in zip(old["examples"], table, old["scale_and_crop_calls"]):
        off = {}
        for i, e in enumerate(ours):
            if (
                Path(e.source).name == Path(row["source"]).name
                and e.split == row["split"]
            ):
                here = map_points(e.crop.undo(e.kp2d), COCO17, COCOPLUS)
                kept = kp[:, 2] > 0
                gap = np.abs(
                    here * call["actual_factor_yx"] - call["top_left_xy"] - kp[:, :2]
                )[kept].max()
                # something that it kept is missing here: another person
                off[i] = gap if np.isfinite(gap) else np.inf
        best = min(off, key=off.get)
        assert off[best] < 1e-3
        matched.add(best)
        points += int((kp[:, 2] > 0).sum())
    assert len(matched) == len(table) == 7
    lost = [e for i, e in enumerate(ours) if i not in matched]
    # the last of each split
    assert [(e.split, e.source) for e in lost] == [
        ("train", "train2017/000000000025.jpg"),
        ("val", "val2017/000000000005.jpg"),
    ]
    assert points == 111


def test_labels_are_the_old_converters_before_its_filters():
    z = np.load(GOLDENS / "converter_coco.npz")
    people = [
        q for p in read_coco(RAW / TRAIN) for q in p.people if q.drop != "a crowd"
    ]
    old, seen = z["train_after_check_kps_2d"], z["train_after_check_vis"] > 0
    assert len(people) == len(old) == 9
    ours = [
        (
            map_points(q.kp, COCO17, COCOPLUS),
            map_points(q.state[:, None], COCO17, COCOPLUS)[:, 0],
        )
        for q in people
    ]
    for kp, visible in zip(old, seen):
        fits = [
            s
            for k, s in ours
            if np.array_equal(np.isfinite(k).all(1) & (s == 2), visible)
            and np.allclose(k[visible], kp[visible])
        ]
        inside = [
            s
            for k, s in ours
            if np.isfinite(k[visible]).all() and np.allclose(k[visible], kp[visible])
        ]
        # it also drops visible points beyond the border
        assert fits or len(inside) == 1


def test_who_is_left_out_and_why(converted):
    facts, out = converted
    assert facts["dropped"] == {
        "a crowd": 1,
        "no points labelled": 1,
        "too few points": 1,
        "too small": 1,
    }
    assert (facts["read"], facts["written"], facts["splits"]) == (
        13,
        9,
        {"train": 6, "val": 3},
    )
    table = card_table(out)
    assert table["occluded"].sum() == 6 and not {"neck", "head_top"} & set(
        facts["names"]
    )
    assert sorted(facts["sources"]) == [
        "person_keypoints_train2017.json",
        "person_keypoints_val2017.json",
    ]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 600), st.integers(1, 400)),
        min_size=17,
        max_size=17,
    )
)
def test_v_is_the_state(points):
    kp, state = _read_points(
        [n for v, x, y in points for n in ((x, y, v) if v else (0, 0, 0))]
    )
    assert state.tolist() == [v for v, _, _ in points]
    np.testing.assert_array_equal(
        kp, [(x, y) if v else (np.nan, np.nan) for v, x, y in points]
    )


def test_2014_and_hmrs_layout(folder, tmp_path):
    change(
        folder,
        lambda c: [
            i.update(file_name=f"COCO_train2014_{i['file_name']}") for i in c["images"]
        ],
    )
    hmr = tmp_path / "hmr"
    (hmr / "annotations").mkdir(parents=True)
    (hmr / "images" / "train2014").mkdir(parents=True)
    shutil.copy(folder / TRAIN, hmr / "annotations" / "person_keypoints_train2014.json")
    for picture in (folder / "train2017").iterdir():
        shutil.copy(
            picture, hmr / "images" / "train2014" / f"COCO_train2014_{picture.name}"
        )
    facts = convert_coco(hmr, tmp_path / "r", workers=1, progress=False)
    assert facts["written"] == 6 and next(
        iter(examples(tmp_path / "r"))
    ).source.startswith("images/train2014/COCO_train2014_0000")
    shutil.copytree(hmr / "images" / "train2014", tmp_path / "official" / "train2014")
    shutil.copytree(hmr / "annotations", tmp_path / "official" / "annotations")
    assert (
        convert_coco(tmp_path / "official", tmp_path / "r2", workers=1, progress=False)[
            "written"
        ]
        == 6
    )


def test_both_years_in_one_folder(folder, tmp_path):
    shutil.copy(folder / TRAIN, folder / "annotations/person_keypoints_train2014.json")
    with pytest.raises(
        ValueError, match="2014 and 2017, which are the same photographs"
    ):
        convert_coco(folder, tmp_path / "r", progress=False)
    assert (
        convert_coco(folder, tmp_path / "r", workers=1, progress=False, year=2017)[
            "read"
        ]
        == 13
    )


def test_one_file_and_pictures_elsewhere(folder, tmp_path):
    shutil.move(folder / "train2017", tmp_path / "pictures")
    facts = convert_coco(
        folder / TRAIN,
        tmp_path / "r",
        workers=1,
        progress=False,
        images=tmp_path / "pictures",
    )
    assert facts["splits"] == {"train": 6}
    with pytest.raises(
        FileNotFoundError, match="such as 000000000011.jpg, were looked for in"
    ):
        convert_coco(folder / TRAIN, tmp_path / "r2", progress=False)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda c: c["annotations"][0].update(keypoints=[1, 2, 2]),
            "annotation 1 .*got 3 numbers",
        ),
        (
            lambda c: c["annotations"][0].update(keypoints=[0, 0, 7] * 17),
            "annotation 1 .*v 0, 1 or 2",
        ),
        (lambda c: c["annotations"][0].update(keypoints="text"), "annotation 1 "),
        (
            lambda c: c["annotations"][0].pop("keypoints"),
            "annotation 1 .*is this the instances file",
        ),
        (lambda c: c["annotations"][0].update(image_id=12345), "annotation 1 .*12345"),
        (lambda c: c["annotations"].insert(0, None), "annotation \\? "),
        (lambda c: c.pop("images"), "expected COCO's person_keypoints file"),
        (
            lambda c: c["images"][0].pop("file_name"),
            "expected COCO's person_keypoints file",
        ),
    ],
)
def test_damaged_label_files(folder, tmp_path, edit, says):
    change(folder, edit)
    with pytest.raises(ValueError, match=says) as error:
        convert_coco(folder, tmp_path / "r", progress=False)
    assert (
        "person_keypoints_train2017.json" in str(error.value)
        and not (tmp_path / "r").exists()
    )


def test_no_labels_and_no_people(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no person_keypoints"):
        convert_coco(tmp_path / "nowhere", tmp_path / "r", progress=False)
    change(folder, lambda c: c.update(images=[], annotations=[]))
    with pytest.raises(ValueError, match="holds no people"):
        convert_coco(folder, tmp_path / "r", progress=False)


def test_bad_pictures_and_odd_numbers_are_counted(folder, tmp_path):
    pictures = folder / "train2017"
    (pictures / "000000000011.jpg").unlink()  # two people
    (pictures / "000000000018.jpg").write_bytes(
        (pictures / "000000000018.jpg").read_bytes()[:3000]
    )

    def odd(content):
        by_id = {a["id"]: a for a in content["annotations"]}
        # far beyond the picture
        by_id[10]["keypoints"] = [
            v if i % 3 == 2 else v + 5000 for i, v in enumerate(by_id[10]["keypoints"])
        ]
        by_id[7]["keypoints"][:2] = [float("nan"), float("nan")]

    change(folder, odd)
    facts = convert_coco(folder, tmp_path / "r", workers=1, progress=False)
    assert facts["dropped"] == {
        "a crowd": 1,
        "image missing": 2,
        "image unreadable": 1,
        "mostly outside the image": 1,
        "no points labelled": 1,
        "too few points": 1,
        "too small": 1,
    }
    assert facts["read"] == facts["written"] + sum(facts["dropped"].values()) == 13
    e = next(e for e in examples(tmp_path / "r") if "39" in e.source)
    assert e.state[0] == 0 and np.isnan(e.kp2d[0]).all() and e.state[1] == 2


@pytest.mark.skipif(
    not REAL.is_dir(), reason="the real COCO images are not on this machine"
)
def test_the_real_people(tmp_path):
    facts = convert_coco(
        REAL, tmp_path / "r", workers=1, progress=False, min_points=1, min_side=1
    )
    assert (
        facts["read"] == 14
        and facts["written"] == 12
        and facts["dropped"] == {"no points labelled": 2}
    )
    table = card_table(tmp_path / "r")
    content = json.loads((REAL / "person_keypoints_val2017.json").read_text())
    v = np.array(
        [a["keypoints"][2::3] for a in content["annotations"] if a["num_keypoints"]]
    )
    assert (
        [(v == s).sum() for s in (2, 1, 0)]
        == table[["visible", "occluded", "missing"]].sum().tolist()
        == [164, 17, 23]
    )
    rows = {
        (a["image_id"], tuple(np.array(a["keypoints"]).reshape(17, 3)[:, 2])): (
            np.array(a["keypoints"], float).reshape(17, 3)
        )
        for a in content["annotations"]
    }
    for e in examples(tmp_path / "r"):
        theirs = rows[e.frame, tuple(e.state)]
        np.testing.assert_allclose(
            e.crop.undo(e.kp2d)[e.state > 0], theirs[e.state > 0, :2], atol=2e-3
        )
    usual = convert_coco(REAL, tmp_path / "usual", workers=1, progress=False)
    assert (
        usual["written"] + sum(usual["dropped"].values()) == 14
        and usual["written"] >= 9
    )
