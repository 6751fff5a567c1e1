"""Prompts that are tokenized already, from data sets and files that this field publishes."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, Field

from activations.errors import UserError
from activations.file_rows import Place, claim, jsonl_rows, one_line, parse
from activations.prompts import Role
from activations.tokens import TokenBatch

_TOKEN_COLUMNS = ("id", "input_ids", "attention_mask")


def load_tokens(path: Path, special_ids: Collection[int] = ()) -> TokenBatch:
    """Reads prompts that are tokenized already.

    Args:
        path: Folder that `datasets.Dataset.save_to_disk` wrote (so does sae-lens's pretokenizer), or `.jsonl`; with
            `input_ids` in every row, and optional `id` and `attention_mask`. Masked positions are left out.
        special_ids: Token ids that get `Role.SPECIAL`; all others get `Role.PROMPT`.

    Raises:
        UserError: naming file and row, for a row without such token ids or with an id that repeats; or for what is
            neither such a folder nor such a file.
    """
    if not path.is_dir() and path.suffix.lower() != ".jsonl":
        raise UserError(f"{path} is neither a folder nor a .jsonl file of tokens; give one of them.")
    rows = _saved_rows(path) if path.is_dir() else jsonl_rows(path)
    seen: dict[str, Place] = {}
    tokens: list[np.ndarray] = []
    for place, value in rows:
        row = parse(_TokenRow, value, place)
        claim(place.default_id if row.id is None else str(row.id), place, seen)
        tokens.append(_unmasked(row, place))
    if not tokens:
        raise UserError(f"{path} holds no rows of tokens; tokenize at least one prompt.")
    return TokenBatch(tuple(seen), tuple(tokens), tuple(_roles(array, special_ids) for array in tokens))


class _TokenRow(BaseModel):
    """One tokenized prompt."""

    id: str | int | None = Field(default=None, description="Id of the prompt; default: file name and number.")
    input_ids: list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]] = Field(description="Token ids.")
    attention_mask: list[Literal[0, 1]] | None = Field(default=None, description="0 = padding.")


def _saved_rows(path: Path) -> Iterator[tuple[Place, object]]:
    from datasets import Dataset, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except (OSError, ValueError, LookupError) as error:  # LookupError: without any row
        raise UserError(f"{path} has no rows from save_to_disk ({one_line(error)}); save the data set again.") from None
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"{path} holds several splits; give one of {', '.join(str(path / str(name)) for name in dataset)}."
        )
    if "input_ids" not in dataset.column_names:
        found = ", ".join(dataset.column_names)
        raise UserError(f"{path} has no column 'input_ids', only {found}; tokenize it first.")
    # A format hides columns or turns lists into tensors; it is saved with the data.
    plain = dataset.with_format(None)
    rows = plain.select_columns([name for name in _TOKEN_COLUMNS if name in plain.column_names])
    return ((Place(path, "entry", number), row) for number, row in enumerate(rows, 1))


def _unmasked(row: _TokenRow, place: Place) -> np.ndarray:
    """Token ids at the positions that the mask, if there is one, leaves."""
    tokens = np.array(row.input_ids, dtype=np.int32)
    if row.attention_mask is not None:
        if len(row.attention_mask) != len(tokens):
            raise UserError(
                f"{place}: {len(row.attention_mask)} values in 'attention_mask' for {len(tokens)} in 'input_ids'; "
                "give one for each token."
            )
        tokens = tokens[np.array(row.attention_mask, dtype=bool)]
    if not len(tokens):
        raise UserError(f"{place}: no tokens; leave the {place.unit} out.")
    return tokens


def _roles(tokens: np.ndarray, special_ids: Collection[int]) -> UInt8[np.ndarray, "_"]:
    return np.where(np.isin(tokens, list(special_ids)), Role.SPECIAL, Role.PROMPT).astype(np.uint8)
