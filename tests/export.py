"""`make export`: notebooks to modules, and their notes on arguments into docstrings.

In a notebook the notes on an argument stand beside it, as comments (docments).
`help(mpjpe)` and Shift-Tab read `__doc__` instead. So after nbdev_export each function,
class and named tuple gets sections `Args`, `Returns` and `Attributes` made from them.
"""

import ast
import io
import re
import subprocess
import sys
import textwrap
import tokenize
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hmr_nb"
WIDTH = 88


def by_hand() -> list[str]:
    "Files of the package that come from no notebook, relative to it."
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    return settings["DEFAULT"]["by_hand"].split()


def comments_of(source: str) -> dict[int, str]:
    "The comment on each line, without its sign; notes to linters are left out."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    notes = {
        n: text.split("# noqa")[0].split("# pyright")[0] for n, text in found.items()
    }
    return {
        n: text.lstrip("# ").strip() for n, text in notes.items() if text.strip("# ")
    }


def note(lines: list[str], comments: dict[int, str], last: int, first: int) -> str:
    "What is said of an item: on its last line, or on comment lines right above it."
    if last in comments:
        return comments[last]
    above = []
    while (n := first - 1 - len(above)) in comments and lines[
        n - 1
    ].lstrip().startswith("#"):
        above.append(comments[n])
    return " ".join(reversed(above))


def section(title: str, items: dict[str, str]) -> list[str]:
    "A section of a docstring, in Google's style."
    lines = []
    for name, text in items.items():
        entry = f"{name}: {text}" if name else text
        lines += textwrap.wrap(
            entry, WIDTH - 8, initial_indent="    ", subsequent_indent="        "
        )
    return [title + ":", *lines] if lines else []


def header_end(node, lines) -> int:
    "The line on which the header of a function ends, with its colon."
    parts = [n for n in ast.walk(node.args) if hasattr(n, "end_lineno")]
    parts += [node.returns] if node.returns else []
    after = max([node.lineno, *(n.end_lineno for n in parts)])
    ends = range(after, node.body[0].lineno + 1)
    return next(n for n in ends if re.search(r":\s*(#.*)?$|:\s+\S", lines[n - 1]))


def notes_of_arguments(node, lines, comments) -> tuple[dict[str, str], str]:
    "Notes on the arguments of a function, and on what it returns."
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    pairs = list(zip(plain, [None] * (len(plain) - len(a.defaults)) + a.defaults))
    pairs += list(zip(a.kwonlyargs, a.kw_defaults))
    stars = [(x, None) for x in (a.vararg, a.kwarg) if x]
    end = header_end(node, lines)
    said = {}
    for x, default in [*pairs, *stars]:
        last = max(x.end_lineno, default.end_lineno if default is not None else 0)
        if last < end and (text := note(lines, comments, last, x.lineno)):
            said[x.arg] = text
    if end == node.lineno:  # what stands above belongs to another thing
        return said, comments.get(end, "")
    returned = note(lines, comments, end, node.returns.lineno if node.returns else end)
    return said, returned


def notes_of_fields(node, lines, comments) -> dict[str, str]:
    "Notes on the fields of a dataclass or named tuple."
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    found = {
        ast.unparse(n.target): note(lines, comments, n.end_lineno, n.lineno)
        for n in fields
    }
    return {name: text for name, text in found.items() if text}


def docstring(node, lines, comments) -> str | None:
    "The docstring with its sections; None where there is nothing to add."
    is_class = isinstance(node, ast.ClassDef)
    parts = []
    if is_class:
        methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
        if "__init__" in methods:
            parts += section(
                "Args", notes_of_arguments(methods["__init__"], lines, comments)[0]
            )
        parts += section("Attributes", notes_of_fields(node, lines, comments))
    else:
        arguments, returned = notes_of_arguments(node, lines, comments)
        parts += section("Args", arguments)
        parts += [""] * bool(parts and returned) + section(
            "Returns", {"": returned} if returned else {}
        )
    summary = ast.get_docstring(node)
    return f"{summary}\n\n" + "\n".join(parts) if summary and parts else None


def with_docstrings(source: str) -> str:
    "A module whose docstrings tell what its comments tell."
    lines, comments = source.split("\n"), comments_of(source)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, kinds)]
    for node in sorted(nodes, key=lambda n: -n.lineno):
        text = docstring(node, lines, comments)
        if text is None:
            continue
        old, pad = node.body[0], " " * node.body[0].col_offset
        quoted = '"""' + text.replace("\\", "\\\\").replace('"""', "'''") + "\n" + '"""'
        new = [pad + line if line else "" for line in quoted.split("\n")]
        lines[old.lineno - 1 : old.end_lineno] = new
    return "\n".join(lines)


def export() -> None:
    "Notebooks to modules, docstrings included."
    subprocess.run([Path(sys.executable).parent / "nbdev_export"], cwd=ROOT, check=True)
    hand = {PACKAGE / name for name in by_hand()}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path not in hand and not path.name.startswith("_"):
            source = path.read_text(encoding="utf-8")
            path.write_text(with_docstrings(source), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    export()
