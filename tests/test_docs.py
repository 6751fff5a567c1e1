"""README and docs name commands, options, modules and files that exist, and every page can be found from another."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from activations.errors import UserError
from experiments import cli
from experiments.frame.discover import experiments

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
PACKAGES = ("activations", "sae", "diffing", "experiments", "benchmarks")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@page
def test_commands_and_options_exist(page: Path) -> None:
    """Breaks if a page names a command that was renamed, or an option that it does not have."""
    for words in commands(page.read_text(encoding="utf-8")):
        problem = problem_with(words)
        assert problem is None, f"{page.name}: sae-diff {' '.join(words)}: {problem}"


@pytest.mark.parametrize(
    "line", ["personas extract", "store burn runs/acts", "steer --run R --tops 3", "rank --base B extra"]
)
def test_wrong_commands_are_noticed(line: str) -> None:
    """Breaks if the test above would let a wrong command, subcommand, option or argument pass."""
    assert problem_with(line.split()) is not None


@page
def test_modules_exist(page: Path) -> None:
    """Breaks if `python -m` or `torchrun -m` names a module that was moved."""
    text = unwrapped(page.read_text(encoding="utf-8"))
    for name in re.findall(r"(?:python|torchrun)\b[^`\n]*? -m ([\w.]+)", text):
        assert name.split(".")[0] not in PACKAGES or find_spec(name) is not None, f"{page.name}: {name}"


@page
def test_links_resolve(page: Path) -> None:
    """Breaks if a page or a heading was renamed that another page links to, or a path in backticks was moved."""
    text = page.read_text(encoding="utf-8")
    for target in _LINK.findall(without_blocks(text)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name}: {target}"
    for named in re.findall(r"`((?:docs|tests|benchmarks|activations|sae|diffing|experiments)/[\w/.-]+)`", text):
        assert (ROOT / named).exists(), f"{page.name}: {named}"


@page
def test_python_blocks_import_what_exists(page: Path) -> None:
    """Breaks if a block for a notebook is no Python, or imports a name that was moved."""
    for language, block in _FENCED.findall(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{page.name}: {node.module} has no {', '.join(missing)}"


def test_every_page_is_linked() -> None:
    """Breaks if a page can be found only by those who list the folder."""
    linked = {
        (source.parent / target.partition("#")[0]).resolve()
        for source in PAGES
        for target in _LINK.findall(source.read_text(encoding="utf-8"))
        if "://" not in target and (source.parent / target.partition("#")[0]).resolve() != source
    }
    assert not {str(path.relative_to(ROOT)) for path in DOCS if path not in linked}


def test_sources_name_pages_that_exist() -> None:
    """Breaks if code, help or data refers to a page that was moved."""
    for path in (
        path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".yaml")
    ):
        for named in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / named).exists(), f"{path.relative_to(ROOT)}: {named}"


def test_every_experiment_has_its_page() -> None:
    """Breaks if an experiment is added without a page and a row of the overview."""
    overview = (ROOT / "docs/experiments/README.md").read_text(encoding="utf-8")
    for name in experiments():
        assert (ROOT / f"docs/experiments/{name}.md").exists(), name
        assert f"]({name}.md)" in overview, name


def commands(text: str) -> Iterator[list[str]]:
    """Words after `sae-diff` of every command in a text: a line of a block, or code in a sentence or a table.

    Placeholders such as `sae-diff <command>` are not commands. torchrun's `-m experiments.cli` is the same program.
    """
    lines = [line for _, block in _FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    code = re.findall(r"`([^`]+)`", unwrapped(without_blocks(text)))
    for line in (*lines, *code):
        found = re.match(r"\s*(?:\$ )?(?:sae-diff|torchrun .*-m experiments\.cli) +([a-z].*)", line)
        if found is not None:
            words = re.sub(r"\(.*?\)", " ", found.group(1))  # "(the same options)"
            yield shlex.split(words, comments=True)


def problem_with(words: list[str]) -> str | None:
    """Why a command line is wrong, as far as names of commands and options tell; None if it is not."""
    command, rest = typer.main.get_command(application()), list(words)
    while hasattr(command, "commands") and rest:
        found = command.commands.get(rest[0])  # pyright: ignore[reportAttributeAccessIssue]
        if found is None:
            return f"no command {rest[0]}"
        command, rest = found, rest[1:]
    context = command.context_class(command, info_name=command.name)
    try:
        _, extra, _ = command.make_parser(context).parse_args(rest)
    except Exception as error:  # click's, or the copy of it that typer brings
        # A sentence may name an option without a value.
        return None if type(error).__name__ == "BadOptionUsage" else str(error)
    return f"too much: {' '.join(extra)}" if extra else None


@cache
def application() -> typer.Typer:
    """`sae-diff` with all commands."""
    try:
        cli._add_commands()
    except UserError as error:
        pytest.fail(str(error))
    return cli.app


def without_blocks(text: str) -> str:
    """Prose and tables."""
    return _FENCED.sub("", text)


def unwrapped(text: str) -> str:
    """Paragraphs on one line, so that code that is broken over lines is whole."""
    return re.sub(r"(?<!\n)\n[ >]*(?![\n|`#-])", " ", text)


@cache
def anchors(path: Path) -> set[str]:
    """What a page's headings are linked by, as GitHub makes it: lower case, no punctuation, dashes for spaces."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
