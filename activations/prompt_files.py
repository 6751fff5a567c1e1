"""Prompts and persona pairs from the files that this field publishes, and texts from data sets; without torch."""

import glob
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from activations.errors import UserError
from activations.file_rows import (
    Place,
    claim,
    csv_rows,
    entries,
    from_json,
    jsonl_rows,
    lines,
    one_line,
    parse,
    read_text,
    short_name,
)
from activations.prompts import Message, Prompt, require_content

if TYPE_CHECKING:
    from datasets import IterableDataset

_CSV_PROMPTS = ("prompt", "question", "user", "text")
_STREAM_BUILDERS = {".jsonl": "json", ".txt": "text", ".parquet": "parquet"}
# What datasets lets through from the network, the file system and the parsers.
_UNREADABLE = (OSError, ValueError, RuntimeError)


def load_prompts(path: Path) -> list[Prompt]:
    """Reads prompts from a file; its suffix tells the format.

    - `.jsonl`: an object a line with one of `messages` (a conversation, as OpenAI fine-tunes on and as the data sets of
      Betley et al. 2025, arXiv 2502.17424, Turner et al. 2025, arXiv 2506.11613, and Wang et al. 2025, arXiv
      2506.19823, come), `prompt` (a user turn) and `text` (no chat template). Optional are `id`, `system` and
      `answer`; other keys are ignored. Blank lines are skipped.
    - `.json`: a list of such objects, or of strings, which are user turns; or the artefact of a trait from persona
      vectors (Chen et al. 2025, arXiv 2507.21509), whose `questions` are user turns.
    - `.yaml`, `.yml`: the evaluation questions of Betley et al. and Turner et al.: a list of entries with `id`,
      `paraphrases` (user turns) and an optional `system`. Several paraphrases have the ids `<id>/1`, `<id>/2`, …
    - `.csv`: the evaluation questions of Wang et al.: a header with one of the columns `prompt`, `question`, `user`
      (user turns) and `text` (no chat template), in any case, and optional `id` and `system`.
    - `.txt`: a plain text a line. Blank lines are skipped.

    A prompt without an id is called after the file and its line (JSONL, CSV, text) or its number in the list.

    Raises:
        UserError: naming file and line or entry, for what is not of this shape, is empty or repeats an id; or for a
            file that is missing, not UTF-8, of another format, or without prompts.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} is no {', '.join(_READERS)} file of prompts; convert it to one of them.")
    prompts: list[Prompt] = []
    seen: dict[str, Place] = {}
    for place, prompt in reader(path):
        _require_prompt(prompt, place)
        claim(prompt.id, place, seen)
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{path} holds no prompts; write at least one into it.")
    return prompts


def stream_texts(
    source: str, column: str = "text", split: str = "train", limit: int | None = None, config: str | None = None
) -> Callable[[], Iterator[Prompt]]:
    """Texts of a data set that may be longer than memory and disk: the `prompts` of a `TokenStream`.

    Args:
        source: A `.jsonl`, `.txt` or `.parquet` file, a folder of such files, or the name of a data set on the Hugging
            Face hub.
        column: Column with the texts.
        split: Split of the data set; a file or folder without splits is "train".
        limit: Prompts to stop after.
        config: Configuration of a hub data set that has several, such as "en" of allenai/c4.

    Returns:
        Starts reading from the beginning whenever it is called. A prompt is plain text and called after the source and
        its row, counted from 1; rows without text are skipped.

    Raises:
        UserError: for a source that cannot be read or reached, has no rows or lacks the column, now; for a row that is
            no text or cannot be read, when it is reached.
    """
    dataset = _open_stream(source, column, split, config)
    return lambda: islice(_texts(dataset, source, column), limit)


class _Turn(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"] = Field(description="Who speaks.")
    content: str = Field(description="What is said.")

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: object) -> object:
        """Wang et al. write the content as {"content_type": "text", "parts": [text]}."""
        match content:
            case {"content_type": "text", "parts": [*parts]} if all(isinstance(part, str) for part in parts):
                return "\n".join(map(str, parts))
        return content


class _Row(BaseModel):
    """One prompt of a .jsonl, .json or .csv file."""

    # Kept, so that a row without a prompt can be told what it has instead.
    model_config = ConfigDict(extra="allow")

    id: str | int | None = Field(default=None, description="Id of the prompt; default: file name and number.")
    messages: list[_Turn] | None = Field(default=None, description="A conversation.")
    prompt: str | None = Field(default=None, description="A single user turn.")
    text: str | None = Field(default=None, description="Plain text without a chat template.")
    system: str | None = Field(default=None, description="System message before the conversation or user turn.")
    answer: str | None = Field(default=None, description="Answer to append.")


class _Question(BaseModel):
    """One entry of a .yaml file."""

    id: str | int = Field(description="Id of the question.")
    paraphrases: list[str] = Field(min_length=1, description="User turns that ask it.")
    system: str | None = Field(default=None, description="System message before each of them.")


class _Trait(BaseModel):
    """What persona vectors are extracted from; `diffing.traits` reads the rest of it."""

    questions: list[str] = Field(min_length=1, description="User turns.")


def _jsonl_prompts(path: Path) -> Iterator[tuple[Place, Prompt]]:
    return ((place, _row_prompt(value, place)) for place, value in jsonl_rows(path))


def _json_prompts(path: Path) -> Iterator[tuple[Place, Prompt]]:
    value = from_json(read_text(path), path)
    listed = value if isinstance(value, list) else _trait(value, path).questions
    for place, entry in entries(listed, path):
        yield place, Prompt.chat(place.default_id, entry) if isinstance(entry, str) else _row_prompt(entry, place)


def _yaml_prompts(path: Path) -> Iterator[tuple[Place, Prompt]]:
    try:
        questions = yaml.safe_load(read_text(path)) or []
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is no valid YAML ({one_line(error)}); correct it.") from None
    if not isinstance(questions, list):
        raise UserError(f"{path} is no list of questions; begin each with '- id:' and give it 'paraphrases'.")
    for place, entry in entries(questions, path):
        question = parse(_Question, entry, place)
        several = len(question.paraphrases) > 1
        for number, paraphrase in enumerate(question.paraphrases, 1):
            id = f"{question.id}/{number}" if several else str(question.id)
            yield place, Prompt.chat(id, paraphrase, system=question.system or None)


def _csv_prompts(path: Path) -> Iterator[tuple[Place, Prompt]]:
    rows = csv_rows(path)
    place, header = next(rows, (Place(path, "line", 1), []))
    names = [name.strip().lower() for name in header]
    found = [name for name in names if name in _CSV_PROMPTS]
    if len(found) != 1:
        raise UserError(
            f"{place}: expected exactly one column called {', '.join(_CSV_PROMPTS)}, "
            f"found {', '.join(header) or 'none'}; correct the header."
        )
    key = "text" if found[0] == "text" else "prompt"
    for place, row in rows:
        if len(row) != len(names):
            raise UserError(f"{place}: {len(row)} cells under {len(names)} columns; quote cells that have commas.")
        cells = dict(zip(names, row, strict=True))
        row_values = {"id": cells.get("id", "").strip() or None, key: cells[found[0]], "system": cells.get("system")}
        yield place, _prompt_of(_Row.model_validate(row_values), place)


def _text_prompts(path: Path) -> Iterator[tuple[Place, Prompt]]:
    return ((place, Prompt.plain(place.default_id, line.strip())) for place, line in lines(path))


_READERS: dict[str, Callable[[Path], Iterator[tuple[Place, Prompt]]]] = {
    ".jsonl": _jsonl_prompts,
    ".json": _json_prompts,
    ".yaml": _yaml_prompts,
    ".yml": _yaml_prompts,
    ".csv": _csv_prompts,
    ".txt": _text_prompts,
}


def _row_prompt(value: object, place: Place) -> Prompt:
    row = parse(_Row, value, place)
    if sum(field is not None for field in (row.messages, row.prompt, row.text)) != 1:
        found = ", ".join(sorted(row.model_fields_set)) or "none"
        raise UserError(
            f"{place}: expected exactly one of 'messages', 'prompt' and 'text', found the keys {found}; "
            f"correct the {place.unit}."
        )
    return _prompt_of(row, place)


def _prompt_of(row: _Row, place: Place) -> Prompt:
    id = place.default_id if row.id is None else str(row.id)
    if row.text is not None:
        if row.system:
            raise UserError(f"{place}: plain text has no system message; give 'prompt' instead, or leave it out.")
        return Prompt(id, text=row.text, answer=row.answer)
    if row.prompt is not None:
        return Prompt.chat(id, row.prompt, row.system or None, row.answer)
    messages: tuple[Message, ...] = tuple(turn.model_dump() for turn in row.messages or ())
    head: tuple[Message, ...] = ({"role": "system", "content": row.system},) if row.system else ()
    return Prompt(id, messages=(*head, *messages), answer=row.answer)


def _trait(value: object, path: Path) -> _Trait:
    if not isinstance(value, dict) or "questions" not in value:
        raise UserError(
            f"{path} has no 'questions' at its top, as the files of persona vectors have; "
            "see activations.prompt_files for the formats."
        )
    return parse(_Trait, value, path)


def _require_prompt(prompt: Prompt, place: Place | Path) -> None:
    try:
        require_content(prompt)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _open_stream(source: str, column: str, split: str, config: str | None) -> "IterableDataset":
    """The data set, after a look at its first row."""
    from datasets import load_dataset

    builder = _STREAM_BUILDERS.get(Path(source).suffix.lower())
    if builder and not Path(source).is_file():
        raise UserError(f"{source} does not exist; give a file, a folder or the name of a data set.")
    # datasets takes names of files for patterns.
    files = glob.escape(source) if builder else None
    try:
        dataset = load_dataset(builder or source, config, data_files=files, split=split, streaming=True)
        first = next(iter(dataset))
    except StopIteration:
        raise UserError(f"{source} holds no rows; give a data set that has some.") from None
    except _UNREADABLE as error:
        raise _unreadable(source, error) from None
    if column not in first:
        raise UserError(f"{source} has no column '{column}', only {', '.join(first)}; name one of them.")
    return dataset


def _texts(dataset: "IterableDataset", source: str, column: str) -> Iterator[Prompt]:
    name = short_name(Path(source))
    for number, row in enumerate(_rows(dataset, source), 1):
        text = row.get(column)
        if text is not None and not isinstance(text, str):
            raise UserError(
                f"{source}, row {number}: '{column}' is {type(text).__name__}, not text; name a text column."
            )
        if text and text.strip():
            yield Prompt.plain(f"{name}:{number}", text)


def _rows(dataset: Iterable[dict[str, Any]], source: str) -> Iterator[dict[str, Any]]:
    try:
        yield from dataset
    except _UNREADABLE as error:
        raise _unreadable(source, error) from None


def _unreadable(source: str, error: Exception) -> UserError:
    return UserError(
        f"{source} cannot be read ({one_line(error)}); give a {', '.join(_STREAM_BUILDERS)} file, a folder of such "
        "files, or the name of a data set on the Hugging Face hub while it can be reached."
    )
