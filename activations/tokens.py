"""Tokens of prompts, and the role of every position."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import xxhash
from jaxtyping import Int, Integer
from torch import Tensor

from activations.errors import UserError
from activations.prompts import Message, Prompt, Role, require_content

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of prompts, ragged.

    Attributes:
        ids: Id of each prompt.
        tokens: For each prompt, its token ids [pos], int32.
        roles: For each prompt, the `Role` of each position [pos], uint8.
    """

    ids: tuple[str, ...]
    tokens: tuple[Integer[np.ndarray, "_"], ...]
    roles: tuple[Integer[np.ndarray, "_"], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_tokens(self) -> int:
        """Tokens in all prompts, special ones included."""
        return sum(len(tokens) for tokens in self.tokens)

    @cached_property
    def hash(self) -> str:
        """Hash of ids, tokens and roles: equal hashes mean that positions can be paired, prompt by prompt."""
        return add_hashes(_prompt_hash(*prompt) for prompt in zip(self.ids, self.tokens, self.roles, strict=True))

    def windows(self) -> Iterator["TokenBatch"]:
        """Itself: all prompts are in memory (see `TokenSource`)."""
        yield self

    def select(self, indices: Sequence[int]) -> "TokenBatch":
        """The prompts at `indices`, in that order."""
        return TokenBatch(
            tuple(self.ids[i] for i in indices),
            tuple(self.tokens[i] for i in indices),
            tuple(self.roles[i] for i in indices),
        )


@runtime_checkable
class TokenSource(Protocol):
    """Tokens to harvest: a `TokenBatch`, or a `TokenStream` that is too long for memory."""

    def windows(self) -> Iterator[TokenBatch]:
        """The prompts in order, as many at a time as are batched together; the same ones whenever it is called."""
        ...


@dataclass(frozen=True)
class TokenStream:
    """Prompts that are tokenized as they are needed.

    Attributes:
        prompts: Starts reading the prompts from the beginning; their ids are distinct.
        tokenizer: Fast tokenizer of the checkpoint.
        max_length: See `tokenize_prompts`.
        window: Prompts that are in memory, and batched with those of similar length, at a time.
    """

    prompts: Callable[[], Iterable[Prompt]]
    tokenizer: "PreTrainedTokenizerBase"
    max_length: int | None = None
    window: int = 8192

    def windows(self) -> Iterator[TokenBatch]:
        prompts = iter(self.prompts())
        while window := list(islice(prompts, self.window)):
            yield tokenize_prompts(window, self.tokenizer, self.max_length)


def add_hashes(hashes: Iterable[str]) -> str:
    """The hash of several sets of prompts together, whatever their order: the sum of theirs modulo 2^128, hex."""
    return f"{sum(int(one, 16) for one in hashes) % 2**128:032x}"


def _prompt_hash(id: str, tokens: Integer[np.ndarray, "_"], roles: Integer[np.ndarray, "_"]) -> str:
    digest = xxhash.xxh3_128(f"{len(id.encode())}:{id}:{len(tokens)}:".encode())
    digest.update(np.ascontiguousarray(tokens, dtype="<i4").tobytes())
    digest.update(np.ascontiguousarray(roles, dtype=np.uint8).tobytes())
    return digest.hexdigest()


def tokenize_prompts(
    prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", max_length: int | None = None
) -> TokenBatch:
    """Turns prompts into tokens with the role of every position.

    A conversation goes through the tokenizer's chat template, with the header of the assistant's turn at its end where
    there is no answer. BOS appears at most once.

    Args:
        prompts: Prompts with distinct ids.
        tokenizer: Fast tokenizer of the checkpoint.
        max_length: Plain text and answers are cut after this many tokens in all.

    Raises:
        UserError: for no prompts at all, an empty prompt, ids that repeat, a tokenizer without a chat template, a
            template that refuses the conversation, or a conversation whose prompt alone exceeds `max_length`.
    """
    if not prompts:
        raise UserError("There are no prompts to tokenize; give at least one.")
    _require_distinct([prompt.id for prompt in prompts])
    special = _special_ids(tokenizer)
    encoded = [_encode(prompt, tokenizer, special, max_length) for prompt in prompts]
    return TokenBatch(tuple(p.id for p in prompts), tuple(t for t, _ in encoded), tuple(r for _, r in encoded))


def pad(
    token_arrays: Sequence[Integer[np.ndarray, "_"]], pad_id: int, side: Literal["left", "right"] = "right"
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Stacks ragged tokens.

    Returns:
        Token ids and attention mask (1 = real, 0 = padding), both int64 [batch pos].
    """
    length = max(len(tokens) for tokens in token_arrays)
    tokens = torch.full((len(token_arrays), length), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, array in enumerate(token_arrays):
        where = slice(0, len(array)) if side == "right" else slice(length - len(array), length)
        tokens[row, where] = torch.from_numpy(np.asarray(array, dtype=np.int64))
        mask[row, where] = 1
    return tokens, mask


def length_buckets(token_batch: TokenBatch, batch_tokens: int) -> list[list[int]]:
    """Groups prompts of similar length.

    Args:
        token_batch: Prompts to group.
        batch_tokens: Most tokens, padding included, that a group may have; a longer prompt makes a group of its own.

    Returns:
        Indices of prompts, group by group. The longest come first: what does not fit into memory fails at once.
    """
    lengths = np.array([len(tokens) for tokens in token_batch.tokens])
    groups: list[list[int]] = []
    for index in np.argsort(-lengths, kind="stable").tolist():
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= batch_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _encode(
    prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", special: frozenset[int], max_length: int | None
) -> tuple[Integer[np.ndarray, "pos"], Integer[np.ndarray, "pos"]]:
    """Tokens and roles of one prompt."""
    require_content(prompt)
    text, answer_start = _render(prompt, tokenizer)
    # A template writes BOS itself, as Hugging Face's own `apply_chat_template` assumes.
    encoding = tokenizer(text, add_special_tokens=prompt.text is not None, return_offsets_mapping=True)
    tokens = np.array(encoding["input_ids"], dtype=np.int32)
    ends = np.array([end for _, end in encoding["offset_mapping"]])
    if len(tokens) > 1 and tokens[0] == tokens[1] == tokenizer.bos_token_id:
        tokens, ends = tokens[1:], ends[1:]
    # A token that straddles the boundary already tells something of the answer.
    roles = np.where(ends > answer_start, Role.ANSWER, Role.PROMPT).astype(np.uint8)
    roles[np.isin(tokens, list(special))] = Role.SPECIAL
    before = np.flatnonzero(roles == Role.PROMPT)
    if prompt.text is None:
        if max_length is not None and len(before) and before[-1] >= max_length:
            raise UserError(
                f"Prompt '{prompt.id}' has {before[-1] + 1} tokens before its answer, more than "
                f"max_length={max_length}; shorten it or raise max_length."
            )
        roles[before[-1:]] = Role.LAST_PROMPT
    return tokens[:max_length], roles[:max_length]


def _render(prompt: Prompt, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, int]:
    """The text that is tokenized, and the index of the character where its answer begins."""
    if prompt.text is not None:
        return prompt.text + (prompt.answer or ""), len(prompt.text)
    messages, answer = _split_answer(prompt)
    question = _apply_template(prompt, messages, tokenizer, header=True)
    if answer is None:
        return question, len(question)
    turn = {"role": "assistant", "content": answer}
    # White space after the answer's end-of-turn token belongs to the next turn.
    whole = _apply_template(prompt, (*messages, turn), tokenizer, header=False).rstrip()
    # Some templates open the header with words that they leave out before a given answer, such as "<think>".
    return whole, _common_prefix(question, whole)


def _common_prefix(one: str, other: str) -> int:
    """Number of characters that both texts begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _split_answer(prompt: Prompt) -> tuple[tuple[Message, ...], str | None]:
    if prompt.messages[-1]["role"] != "assistant":
        return prompt.messages, prompt.answer
    return prompt.messages[:-1], prompt.messages[-1]["content"]


def _apply_template(
    prompt: Prompt, messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase", header: bool
) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError(
            f"Prompt '{prompt.id}' is a conversation, but the tokenizer of {tokenizer.name_or_path} has no chat "
            "template; give plain text or an instruct-tuned checkpoint."
        )
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=header)
    except TemplateError as error:
        raise UserError(
            f"The chat template of {tokenizer.name_or_path} refuses prompt '{prompt.id}': {error}."
        ) from None
    assert isinstance(text, str)
    return text


def _require_distinct(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for id in ids:
        if id in seen:
            raise UserError(f"Two prompts have the id '{id}'; ids must be unique.")
        if "\0" in id:
            raise UserError(f"The prompt id {id!r} has a NUL character, which HDF5 cannot store; rename it.")
        seen.add(id)


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Ids that `decode(skip_special_tokens=True)` drops; `all_special_ids` alone lacks turn markers of some models."""
    marked = (id for id, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset((*tokenizer.all_special_ids, *marked))
