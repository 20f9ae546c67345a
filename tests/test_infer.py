"""Photographs as people bring them, the camera back to the whole picture, and files."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hmr_nb.basics.camera import (
    Camera,
    cam_to_translation,
    perspective,
    project,
    px_to_ndc,
)
from hmr_nb.basics.files import shipped
from hmr_nb.basics.keypoints import keypoint_set
from hmr_nb.basics.rendering import silhouette
from hmr_nb.basics.values import EXPORTS
from hmr_nb.body.open_body import open_body
from hmr_nb.inference.infer import (
    Forward,
    Predictions,
    _group_views,
    _result_names,
    boxes_from_openpose,
    draw_people,
    infer,
    infer_files,
    load_photo,
    people_from_openpose,
    person_views,
    photo_focal,
    place_body,
    show,
)
from hmr_nb.making.domains import render_example, smpl_layer, wardrobe_of
from hmr_nb.model.hmr import HMROutput
from hmr_nb.model.view import View
from hmr_nb.model.weights import small_hmr
from hmr_nb.records.pictures import decode_jpeg

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"
PHOTO = min(shipped("samples").glob("*.[jp][pn]g"))


@pytest.fixture(scope="module")
def model():
    return small_hmr()


@pytest.fixture(scope="module")
def studio():
    "A body, its layer, and a function that renders a person of a domain at 512 px."
    body = open_body()
    smpl = smpl_layer(body)
    wardrobe = wardrobe_of(body, smpl)
    return (
        body,
        smpl,
        lambda name, index: render_example(
            name,
            5,
            index,
            size=512,
            want=("mask",),
            body=body,
            smpl=smpl,
            wardrobe=wardrobe,
        ),
    )


def best_cam(points, px, crop):
    """The crop's camera (scale, tx, ty) that fits pixels of the photograph best, as
    training asks for; float64."""
    ndc = px_to_ndc(crop.apply(px), crop.size[1])
    A = np.column_stack([points[:, :2].ravel(), np.tile(np.eye(2), (len(points), 1))])
    s, sx, sy = np.linalg.lstsq(A, ndc.ravel(), rcond=None)[0]
    return np.array([s, sx / s, sy / s])


class Perfect:
    """Answers with the ground truth, as a weak-perspective model would put it: the body
    around its own origin, and the camera of the crop that fits its joints best."""

    def __init__(self, body, smpl, example, view):
        out = smpl(
            example.pose[None].astype("float32"), example.betas[None].astype("float32")
        )
        joints = np.asarray(out.joints[0], float)
        camera = Camera.simple(float(example.focal), example.center)
        px = camera.project(joints + example.trans)
        cam = best_cam(joints, px, view.crop(example.box))[None]
        keypoints = out.keypoints
        self.smpl, self.keypoints = SimpleNamespace(faces=body.faces), smpl.keypoints
        self.view = view
        self.out = HMROutput(
            out.vertices,
            keypoints,
            project(np.asarray(keypoints), cam),
            example.pose[None],
            example.betas[None],
            cam,
            out.rotations,
            out.joints,
            None,
        )

    def recover(self, views):
        side = self.view.size
        assert views.shape == (1, side, side, 3) and np.abs(views).max() <= 1
        return self.out


def through_infer(studio, name, index):
    "A render, and what `infer` makes of a model that knows the ground truth."
    body, smpl, render = studio
    made = render(name, index)
    example, image = made.example, decode_jpeg(made.example.jpeg)
    model, focal = Perfect(body, smpl, example, View(224)), float(example.focal)
    people = infer(model, image, example.box, focal=focal, center=example.center)
    return made, image, people


def mask_of(person, image):
    return silhouette(person.vertices, person.faces, person.camera, image.shape[:2])


@pytest.mark.parametrize("index", [0, 2, 3, 4, 5])  # a box stands before number 1
def test_the_true_mesh_covers_the_person_through_our_camera(studio, index):
    made, image, people = through_infer(studio, "studio", index)
    mine = mask_of(people[0], image)
    seen = made.mask >= 0
    assert (mine & seen).sum() / (mine | seen).sum() >= 0.98
    np.testing.assert_allclose(
        people[0].translation,
        made.example.trans,
        atol=2e-6 * np.abs(made.example.trans).max(),
    )


@pytest.mark.parametrize("name", ["street", "sports"])
def test_what_is_seen_of_a_hidden_person_lies_in_our_silhouette(studio, name):
    """Things and the photograph's edge hide parts here, so only one side of the
    comparison can be asked."""
    for index in range(3):
        made, image, people = through_infer(studio, name, index)
        mine = mask_of(people[0], image)
        assert (mine & (made.mask >= 0)).sum() / (made.mask >= 0).sum() >= 0.98


def test_both_ways_to_a_pixel_agree_but_for_perspective(studio):
    """Through the crop's camera and back, or through space: the same middle and size of
    the joints, and no farther apart than a weak-perspective camera can see."""
    gaps = []
    for name in ("studio", "street", "sports"):
        made, _image, people = through_infer(studio, name, 1)
        p = people[0]
        space = p.camera.project(p.keypoints)
        np.testing.assert_allclose(
            space,
            perspective(
                p.keypoints - p.translation + made.example.trans,
                float(made.example.focal),
                made.example.center,
            ),
            atol=0.01,
        )
        gaps.append(
            np.linalg.norm(space - p.keypoints_px, axis=1) / max(made.example.box[2:])
        )
        np.testing.assert_allclose(
            best_cam(p.joints - p.translation, p.camera.project(p.joints), p.crop),
            p.cam,
            atol=1e-6,
        )
    assert np.mean(gaps) < 0.03  # of the box


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    focal=st.floats(300, 20_000),
    depth=st.floats(2.5, 40),
    where=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
def test_a_body_is_placed_where_it_stood(seed, focal, depth, where):
    """Any joints, any pinhole: the crop's camera that fits best leads back to the true
    place, and to no other with the origin alone."""
    joints = np.random.default_rng(seed).normal(size=(24, 3)) * [0.25, 0.5, 0.25]
    trans, camera = np.array([*where, depth]), Camera.simple(focal, (320, 240))
    crop = View(224).crop((100, 50, 200, 300))
    cam = best_cam(joints, camera.project(joints + trans), crop)
    placed = place_body(joints, cam, crop, camera)
    np.testing.assert_allclose(placed, trans, rtol=1e-5, atol=1e-5)
    assert np.abs(cam_to_translation(cam, crop, camera) - trans).max() > 1e-5


@pytest.mark.parametrize("focal", [1e-3, 1.0, 50.0, 1e9])
def test_a_senseless_focal_length_gives_finite_numbers_and_is_kept(model, focal):
    (person,) = infer(model, load_photo(PHOTO), focal=focal)
    assert (
        person.camera.focal == focal
        and np.isfinite(person.vertices).all()
        and np.isfinite(person.translation).all()
    )


def test_one_assumed_focal_length_for_all_people_of_a_photograph(model):
    photo = load_photo(PHOTO)
    h, w = photo.shape[:2]
    near, small = (10, 5, 90, 240), (30, 30, 20, 40)
    assert infer(model, photo, [small])[0].camera.focal == np.hypot(h, w)
    both = infer(model, photo, [small, near])
    assert (
        both[0].camera.focal
        == both[1].camera.focal
        == infer(model, photo, [near])[0].camera.focal
        == pytest.approx(1000 / 224 * 1.25 * 240)
    )
    assert both[0].translation[2] > both[1].translation[2]


def noted(millimetres, turn=1):
    "A sample as a phone's file, with its focal length on 35 mm film."
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    exif.get_ifd(0x8769)[0xA405] = millimetres
    Image.open(PHOTO).resize((400, 300)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_the_focal_length_in_the_file_is_used_and_a_given_one_goes_before(
    model, tmp_path
):
    assert (
        photo_focal(io.BytesIO(noted(26)))
        == photo_focal(io.BytesIO(noted(26, turn=6)))
        == pytest.approx(500 * 26 / 43.2666, rel=1e-5)
    )
    for nothing in (noted(0), PHOTO.read_bytes(), b"no picture"):
        assert photo_focal(io.BytesIO(nothing)) is None
    broken = noted(26).replace(b"Exif\0\0", b"Exif\0\0\xff\xff\xff\xff")
    assert photo_focal(io.BytesIO(broken)) is None
    (tmp_path / "phone.jpg").write_bytes(noted(26))
    for asked, expected in ((None, 500 * 26 / 43.2666), (777.0, 777.0)):
        _, failed = infer_files(
            model,
            [tmp_path / "phone.jpg"],
            tmp_path / f"out{asked}",
            formats=("json",),
            progress=False,
            focal=asked,
        )
        assert not failed and json.loads(
            (tmp_path / f"out{asked}" / "phone_0.json").read_text()
        )["focal"] == pytest.approx(expected, rel=1e-5)


def test_a_person_is_as_large_in_use_as_in_training(tmp_path, studio):
    """The same box through records and test_view (training, evaluation) and through
    infer: the same map, the same pixels."""
    from hmr_nb.basics.camera import box_from_keypoints
    from hmr_nb.basics.keypoints import keypoint_set
    from hmr_nb.records.augment import test_view as as_in_test
    from hmr_nb.records.schema import Sample
    from hmr_nb.records.stream import record_dataset
    from hmr_nb.records.writer import RecordWriter

    points, view, photo = keypoint_set("lsp14"), View(224), load_photo(PHOTO)
    big = np.asarray(
        Image.fromarray(photo).resize((900, 700), Image.Resampling.BICUBIC)
    )
    kp = np.random.default_rng(0).uniform([300, 100], [560, 600], (14, 2))
    box = box_from_keypoints(kp)
    with RecordWriter(tmp_path / "records", "own") as writer:
        writer.write(Sample(points.names, kp, image=big, box=box, source="one"))
    item = next(
        iter(
            as_in_test(
                record_dataset(tmp_path / "records", points, seed=None, meta=True),
                view,
                points,
            )
        )
    )
    views, (crop,) = person_views(big, [box], view)
    seen = (item["kp2d"].numpy()[:, :2] + 1) * view.size / 2 - 0.5  # ndc to px
    height = np.ptp(crop.apply(kp)[:, 1])
    # of the photograph: the training path decodes whole ones, and no more than its crop
    pixel = view.size / (1.25 * max(box[2:]))
    assert (
        abs(height - view.size / 1.25) < 0.01
        and abs(np.ptp(seen[:, 1]) - height) < pixel / 2
    )
    np.testing.assert_allclose(seen, crop.apply(kp), atol=pixel)
    # JPEG lies between them
    assert np.abs(item["image"].numpy() - views[0]).mean() < 0.03


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    h=st.integers(1, 500),
    w=st.integers(1, 900),
    kind=st.sampled_from(["L", "LA", "RGB", "RGBA", "P", "1", "I;16", "CMYK"]),
    turn=st.sampled_from([1, 3, 6, 8]),
)
def test_any_size_kind_and_orientation_is_read_upright(h, w, kind, turn):
    pixels = np.random.default_rng(h * w).integers(0, 256, (h, w), np.uint8)
    image = (
        Image.fromarray(pixels.astype(np.uint16) * 257)
        if kind == "I;16"
        else Image.fromarray(pixels)
        .convert("RGB" if kind == "CMYK" else kind)
        .convert(kind)
    )
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    image.save(file, "TIFF" if kind == "CMYK" else "PNG", exif=exif)
    read = load_photo(file)
    assert read.dtype == np.uint8 and read.shape == (
        (w, h, 3) if turn in (6, 8) else (h, w, 3)
    )
    if kind in ("L", "I;16"):
        np.testing.assert_array_equal(
            read[..., 0], np.rot90(pixels, {1: 0, 3: 2, 6: 3, 8: 1}[turn])
        )


@pytest.mark.parametrize("shape", [(1, 1), (7, 900), (900, 7), (33, 3000)])
def test_odd_pictures_give_a_person_with_finite_numbers(model, shape):
    people = infer(model, np.full((*shape, 3), 128, np.uint8))
    assert len(people) == 1 and all(
        np.isfinite(getattr(people[0], n)).all()
        for n in ("vertices", "keypoints", "keypoints_px", "translation")
    )
    assert draw_people(people.photo, people).shape[0] >= shape[0]


def test_many_people_come_in_order_and_as_alone(model):
    photo, forward = load_photo(PHOTO), Forward(model)
    boxes = [(40 + 3 * i, 20 + i, 100 + 5 * i, 190) for i in range(7)]
    together, batched = (
        infer(forward, photo, boxes),
        infer(forward, photo, boxes, batch_size=3),
    )
    for people in (together, batched):
        assert [tuple(p.box) for p in people] == boxes
    for i in (0, 3, 6):
        (alone,) = infer(model, photo, [boxes[i]])
        for other in (together[i], batched[i]):
            np.testing.assert_allclose(other.vertices, alone.vertices, atol=1e-3)
    assert infer(forward, photo, []) == [] and "Predictions(7" in repr(together)


def test_a_file_a_picture_of_pillow_or_an_array_one_box_or_many(model):
    box, opened = (40, 20, 100, 190), Image.open(PHOTO)
    (person,) = infer(model, load_photo(PHOTO), [box])
    for image in (PHOTO, str(PHOTO), opened, opened.convert("RGBA")):
        for boxes in (box, list(box), np.array(box), [box], np.array([box])):
            (other,) = infer(model, image, boxes)
            np.testing.assert_array_equal(other.vertices, person.vertices)
    for wrong in ((1, 2, 3), [(1, 2, 3)], 7, [[box]]):
        with pytest.raises(ValueError, match="boxes: expected x, y, width, height"):
            infer(model, PHOTO, wrong)
    with pytest.raises(FileNotFoundError, match="gone.jpg: no such picture"):
        infer(model, "gone.jpg")


def test_the_focal_length_that_a_file_notes_is_used(model, tmp_path):
    (tmp_path / "phone.jpg").write_bytes(noted(26))
    wanted = pytest.approx(500 * 26 / 43.2666, rel=1e-5)
    for image in (tmp_path / "phone.jpg", Image.open(tmp_path / "phone.jpg")):
        assert infer(model, image)[0].camera.focal == wanted
        assert infer(model, image, focal=777)[0].camera.focal == 777


def test_a_person_is_one_line(model):
    (person,) = infer(model, PHOTO, (40, 20, 100, 190))
    said = repr(person)
    assert "\n" not in said and len(said) < 120 and "box 40,20,100,190 px" in said


def test_a_result_shows_itself(model):
    people = infer(model, load_photo(PHOTO), [(40, 20, 100, 190), (60, 30, 90, 180)])
    shown = people._repr_mimebundle_()
    assert shown["image/jpeg"][:2] == b"\xff\xd8" and shown["text/plain"] == repr(
        people
    )
    w, h = Image.open(io.BytesIO(show(people, height=80).data)).size
    widths = [view.shape[1] for view in _group_views(people, 80)]
    assert h == 80 and w == 2 * 80 + sum(widths) + 3 * 2
    assert (
        "image/jpeg" in infer(model, load_photo(PHOTO), [])._repr_mimebundle_()
        and "image/jpeg" not in Predictions()._repr_mimebundle_()
    )


def test_every_export_reads_back(model, tmp_path):
    import trimesh

    (person,) = infer(model, load_photo(PHOTO))
    npz, js, obj, glb = (person.export(tmp_path / f"a.b.{f}") for f in EXPORTS)
    local = (person.vertices - person.translation) * [1, -1, -1]
    # as version 0.3.0 wrote them
    values = {
        name: getattr(person, name)
        for name in (
            *("box", "pose", "betas", "cam", "vertices", "joints", "keypoints"),
            *("keypoints_px", "names", "translation", "faces"),
        )
    }
    values |= {
        "crop": person.crop.affine,
        "focal": person.camera.focal,
        "center": person.camera.center,
    }
    with np.load(npz) as stored:
        assert set(stored.files) == set(values)
        for name, value in values.items():
            np.testing.assert_array_equal(stored[name], value)
    told = json.loads(js.read_text())
    assert set(told) == set(values) - {"vertices", "faces"}
    assert told["names"] == list(person.names)
    for name in set(told) - {"names"}:
        np.testing.assert_allclose(told[name], values[name])
    for file in (obj, glb):
        mesh = trimesh.load(file, force="mesh", process=False)
        np.testing.assert_array_equal(mesh.faces, person.faces)
        np.testing.assert_allclose(mesh.vertices, local, atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.b.glb",
        "a.b.json",
        "a.b.npz",
        "a.b.obj",
    ]


def test_hostile_files_are_named_and_the_rest_goes_on(model, tmp_path):
    """One pixel, CMYK, 16 bits, several frames, an umlaut and a space; and what is no
    picture at all."""
    picture = Image.open(PHOTO)
    turned = [picture.rotate(a) for a in (0, 15)]
    picture.crop((0, 0, 1, 1)).save(tmp_path / "one.png")
    picture.convert("CMYK").save(tmp_path / "print.jpg")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(
        tmp_path / "deep.png"
    )
    turned[0].save(tmp_path / "moving.gif", save_all=True, append_images=turned[1:])
    picture.save(tmp_path / "Ein Bild – schön [1]%.jpg")
    (tmp_path / "damaged note.jpg").write_bytes(
        noted(26).replace(b"Exif\0\0", b"Exif\0\0\xff\xff\xff\xff")
    )
    good = sorted(tmp_path.iterdir())
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "half.jpg").write_bytes(PHOTO.read_bytes()[:2000])
    (tmp_path / "folder.jpg").mkdir()
    bad = [
        tmp_path / n
        for n in ("empty.jpg", "text.jpg", "half.jpg", "folder.jpg", "gone.jpg")
    ]
    outside = tmp_path / "outside.jpg"
    shutil.copy(PHOTO, outside)
    for box, why in (
        ((900, 900, 10, 10), "lies outside the picture"),
        ((0, 0, 0, 0), "with a positive size"),
        ((np.nan, 1, 2, 3), "with a positive size"),
    ):
        done, failed = infer_files(
            model,
            [outside],
            tmp_path / "none",
            boxes={str(outside): [box]},
            formats=("json",),
            progress=False,
        )
        assert (
            not done
            and failed[str(outside)].startswith(f"{outside}: box: ")
            and why in failed[str(outside)]
        )
    done, failed = infer_files(
        Forward(model),
        [*bad, *good],
        tmp_path / "out",
        formats=("json",),
        progress=False,
    )
    assert (
        len(done) == len(good)
        and set(failed) == {str(p) for p in bad}
        and all(path in why for path, why in failed.items())
    )
    for path in done:
        assert np.asarray(Image.open(path)).size > 0


def people_json(path, *tables):
    path.write_text(
        json.dumps(
            {
                "people": [
                    {"pose_keypoints_2d": np.asarray(t).ravel().tolist()}
                    for t in tables
                ]
            }
        )
    )
    return path


def test_openpose_without_usable_people(tmp_path):
    points = np.zeros((18, 3))
    points[[0, 2, 10, 13]] = [
        [50, 10, 0.9],
        [40, 30, 0.8],
        [42, 110, 0.7],
        [60, 112, 0.9],
    ]
    one_place = points * [0, 0, 1] + [50, 50, 0] * (points[:, 2:] > 0)
    assert (
        boxes_from_openpose(people_json(tmp_path / "a.json"))
        == []
        == boxes_from_openpose(people_json(tmp_path / "b.json", 0 * points))
    )
    assert boxes_from_openpose(people_json(tmp_path / "c.json", one_place, points)) == [
        (40.0, 10.0, 20.0, 102.0)
    ]
    for name, text in {
        "d": "",
        "e": "{}",
        "f": '{"people": null}',
        "g": '{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}',
        "h": "[]",
    }.items():
        (tmp_path / f"{name}.json").write_text(text)
        with pytest.raises(ValueError, match=f"{name}.json: expected OpenPose"):
            boxes_from_openpose(tmp_path / f"{name}.json")


def stamps(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


def test_a_folder_goes_on_where_it_stopped(model, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in ("a.jpg", "a.png", "b.jpg"):
        shutil.copy(PHOTO, source / name)
    (source / "c.jpg").write_bytes(PHOTO.read_bytes()[:200])
    paths = sorted(source.iterdir())
    done, failed = infer_files(
        Forward(model), paths, out, formats=("json",), progress=False
    )
    assert [p.name for p in done] == [
        "a_jpg_overlay.jpg",
        "a_png_overlay.jpg",
        "b_overlay.jpg",
    ] and list(failed) == [str(source / "c.jpg")]
    before = stamps(out)
    (out / "b_0.json").unlink()
    infer_files(Forward(model), paths, out, formats=("json",), progress=False)
    after = stamps(out)
    assert after.keys() == before.keys() and {
        n for n in after if after[n] != before[n]
    } == {"b_0.json", "b_overlay.jpg"}
    infer_files(Forward(model), paths, out, formats=("json", "npz"), progress=False)
    assert (
        stamps(out)["a_jpg_0.json"] == before["a_jpg_0.json"]
        and (out / "a_png_0.npz").is_file()
    )
    assert not [n for n in stamps(out) if n.startswith(".") or "part" in n]


def test_a_full_disk_leaves_nothing_half_written(model, tmp_path, monkeypatch):
    def full(self, file, *args, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    done, failed = infer_files(
        model, [PHOTO], tmp_path, formats=("json",), progress=False
    )
    assert (
        done == []
        and "No space left" in failed[str(PHOTO)]
        and [p.suffix for p in tmp_path.iterdir()] == [".json"]
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["x", "y/x", "z"]),
            st.sampled_from(["a.jpg", "a.png", "A.jpg", "a_jpg.jpg", "b.jpg"]),
        ),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
def test_results_never_share_a_name(parts):
    names = [n.lower() for n in _result_names([f"{d}/{f}" for d, f in parts])]
    assert len(set(names)) == len(parts)


def test_the_command_counts_what_failed_and_resumes(run, tmp_path):
    source, boxes, out = tmp_path / "in", tmp_path / "boxes", tmp_path / "out"
    source.mkdir(), boxes.mkdir()
    for name in "abc":
        shutil.copy(PHOTO, source / f"{name}.jpg")
    (source / "d.jpg").write_text("no picture")
    points = np.zeros((18, 3))
    points[[0, 2, 10, 13]] = [
        [50, 10, 0.9],
        [40, 30, 0.8],
        [42, 110, 0.7],
        [60, 112, 0.9],
    ]
    for name, people in (
        ("a", [points, points + [60, 5, 0]]),
        ("b", [np.zeros((18, 3))]),
        ("d", [points]),
    ):
        (boxes / f"{name}_keypoints.json").write_text(
            json.dumps(
                {
                    "version": 1.0,
                    "people": [
                        {"pose_keypoints": (p * (p[:, 2:] > 0)).ravel().tolist()}
                        for p in people
                    ],
                }
            )
        )
    words = (
        "infer",
        source,
        "--openpose",
        boxes,
        "--out",
        out,
        "--export",
        "json, obj",
    )
    code, said, err = run(*words)
    assert code == 1 and "1 of 4 pictures done" in said and "3 failed" in said
    assert (
        len([line for line in err.splitlines() if line.startswith("hmr_nb: ")]) == 3
        and "OpenPose found nobody" in err
        and "c_keypoints.json" in err
        and "d.jpg" in err
    )
    assert sorted(p.name for p in out.iterdir()) == [
        "a_0.json",
        "a_0.obj",
        "a_1.json",
        "a_1.obj",
        "a_overlay.jpg",
    ]
    before = stamps(out)
    assert (
        run(*words, "--resume", "--precision", "mixed_bfloat16")[0] == 1
        and stamps(out) == before
    )
    assert run("infer", PHOTO, "--precision", "half", "--out", out)[0] == 2
    assert (
        run(
            "infer",
            PHOTO,
            "--focal",
            "900",
            "--export",
            "json",
            "--out",
            tmp_path / "far",
        )[0]
        == 0
    )
    assert (
        json.loads((tmp_path / "far" / f"{PHOTO.stem}_0.json").read_text())["focal"]
        == 900
    )


def test_precision_is_for_the_encoder_alone(model):
    """Half precision where asked for, and only there; the small encoder stays whole by
    itself."""
    photo = load_photo(PHOTO)
    whole, half = (
        infer(Forward(model), photo)[0],
        infer(Forward(model, "mixed_bfloat16"), photo)[0],
    )
    assert (
        Forward(model).precision == "float32"
        and 0 < np.abs(whole.vertices - half.vertices).max() < 0.1
    )
    assert (
        half.vertices.dtype == np.float64
        and Forward(model, "mixed_bfloat16").encoder is not model.encoder
    )


def test_real_photographs(model):
    if not (REAL / "photos").is_dir():
        pytest.skip(
            "no real photographs beside the checkout (shared/real/photos): licensed,"
            " not shipped"
        )
    for path in sorted((REAL / "photos").glob("*.[jp][pn]g")):
        people = infer(model, load_photo(path))
        assert np.isfinite(people[0].vertices).all() and people[0].translation[2] > 0
        assert (
            draw_people(people.photo, people, side_views=False).shape
            == people.photo.shape
        )


def test_real_openpose_people_are_drawn_where_openpose_saw_them(model):
    if not (REAL / "openpose").is_dir():
        pytest.skip(
            "no OpenPose json beside the checkout (shared/real/openpose): licensed, not"
            " shipped"
        )
    boxes = boxes_from_openpose(next((REAL / "openpose").glob("*.json")))
    people = infer(model, load_photo(next((REAL / "openpose").glob("*.jpg"))), boxes)
    assert len(people) == len(boxes) == 2
    for person, (x, y, w, h) in zip(people, boxes):
        middle, side = person.keypoints_px.mean(0), max(w, h)
        assert (
            np.abs(middle - [x + w / 2, y + h / 2]).max() < 0.3 * side
            and 0.3 < np.ptp(person.keypoints_px[:, 1]) / side < 2
        )


def test_a_body_found_by_points_is_fitted_to_them(model, tmp_path):
    "OpenPose's points: the fitted body lies nearer to them than the prediction."
    person = infer(model, PHOTO, landmarks=None)[0]
    names = keypoint_set("openpose18").names
    own = dict(zip(person.names, person.keypoints_px))
    table = np.zeros((18, 3))
    for i, name in enumerate(names):
        if name in own:
            table[i] = [*(own[name] + [25, -12]), 0.9]
    file = tmp_path / "one_keypoints.json"
    one = {"pose_keypoints_2d": table.ravel().tolist()}
    file.write_text(json.dumps({"people": [one]}), encoding="utf-8")
    found = people_from_openpose(file)
    assert len(found) == 1 and len(found[0].names) == 18
    fitted = infer(model, PHOTO, found)[0]
    plain = infer(model, PHOTO, found, fit=False)[0]

    def off(body):
        px = dict(zip(body.names, body.keypoints_px))
        known = [i for i, n in enumerate(names) if n in own]
        gaps = [px[names[i]] - table[i, :2] for i in known]
        return np.linalg.norm(gaps, axis=1).mean()

    assert type(fitted).__name__ == "BodyFit" and type(plain).__name__ == "Prediction"
    assert fitted.names == plain.names and off(fitted) < 0.5 * off(plain)
    with pytest.raises(ValueError, match="once or for each person"):
        infer(model, PHOTO, [found[0], (1, 2, 3, 4)])
