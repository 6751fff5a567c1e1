"""What every function of the four layers keeps to: few parameters, short, not deeply nested."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("activations", "sae", "diffing", "experiments")
MOST_PARAMETERS, MOST_LINES, DEEPEST = 6, 60, 4
NESTING = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# A command's parameters are its options.
COMMANDS = "experiments/cli.py"


def breaches(path: Path, root: Path = ROOT) -> Iterator[str]:
    """What a file does against the rules."""
    file, tree = path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
    for name, node in functions(tree):
        if len(parameters(node)) > MOST_PARAMETERS and not node.name.startswith("_") and file != COMMANDS:
            yield f"{file}: {name}: parameters"
        if (node.end_lineno or 0) - node.lineno + 1 > MOST_LINES:
            yield f"{file}: {name}: lines"
    for node in tree.body:
        if depth(node) > DEEPEST:
            yield f"{file}: {getattr(node, 'name', node.lineno)}: nesting"


def functions(
    node: ast.AST, outer: tuple[str, ...] = ()
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with its name, that of its class before it."""
    for child in ast.iter_child_nodes(node):
        inner = (*outer, child.name) if isinstance(child, (*FUNCTIONS, ast.ClassDef)) else outer
        if isinstance(child, FUNCTIONS):
            yield ".".join(inner), child
        yield from functions(child, inner)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of the parameters but self and cls."""
    given = node.args
    listed = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return [one.arg for one in listed if one.arg not in ("self", "cls")]


def depth(node: ast.AST) -> int:
    """How many blocks lie in one another; `elif` is no deeper than its `if`."""
    inner = [child for child in ast.iter_child_nodes(node) if not is_elif(node, child)]
    same = [child for child in ast.iter_child_nodes(node) if is_elif(node, child)]
    deepest = max((depth(child) for child in inner), default=0) + isinstance(node, NESTING)
    return max([deepest, *map(depth, same)])


def is_elif(node: ast.AST, child: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]


def test_functions_are_small():
    """Fails for a function with too many parameters or lines, or too deep a nest."""
    found = {breach for layer in LAYERS for path in (ROOT / layer).rglob("*.py") for breach in breaches(path)}
    assert not found


@pytest.mark.parametrize("layer", LAYERS[:-1])
def test_the_library_never_prints(layer: str):
    """Fails if a lower layer writes to the console what a notebook or a log should get."""
    for path in (ROOT / layer).rglob("*.py"):
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        assert not [call.lineno for call in calls if ast.unparse(call.func) == "print"], path


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("def f(a, b, c, d, e, f, *, g): ...", "f: parameters"),
        ("class C:\n def f(self, a, b, c, d, e, f): ...", None),
        ("def _f(a, b, c, d, e, f, g): ...", None),
        ("def f():\n" + " x = 1\n" * 60, "f: lines"),
        ("class C:\n def f(self):\n  for a in b:\n   if a:\n    while a:\n     pass", "C: nesting"),
        ("def f():\n if a:\n  pass\n elif b:\n  pass\n elif c:\n  pass\n elif d:\n  pass\n elif e:\n  pass", None),
    ],
)
def test_each_rule_is_seen(tmp_path: Path, code: str, rule: str | None):
    """Fails if a rule lets a breach through, or sees one where there is none."""
    path = tmp_path / "code.py"
    path.write_text(code)
    assert [breach.removeprefix("code.py: ") for breach in breaches(path, tmp_path)] == ([rule] if rule else [])
