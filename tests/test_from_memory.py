"""What a user tries from memory works, or says what to do."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import hmr_nb

OFFERED = """
SMPL HMR BodyData load_body save_body open_body UnsafePickleError KeypointSet
keypoint_set load_hmr small_hmr load_hmr_tf1 load_hmr2 load_photo infer evaluate
examples Experiment fit fit_regressor fit_marks load_rows save_rows KeypointPicker
BodyExplorer PhotoTool mpjpe pa_mpjpe pck auc
""".split()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    "A picture of one person that ships, as a file and as an array, and its box."
    from hmr_nb.basics.files import shipped

    with np.load(shipped("samples/truth.npz")) as samples:
        name, box = str(samples["image"][10]), samples["box"][10].tolist()
    path = shipped("samples") / name
    return path, np.asarray(Image.open(path).convert("RGB")), box


@pytest.fixture(scope="module")
def model():
    return hmr_nb.small_hmr()


@pytest.fixture(scope="module")
def person(model, photo):
    return hmr_nb.infer(model, *photo[1:])[0]


@pytest.mark.parametrize("name", OFFERED)
def test_the_face_offers(name):
    assert name in dir(hmr_nb)
    assert getattr(hmr_nb, name).__module__.startswith("hmr_nb.")


def test_the_face_is_light():
    heavy = ("tensorflow", "keras", "pandas", "numpy")
    code = f"import sys, hmr_nb; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_body_layer_without_arguments():
    smpl = hmr_nb.SMPL()
    pose = np.zeros((1, 24, 3), np.float32)
    out = smpl(pose)
    assert out.vertices.shape == (1, 6890, 3)
    rest = hmr_nb.open_body().v_template
    np.testing.assert_allclose(np.asarray(out.vertices[0]), rest, atol=1e-5)
    moved = smpl(pose, np.zeros((1, 10), np.float32), transl=np.float32([[1, 2, 3]]))
    np.testing.assert_allclose(moved.vertices[0], rest + [1, 2, 3], atol=1e-5)


def test_a_flat_pose_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"pose: expected \(b, 24, 3\).*reshape"):
        hmr_nb.SMPL()(np.zeros((1, 72), np.float32))


def test_infer_takes_a_path_a_picture_or_an_array(model, photo, person):
    path, image, box = photo
    for given in (path, str(path), Image.open(path)):
        found = hmr_nb.infer(model, given, box)
        assert len(found) == 1
        np.testing.assert_allclose(found[0].vertices, person.vertices, atol=1e-4)
    two = hmr_nb.infer(model, image, [box, box])
    assert len(two) == 2
    np.testing.assert_allclose(two[1].pose, person.pose, atol=1e-4)


def test_a_person_is_one_line_and_can_be_exported(person, tmp_path):
    assert "\n" not in repr(person) and len(repr(person)) < 160
    assert person.pose.shape == (24, 3) and person.betas.shape == (10,)
    for suffix in ("glb", "obj", "npz", "json"):
        file = tmp_path / f"x.{suffix}"
        person.export(file)
        assert file.stat().st_size > 1000
    with pytest.raises(ValueError, match="glb"):
        person.export(tmp_path / "x.docx")


def test_a_keypoint_from_vertices_and_rows_that_are_none():
    points = hmr_nb.keypoint_set("cocoplus19").add("navel", [1, 2, 3])
    assert points.names[-1] == "navel"
    row = np.zeros(6890)
    row[:3] = 1 / 3
    with pytest.raises(ValueError, match="sum"):
        hmr_nb.keypoint_set("cocoplus19").add("two", 2 * row)


def test_a_metric_says_what_it_does_not_do():
    said = hmr_nb.mpjpe.__doc__
    for word in ("root", "Args:", "Returns:", "mm", "(..., k, 3)"):
        assert word in said


def test_a_misspelt_option_is_guessed():
    with pytest.raises(TypeError, match="batch_size"):
        hmr_nb.Experiment(batchsize=4)
    assert hmr_nb.Experiment(batch_size=4).batch_size == 4


def test_keras_saves_and_loads(model, photo, tmp_path):
    import keras

    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    image = np.random.default_rng(0).uniform(-1, 1, (1, 96, 96, 3)).astype("float32")
    a, b = (np.asarray(m.recover(image).pose) for m in (model, again))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_body_layer_in_a_functional_model():
    import keras

    for points in (None, hmr_nb.keypoint_set("lsp14")):
        smpl = hmr_nb.SMPL(hmr_nb.open_body(), keypoints=points)
        pose, betas = keras.Input((24, 3)), keras.Input((10,))
        network = keras.Model([pose, betas], smpl(pose, betas).vertices)
        zero = [np.zeros((2, 24, 3), "float32"), np.zeros((2, 10), "float32")]
        assert network.predict(zero, verbose=0).shape == (2, 6890, 3)
