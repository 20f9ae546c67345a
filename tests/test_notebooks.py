"""The rules that keep the notebooks a book: order of imports, form, size, flags."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from export import by_hand

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(
    p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
)
FLAGS = ("slow", "gpu", "browser", "data", "backend")


def cells(path: Path, kind: str = "code") -> list[dict]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        {**c, "source": "".join(c["source"])} for c in found if c["cell_type"] == kind
    ]


def is_exported(source: str) -> bool:
    return bool(re.search(r"^#\|\s*exports?\b", source, re.M))


def module_of(path: Path) -> str | None:
    found = re.search(
        r"^#\|\s*default_exp\s+(\S+)", "\n".join(c["source"] for c in cells(path)), re.M
    )
    return found and found.group(1)


HOMES = {module_of(p): p for p in NOTEBOOKS if module_of(p)}
LESSONS = [p for p in NOTEBOOKS if module_of(p)]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)


def place(module: str) -> tuple[int, ...]:
    "Where a page stands: part, whether in a folder inside the part, number."
    parts = HOMES[module].relative_to(ROOT / "nbs").parts
    return int(parts[0].split("_")[0]), len(parts) - 2, int(parts[-1].split("_")[0])


def imported_modules(path: Path) -> set[str]:
    """hmr_nb modules that the exported cells of a notebook import, also inside
    functions."""
    tree = ast.parse(
        "\n".join(c["source"] for c in cells(path) if is_exported(c["source"]))
    )
    found = {
        a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names
    }
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and n.module:
            found |= {n.module, *(f"{n.module}.{a.name}" for a in n.names)}
    return {m.removeprefix("hmr_nb.") for m in found} & set(HOMES)


@each_lesson
def test_imports_point_to_earlier_pages(path):
    "To an earlier part, or to a lower number in the same part."
    module = module_of(path)
    upward = {
        m: str(HOMES[m].relative_to(ROOT))
        for m in imported_modules(path)
        if place(m) >= place(module)
    }
    assert not upward, f"{path.name} imports from {upward}"


@each_lesson
def test_folders_of_pages_and_of_modules_mirror_each_other(path):
    part = [re.sub(r"^\d+_", "", p) for p in path.relative_to(ROOT / "nbs").parts[:-1]]
    assert module_of(path).split(".")[:-1] == part


def test_one_notebook_a_module_and_one_module_a_notebook():
    modules = [module_of(p) for p in LESSONS]
    assert len(modules) == len(set(modules))
    files = {
        str(p.relative_to(ROOT / "hmr_nb").with_suffix("")).replace("/", ".")
        for p in (ROOT / "hmr_nb").rglob("*.py")
        if not p.name.startswith("_")
    }
    assert files == set(modules)


def test_files_that_come_from_no_notebook_are_listed():
    "In settings.ini; setup.py ships them, and so does nothing else."
    made = {ROOT / "hmr_nb" / (m.replace(".", "/") + ".py") for m in HOMES}
    made |= {p for p in (ROOT / "hmr_nb").rglob("__init__.py") if not p.read_bytes()}
    made.add(ROOT / "hmr_nb" / "_modidx.py")
    kept = {p for p in (ROOT / "hmr_nb").rglob("*.*") if "__pycache__" not in p.parts}
    assert {str(p.relative_to(ROOT / "hmr_nb")) for p in kept - made} == set(by_hand())


@each_notebook
def test_size_and_state(path):
    text = path.read_text(encoding="utf-8")
    assert "widgets" not in json.loads(text)["metadata"], "widget state is stored"
    assert len(text) < 450_000, f"{len(text) // 1000} kB"
    for c in cells(path):
        for out in c.get("outputs", []):
            assert out["output_type"] != "error", f"a stored error: {out.get('ename')}"
            for kind, data in out.get("data", {}).items():
                if kind.startswith("image/"):
                    assert len("".join(data)) * 3 / 4 < 60_000, (
                        f"{kind} of {len(''.join(data)) * 3 // 4000} kB under"
                        f" {c['source'][:60]!r}"
                    )


@each_notebook
def test_links_to_pages_lead_somewhere(path):
    text = "\n".join(c["source"] for c in cells(path, "markdown"))
    for link in re.findall(r"\]\(([^)#\s]+\.ipynb)", text):
        assert (path.parent / link).is_file(), f"{link}: no such page"


@each_notebook
def test_outputs_name_no_machine(path):
    outputs = json.dumps([c.get("outputs", []) for c in cells(path)])
    found = re.search(
        r"(?<![\w.])/(?:home|root|tmp|work|Users|usr)/[\w.]+|0x[0-9a-f]{8,}", outputs
    )
    assert not found, f"{path.name} stores {found.group()}"


# pages that were split from another and leave the pictures to it
NO_PICTURE = re.compile(
    r"shell\.(?!demo)|training\.(state|callbacks|run)|records\.(writer|workers)"
)


@each_lesson
def test_prose_and_pictures(path):
    prose, code = cells(path, "markdown"), cells(path)
    assert len(prose) >= 0.3 * (len(prose) + len(code))
    pictures = [
        k
        for c in code
        for o in c.get("outputs", [])
        for k in o.get("data", {})
        if k.startswith("image/")
    ]
    assert pictures or NO_PICTURE.match(module_of(path)), "no picture"


LONGEST = 60  # lines of a function's body, its docstring left out


def functions(path: Path) -> list[tuple[str, int]]:
    "Name and lines of the body of every exported function and method."
    found = []
    for c in cells(path):
        for n in ast.walk(ast.parse(c["source"])) if is_exported(c["source"]) else []:
            if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = n.body[ast.get_docstring(n) is not None :]
                found.append(
                    (n.name, body[-1].end_lineno - body[0].lineno + 1 if body else 0)
                )
    return found


@each_lesson
def test_exported_functions_are_short_and_imports_explicit(path):
    "A class may be as long as it is clear; its methods are functions like others."
    long = {name: lines for name, lines in functions(path) if lines > LONGEST}
    assert not long, f"more than {LONGEST} lines: {long}"
    for c in cells(path):
        if is_exported(c["source"]):
            assert not re.search(r"^from \S+ import \*", c["source"], re.M)


def exported(path: Path) -> list[ast.stmt]:
    "The top-level statements of the exported cells."
    found = [c["source"] for c in cells(path) if is_exported(c["source"])]
    return [n for source in found for n in ast.parse(source).body]


@each_lesson
def test_methods_stand_in_their_class(path):
    "None is attached from outside, where no type checker sees it."
    attached = [
        ast.unparse(n.targets[0])
        for n in exported(path)
        if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Attribute)
    ]
    assert not [a for a in attached if a not in ("test_view.__test__",)], attached


MOST_IN_ORDER = 6  # arguments that may be given by their place


@each_lesson
def test_options_are_given_by_keyword(path):
    "After the few arguments that everybody knows comes a star."
    many = {}
    for n in exported(path):
        public = isinstance(n, ast.FunctionDef) and not n.name.startswith("_")
        if public and not n.decorator_list:  # a command's options are its signature
            in_order = len(n.args.posonlyargs) + len(n.args.args)
            if in_order > MOST_IN_ORDER or len(n.args.defaults) > 2:
                many[n.name] = in_order, len(n.args.defaults)
    assert not many, f"arguments by place, and options among them: {many}"


PRIVATE_WORDS = (
    "turn turned guess guesses critic oracle verdict cost costs film hint hints"
    " ghost ghosts learnt paid"
).split()


@each_lesson
def test_public_names_use_the_words_of_the_field(path):
    "Rotation, prediction, discriminator, reference, loss, video, overlay, body shape."
    names = {
        n.name for n in exported(path) if isinstance(n, (ast.FunctionDef, ast.ClassDef))
    }
    public = {n for n in names if not n.startswith("_")}
    split = {n: re.findall(r"[a-z]+|[A-Z][a-z]*", n) for n in public}
    wrong = [
        n for n, ws in split.items() if {w.lower() for w in ws} & set(PRIVATE_WORDS)
    ]
    assert not wrong, wrong


@each_lesson
def test_imports_stand_in_import_cells(path):
    for c in cells(path):
        body = ast.parse(re.sub(r"^[%!].*$", "", c["source"], flags=re.M)).body
        imports = [n for n in body if isinstance(n, (ast.Import, ast.ImportFrom))]
        rest = [n for n in body if not isinstance(n, (ast.Import, ast.ImportFrom))]
        assert not (imports and rest), f"an import beside work: {c['source'][:80]!r}"


@each_lesson
def test_every_public_name_is_shown_in_use(path):
    code = cells(path)
    for i, c in enumerate(code):
        if not is_exported(c["source"]):
            continue
        names = [
            n.name
            for n in ast.parse(c["source"]).body
            if isinstance(n, (ast.FunctionDef, ast.ClassDef))
            and not n.name.startswith("_")
        ]
        later = "\n".join(d["source"] for d in code[i + 1 :])
        for name in names:
            assert re.search(rf"\b{name}\b", later), (
                f"{name} is exported and never used after"
            )


def test_flagged_cells_are_few_and_counted(capsys):
    flagged = {}
    for path in NOTEBOOKS:
        count = sum(
            bool(re.search(rf"^#\|\s*({'|'.join(FLAGS)})\b", c["source"], re.M))
            for c in cells(path)
        )
        if count:
            flagged[path.stem] = count
    with capsys.disabled():
        print(f"\nflagged cells, not run by default: {flagged or 'none'}")
    assert sum(flagged.values()) <= 20 and all(n <= 4 for n in flagged.values())


LIGHT = (
    "basics.shapes basics.keypoints basics.camera basics.metrics basics.drawing"
    " basics.rendering body.body_data body.open_body keypoints.joint_regressor"
    " keypoints.marks study.distances"
).split()
HEAVY = ("tensorflow", "keras", "torch", "jax")


def loaded_after(code: str, modules: tuple[str, ...]) -> list[str]:
    "Which of some modules a fresh Python has loaded after running code."
    code += f"\nimport sys\nprint([m for m in {modules!r} if m in sys.modules])"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def test_no_heavy_import_in_the_light_modules():
    "Keypoint work must start at once: these modules never load TensorFlow."
    assert loaded_after("\n".join(f"import hmr_nb.{m}" for m in LIGHT), HEAVY) == []


def test_reading_the_open_body_loads_nothing_that_makes_it():
    found = loaded_after("import hmr_nb\nhmr_nb.open_body()", ("hmr_nb.making", *HEAVY))
    assert found == []


def test_nothing_is_left_from_the_workshop():
    words = re.compile(r"\b(TODO|FIXME|XXX)\b")
    for path in NOTEBOOKS:
        for c in cells(path):
            assert not words.search(c["source"]), f"{path.name}: {c['source'][:80]!r}"
