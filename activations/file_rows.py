"""Rows of the files that users give, each with the place where it stands, as messages name it."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from activations.errors import UserError

# Endings of files with prompts, tokens or texts.
_SUFFIXES = (".jsonl", ".json", ".yaml", ".yml", ".csv", ".txt", ".parquet")


class Place(NamedTuple):
    """Where a prompt stands, as messages name it."""

    path: Path
    unit: Literal["line", "entry"]
    number: int

    def __str__(self) -> str:
        return f"{self.path}:{self.number}" if self.unit == "line" else f"{self.path}, entry {self.number}"

    @property
    def default_id(self) -> str:
        return f"{short_name(self.path)}:{self.number}"


_Model = TypeVar("_Model", bound=BaseModel)


def parse(model: type[_Model], value: object, place: Place | Path) -> _Model:
    """A row as a model.

    Raises:
        UserError: naming the place, and the key that does not fit.
    """
    if not isinstance(value, dict):
        raise UserError(
            f"{place}: expected an object, found {value!r:.40}; see activations.prompt_files for the format."
        )
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{place}: {f'{key}: ' if key else ''}{first['msg']}; see activations.prompt_files for the format."
        ) from None


def claim(id: str, place: Place, seen: dict[str, Place]) -> None:
    """Notes where an id was first used.

    Raises:
        UserError: if the same id comes again.
    """
    if id in seen:
        first = seen[id]
        raise UserError(f"{place}: id '{id}' is taken by {first.unit} {first.number}; ids must be unique.")
    seen[id] = place


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: if it is missing, not UTF-8, or blank.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a file.")
    try:
        # Spreadsheet programs write a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); convert it.") from None
    if not text.strip():
        raise UserError(f"{path} is empty; write at least one prompt into it.")
    return text


def lines(path: Path) -> Iterator[tuple[Place, str]]:
    """Lines that are not blank."""
    numbered = enumerate(io.StringIO(read_text(path)), 1)
    return ((Place(path, "line", number), line) for number, line in numbered if line.strip())


def jsonl_rows(path: Path) -> Iterator[tuple[Place, object]]:
    """The object on each line that is not blank."""
    return ((place, from_json(line, path, place.number)) for place, line in lines(path))


def csv_rows(path: Path) -> Iterator[tuple[Place, list[str]]]:
    """Rows that are not blank, each with the line on which it begins."""
    reader = csv.reader(io.StringIO(read_text(path)), strict=True)
    begin = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield Place(path, "line", begin), row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{begin}: {error}; correct the quotes of this row.") from None


def entries(values: Sequence[object], path: Path) -> Iterator[tuple[Place, object]]:
    """Items of a list, counted from 1."""
    return ((Place(path, "entry", number), value) for number, value in enumerate(values, 1))


def from_json(text: str, path: Path, first_line: int = 1) -> object:
    """What JSON holds that begins on a line of a file.

    Raises:
        UserError: naming the line that is no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}:{line}: Invalid JSON ({error.msg} at column {error.colno}); correct it.") from None


def one_line(error: Exception) -> str:
    """What an error says, for the middle of a sentence."""
    return " ".join(str(error).split()).rstrip(".")


def short_name(path: Path) -> str:
    """What ids begin with; the name of a folder or hub data set may have a dot that begins no suffix."""
    known = path.suffix.lower() in _SUFFIXES
    return path.stem if known else path.name
