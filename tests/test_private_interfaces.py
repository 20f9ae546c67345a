"""What we use of other libraries although it is not in their documented interface.

Each of these may move with any version. Where one does, the test says which version
moved it and where it is used. Nothing else of this kind may be used: the last test
reads the package for it.
"""

import ast
import inspect
import pickle
import re
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parent.parent
PRIVATE = {
    "_get_variable_index": "training.optimizers: which moments belong to a weight",
    "_maybe_symbolic_build": "training.trainer: Keras must not call the model itself",
    "_export_to_saved_model_graph": "body.smpl: no body in an exported model",
    "_Unpickler": "body.pickles: reading pickles without running them",
}


def moved(name: str, library: str, version: str) -> str:
    return (
        f"{library} {version} moved {name}, which hmr_nb uses for {PRIVATE[name]}; find"
        " its new place, or do without it"
    )


def test_optimizers_know_the_place_of_a_weight():
    message = moved("_get_variable_index", "keras", keras.__version__)
    optimizer = keras.optimizers.SGD()
    assert hasattr(optimizer, "_get_variable_index"), message
    weights = [keras.Variable([float(i)], name=f"w{i}") for i in range(3)]
    optimizer.build(weights)
    assert [optimizer._get_variable_index(w) for w in weights] == [0, 1, 2], message


def test_fit_builds_through_the_method_that_we_replace():
    "TensorFlow's `fit` calls it, with these arguments."
    message = moved("_maybe_symbolic_build", "keras", keras.__version__)
    theirs = getattr(keras.Model, "_maybe_symbolic_build", None)
    assert theirs is not None, message
    assert list(inspect.signature(theirs).parameters) == [
        "self",
        "iterator",
        "data_batch",
    ], message
    assert "_maybe_symbolic_build" in inspect.getsource(keras.Model.fit), message


def test_variables_are_exported_through_the_method_that_we_replace():
    tf = pytest.importorskip("tensorflow")
    message = moved("_export_to_saved_model_graph", "tensorflow", tf.__version__)
    variable = tf.Variable([1.0])
    assert callable(getattr(variable, "_export_to_saved_model_graph", None)), message


def test_the_export_of_a_variable_calls_it(tmp_path):
    tf = pytest.importorskip("tensorflow")
    message = moved("_export_to_saved_model_graph", "tensorflow", tf.__version__)
    asked = []
    module = tf.Module()
    module.v = tf.Variable([1.0])
    theirs = module.v._export_to_saved_model_graph
    module.v._export_to_saved_model_graph = lambda *a, **k: (
        asked.append(1) or theirs(*a, **k)
    )
    tf.saved_model.save(module, str(tmp_path / "m"))
    assert asked, message


def test_pickle_has_a_reader_in_python():
    import platform

    message = moved("_Unpickler", "Python", platform.python_version())
    reader = getattr(pickle, "_Unpickler", None)
    assert reader is not None and isinstance(reader.dispatch, dict), message
    assert pickle.REDUCE[0] in reader.dispatch, message


def test_nothing_else_of_this_kind_is_used():
    """Attributes with one leading underscore of what is not ours: an object that is
    neither `self` nor one of our modules or classes."""
    ours = set()
    trees = {}
    for path in (ROOT / "hmr_nb").rglob("*.py"):
        if path.name == "_modidx.py":
            continue
        trees[path] = tree = ast.parse(path.read_text(encoding="utf-8"))
        for n in ast.walk(tree):
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
                ours.add(n.name)
            stored = isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
            if stored and isinstance(n.value, ast.Name) and n.value.id == "self":
                ours.add(n.attr)
    # documented: of named tuples, and how IPython shows a value
    harmless = {"_replace", "_asdict", "_fields", "_make", "_repr_html_"}
    found = {}
    for path, tree in trees.items():
        for n in ast.walk(tree):
            if not isinstance(n, ast.Attribute) or not re.match("_[A-Za-z]", n.attr):
                continue
            if n.attr not in ours | harmless | set(PRIVATE):
                found.setdefault(n.attr, f"{path.relative_to(ROOT)}:{n.lineno}")
    assert not found, f"private interfaces that are not listed here: {found}"
