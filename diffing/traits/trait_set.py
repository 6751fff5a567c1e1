"""Trait sets: what a trait's direction is extracted with and its answers are judged by, read from YAML files."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from activations.errors import UserError
from diffing.traits import persona_vectors

SHIPPED = ("big_five", "dark_triad", "llm_behaviours")
PLACEHOLDERS = {"question", "answer"}
_FORMAT = "see docs/traits.md for the format"

Valence = Literal["prosocial", "antisocial", "neutral"]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Questions = Annotated[tuple[Text, ...], Field(min_length=1)]


class PromptPair(BaseModel):
    """Two system prompts that differ in the trait only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positive: Text = Field(description="Asks for the trait.")
    negative: Text = Field(description="Asks for its opposite.")

    @model_validator(mode="after")
    def _poles_differ(self) -> "PromptPair":
        if self.positive == self.negative:
            raise ValueError("positive and negative are the same sentence; write the opposite pole")
        return self


class Trait(BaseModel):
    """One trait: pairs, questions and judge prompt as in Chen et al. 2025 (arXiv 2507.21509), and what we add."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[\w.+-]+$", description="Name in tables, ids of prompts and names of files.")
    definition: Text | None = Field(description="One sentence; null where the source has none.")
    valence: Valence | None = Field(description="A judgement, not a measurement; null where the source has none.")
    pairs: tuple[PromptPair, ...] = Field(min_length=1, description="Contrastive system prompts.")
    extraction_questions: Questions = Field(description="User turns that the direction is extracted on.")
    evaluation_questions: Questions = Field(description="User turns that the trait is measured on; none of the former.")
    eval_prompt: Text = Field(description="Asks a judge for 0-100 or REFUSAL; filled in with str.format.")

    @field_validator("eval_prompt")
    @classmethod
    def _has_placeholders(cls, text: str) -> str:
        try:
            found = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
        except ValueError:
            raise ValueError("a single brace stands alone; write it twice") from None
        if missing := sorted(PLACEHOLDERS - found):
            raise ValueError(f"the placeholder {{{missing[0]}}} is missing; put it where the {missing[0]} belongs")
        if other := sorted(found - PLACEHOLDERS):
            raise ValueError(f"{{{other[0]}}} is no placeholder; write literal braces twice")
        return text

    @model_validator(mode="after")
    def _questions_differ(self) -> "Trait":
        seen: dict[str, str] = {}
        keys = ("extraction_questions", "evaluation_questions")
        for key, question in [(name, question) for name in keys for question in getattr(self, name)]:
            plain = same_question(question)
            if plain in seen:
                where = f"twice in {key}" if seen[plain] == key else f"in both {seen[plain]} and {key}"
                raise ValueError(f"the question '{question}' is {where}; keep one")
            seen[plain] = key
        return self


class TraitSet(BaseModel):
    """Traits with distinct names: the content of a trait file, or of several joined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = Field(description="Version of the format.")
    traits: tuple[Trait, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> "TraitSet":
        for i, name in enumerate(self.names):
            if name in self.names[:i]:
                raise ValueError(f"two traits are called '{name}'; rename one")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the traits, in order."""
        return tuple(trait.name for trait in self.traits)

    def __getitem__(self, name: str) -> Trait:
        """The trait called `name`.

        Raises:
            UserError: if there is none, naming the nearest.
        """
        if name not in self.names:
            raise UserError(f"There is no trait '{name}'; the nearest is '{_nearest(name, self.names)}'.")
        return self.traits[self.names.index(name)]


def load_traits(sources: str | Path | Sequence[str | Path] = SHIPPED) -> TraitSet:
    """Reads traits from one or several sources and joins them in that order.

    A source is a set that ships with the package (one of `SHIPPED`), a trait file (`.yaml`, `.yml`; docs/traits.md), a
    trait of persona vectors (`.json`, Chen et al. 2025; see `diffing.traits.persona_vectors`), or a folder of such
    files, which are read in the order of their names. A file that several sources name is read once.

    Raises:
        UserError: naming file, trait and key, for a source that does not exist or holds no traits, for what does not
            fit the format, or for a name that two traits share.
    """
    listed = [sources] if isinstance(sources, str | Path) else sources
    if not listed:
        raise UserError(f"No source of traits is given; name a file, a folder, or one of {', '.join(SHIPPED)}.")
    origin: dict[str, Path] = {}
    traits: list[Trait] = []
    for file in dict.fromkeys(file for source in listed for file in _files(source)):
        for trait in _read(file).traits:
            if trait.name in origin:
                raise UserError(f"{file}: the name '{trait.name}' is taken by {origin[trait.name]}; rename one.")
            origin[trait.name] = file
            traits.append(trait)
    return TraitSet(version=1, traits=tuple(traits))


def same_question(question: str) -> str:
    """What two spellings of a question share: its words without case and punctuation."""
    return " ".join("".join(c if c.isalnum() else " " for c in question.casefold()).split())


def _files(source: str | Path) -> Iterator[Path]:
    path = Path(source)
    if not path.exists() and str(source) in SHIPPED:
        path = Path(__file__).with_name(f"{source}.yaml")
    if not path.exists():
        raise UserError(f"{path} does not exist; give a trait file, a folder, or one of {', '.join(SHIPPED)}.")
    known = (".yaml", ".yml", ".json")
    if path.is_file() and path.suffix.lower() not in known:
        raise UserError(f"{path} is no {', '.join(known)} file of traits; {_FORMAT}.")
    folders = (path, path / persona_vectors.EXTRACTION, path / persona_vectors.EVALUATION)
    inside = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())]
    files = [path] if path.is_file() else [file for file in inside if file.suffix.lower() in known]
    if not files:
        raise UserError(f"{path} holds no {', '.join(known)} file of traits; {_FORMAT}.")
    return (persona_vectors.first_of_pair(file.absolute()) for file in files)


def _read(path: Path) -> TraitSet:
    values = persona_vectors.read(path) if path.suffix.lower() == ".json" else _from_yaml(path)
    try:
        return TraitSet.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error, values)}; {_FORMAT}.") from None


def _from_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}); correct it.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no 'version' and 'traits'; {_FORMAT}.")
    return values


def _first_problem(error: ValidationError, values: dict[str, Any]) -> str:
    """The first problem in words: which trait, which key, what is wrong with it."""
    problems = error.errors()
    # A misspelt key is unknown, and the right one is missing: the former tells more.
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    where = _place(first["loc"], values)
    if first["type"] == "extra_forbidden":
        model = {1: TraitSet, 3: Trait, 5: PromptPair}[len(first["loc"])]
        return f"{where}: unknown key; the nearest is '{_nearest(str(first['loc'][-1]), model.model_fields)}'"
    if first["type"] == "missing":
        return f"{where} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _place(loc: tuple[int | str, ...], values: dict[str, Any]) -> str:
    """A path within the file as people name it: traits by their names, items of lists counted from 1."""
    if len(loc) < 2:
        return ".".join(map(str, loc))
    trait = values["traits"][loc[1]]
    name = trait.get("name") if isinstance(trait, dict) else None
    label = f"trait '{name}'" if name else f"trait number {int(loc[1]) + 1}"
    rest = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in loc[2:])
    return f"{label}, {rest.removeprefix('.')}" if rest else label


def _nearest(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
