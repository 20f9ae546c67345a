"""How good are the landmarks on labelled photographs? Run by hand:

python tests/bench_landmarks.py FOLDER --kind full --kind heavy

FOLDER holds coco/ (person_keypoints_*.json beside its pictures) and lsp_extended/
(joints.mat and images/). The measure is PCK@0.1 of the longer side of the bounding box
(COCO: the label's, LSP: of the points), over all labelled points but nose, eyes and
ears; whoever is not found counts as zero. A detection belongs to the labelled person to
whom it lies nearest, each to one.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.io
from scipy.optimize import linear_sum_assignment

from hmr_nb.basics.camera import box_from_keypoints
from hmr_nb.basics.keypoints import keypoint_set
from hmr_nb.inference.landmarks import Detection, find_people
from hmr_nb.records.photos import load_photo

_FACE = ("nose", "eye_l", "eye_r", "ear_l", "ear_r")


class Labelled(NamedTuple):
    "One labelled person."

    data: str
    file: Path
    names: tuple[str, ...]
    kp: np.ndarray  # (k, 2) px, NaN = missing
    box: np.ndarray  # (4,)


def read_coco(folder: Path) -> Iterator[Labelled]:
    "People of COCO with eight labelled points and a box of 60 px."
    names = keypoint_set("coco17").names
    content = json.loads(next(folder.glob("person_keypoints*.json")).read_text("utf-8"))
    files = {one["id"]: folder / one["file_name"] for one in content["images"]}
    for one in content["annotations"]:
        table = np.array(one["keypoints"], float).reshape(17, 3)
        few = (table[:, 2] > 0).sum() < 8 or max(one["bbox"][2:]) < 60
        file = files[one["image_id"]]
        if file.is_file() and not few and not one.get("iscrowd"):
            kp = np.where(table[:, 2:] > 0, table[:, :2], np.nan)
            yield Labelled("COCO", file, names, kp, np.array(one["bbox"]))


def read_lsp_extended(folder: Path) -> Iterator[Labelled]:
    "People of LSP-extended with eight labelled points."
    joints = scipy.io.loadmat(folder / "joints.mat")["joints"]
    for i, table in enumerate(np.moveaxis(joints, 2, 0), 1):
        file = folder / f"images/im{i:05d}.jpg"
        if file.is_file() and (table[:, 2] > 0).sum() >= 8:
            kp = np.where(table[:, 2:] > 0, table[:, :2] - 1, np.nan)
            box = np.array(box_from_keypoints(kp))
            yield Labelled("LSP-ext.", file, keypoint_set("lsp14").names, kp, box)


def as_labelled(person: Detection, names: tuple[str, ...]) -> np.ndarray:  # (k, 2)
    "The points of a detection that a label file knows; neck and crown are estimated."
    at = dict(zip(person.names, person.xy))
    neck = (at["shoulder_l"] + at["shoulder_r"]) / 2
    ears = (at["ear_l"] + at["ear_r"]) / 2
    at |= {"neck": neck, "head_top": neck + 1.75 * (ears - neck)}
    return np.array([at[name] for name in names])


def hits(one: Labelled, kp: np.ndarray | None) -> np.ndarray:
    "1 or 0 for each labelled point of the body."
    body = np.isfinite(one.kp).all(1) & ~np.isin(one.names, _FACE)
    if kp is None:
        return np.zeros(body.sum())
    apart = np.linalg.norm(kp - one.kp, axis=1)[body]
    return (apart < 0.1 * max(one.box[2:])).astype(float)


def matched(
    people: list[Labelled], found: list[Detection]
) -> list[np.ndarray | None]:  # points of the detection of each
    "Each labelled person's own detection, within 0.4 of the box."
    apart = np.full((len(people), max(len(found), 1)), 9.0)
    for i, one in enumerate(people):
        for j, person in enumerate(found):
            gap = np.linalg.norm(as_labelled(person, one.names) - one.kp, axis=1)
            apart[i, j] = np.nanmedian(gap) / max(one.box[2:])
    pairs = dict(zip(*linear_sum_assignment(np.minimum(apart, 9))))
    return [
        as_labelled(found[pairs[i]], one.names)
        if i in pairs and apart[i, pairs[i]] < 0.4
        else None
        for i, one in enumerate(people)
    ]


def measure(people: list[Labelled], kind: str) -> pd.DataFrame:
    "PCK with and without boxes, missed people and seconds, a row a data set."
    rows, files = [], sorted({one.file for one in people})
    find_people(files[0], kind)  # the networks are read
    for file in files:
        here, photo = [one for one in people if one.file == file], load_photo(file)
        start, cpu = time.perf_counter(), time.process_time()
        found = find_people(photo, kind)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        boxed = find_people(photo, kind, boxes=[one.box for one in here])
        for one, kp, given in zip(here, matched(here, found), boxed):
            near = as_labelled(given, one.names)
            rows.append(
                {
                    "data": one.data,
                    "file": file.name,
                    "found": kp is not None,
                    "own": hits(one, kp),
                    "boxed": hits(one, near),
                    "else boxed": hits(one, near if kp is None else kp),
                    "seconds": seconds / len(here),
                    "core seconds": cpu / len(here),
                    "extra": (len(found) - len(here)) / len(here),
                }
            )
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    "A row a data set."
    rows = {}
    for data, some in table.groupby("data"):
        pck = {
            f"PCK {name}": 100 * np.concatenate(some[column].tolist()).mean()
            for name, column in (
                ("no box", "own"),
                ("box where missed", "else boxed"),
                ("box given", "boxed"),
            )
        }
        pictures = some["file"].nunique()
        rows[kind, data] = {
            "pictures": pictures,
            "people": len(some),
            "found": some["found"].sum(),
            **pck,
            "not labelled": some["extra"].sum(),
            "s a picture": some["seconds"].sum() / pictures,
            "core s": some["core seconds"].sum() / pictures,
        }
    return pd.DataFrame(rows).T


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--kind", action="append")
    asked.add_argument("--every", type=int, default=1, help="every n-th person of LSP")
    asked.add_argument("--list", action="store_true", help="the people with PCK < 0.5")
    options = asked.parse_args()
    people = [*read_coco(options.folder / "coco")]
    people += [*read_lsp_extended(options.folder / "lsp_extended")][:: options.every]
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}")
    for kind in options.kind or ["full"]:
        table = measure(people, kind)
        print(summary(table, kind).round(2).to_string())
        if options.list:
            low = table[[one.mean() < 0.5 for one in table["own"]]]
            scores = {n: [o.mean().round(2) for o in low[n]] for n in ("own", "boxed")}
            print(low.assign(**scores)[["data", "file", "found", *scores]].to_string())
