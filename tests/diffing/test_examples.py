"""Top activating examples."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_stores import HOOK, ragged_batch, random_activations, tiny_sae, write_store
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from activations.prompts import Role
from activations.store import ActivationStore
from activations.tokens import TokenBatch
from diffing.ranking.examples import WINDOW, token_texts, top_examples

PLANTED = 5
WORDS = [f"w{i}" for i in range(100)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def planted(batch: TokenBatch, peaks: dict[tuple[int, int], float]) -> list[torch.Tensor]:
    """Faint noise, with the planted latent's decoder row at some (prompt, position)."""
    rows = [0.01 * activations for activations in random_activations(batch, seed=1)]
    for (prompt, position), strength in peaks.items():
        rows[prompt][position] = strength * tiny_sae().W_dec[PLANTED].detach()
    return rows


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ActivationStore]:
    batch, folder = ragged_batch(10), tmp_path_factory.mktemp("stores")
    peaks = {"base": {(4, 2): 5.0, (1, 1): 3.0}, "corrupted": {(4, 1): 4.0, (1, 3): 7.0, (7, 0): 99.0}}
    return {model: write_store(folder / model, batch, planted(batch, where)) for model, where in peaks.items()}


def test_the_planted_tokens_are_found(stores: dict[str, ActivationStore], tokenizer: PreTrainedTokenizerFast) -> None:
    examples = top_examples(tiny_sae(), stores, HOOK, tokenizer, [PLANTED], n=2)[PLANTED]
    assert [(e.model, e.prompt_id) for e in examples] == [("corrupted", "p1"), ("base", "p4")]
    assert [max(e.activations) for e in examples] == pytest.approx([7.0, 5.0], abs=1e-4)
    assert [int(np.argmax(e.activations)) for e in examples] == [3, 2]
    batch = ragged_batch(10)
    for example, prompt in zip(examples, (1, 4), strict=True):
        assert "".join(example.tokens) == " ".join(WORDS[token] for token in batch.tokens[prompt])
        assert len(example.tokens) == len(example.activations)


def test_special_tokens_never_count(stores: dict[str, ActivationStore], tokenizer: PreTrainedTokenizerFast) -> None:
    assert ragged_batch(10).roles[7][0] == Role.SPECIAL
    examples = top_examples(tiny_sae(), stores, HOOK, tokenizer, [PLANTED], n=10)[PLANTED]
    assert max(max(e.activations) for e in examples) < 8
    assert all(e.activations[0] == 0 and e.activations[-1] == 0 for e in examples)


def test_each_prompt_once_and_sorted(stores: dict[str, ActivationStore], tokenizer: PreTrainedTokenizerFast) -> None:
    found = top_examples(tiny_sae(), stores, HOOK, tokenizer, [PLANTED, 2], n=10)
    assert list(found) == [PLANTED, 2]
    for examples in found.values():
        assert len({e.prompt_id for e in examples}) == len(examples)
        peaks = [max(e.activations) for e in examples]
        assert peaks == sorted(peaks, reverse=True)
        assert all(peak > 0 for peak in peaks)


def test_prompts_of_different_texts_are_different(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = ragged_batch(2, seed=0), ragged_batch(2, seed=1)
    stores = {
        "base": write_store(tmp_path / "a", first, planted(first, {(0, 1): 5.0})),
        "corrupted": write_store(tmp_path / "b", second, planted(second, {(0, 1): 4.0})),
    }
    examples = top_examples(tiny_sae(), stores, HOOK, tokenizer, [PLANTED], n=2)[PLANTED]
    assert [(e.model, e.prompt_id) for e in examples] == [("base", "p0"), ("corrupted", "p0")]


def test_a_latent_that_is_never_active_has_no_examples(
    stores: dict[str, ActivationStore], tokenizer: PreTrainedTokenizerFast
) -> None:
    sae = tiny_sae()
    with torch.no_grad():
        sae.b_enc[3] = -1e6
    assert top_examples(sae, stores, HOOK, tokenizer, [3]) == {3: []}


@pytest.mark.parametrize(("peak", "start", "stop"), [(100, 100 - WINDOW, 101 + WINDOW), (3, 0, 4 + WINDOW)])
def test_long_prompts_are_cut_round_the_peak(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, peak: int, start: int, stop: int
) -> None:
    tokens = (np.arange(200) % 100).astype(np.int32)
    batch = TokenBatch(("long",), (tokens,), (np.full(200, Role.PROMPT, dtype=np.uint8),))
    store = write_store(tmp_path / "s", batch, planted(batch, {(0, peak): 5.0}))
    (example,) = top_examples(tiny_sae(), {"base": store}, HOOK, tokenizer, [PLANTED], n=3)[PLANTED]
    assert "".join(example.tokens).split() == [WORDS[token] for token in tokens[start:stop]]
    assert int(np.argmax(example.activations)) == peak - start


def test_token_texts_of_one_and_none(tokenizer: PreTrainedTokenizerFast) -> None:
    assert token_texts([], tokenizer) == ()
    assert token_texts([3], tokenizer) == ("w3",)
    assert token_texts([3, 4], tokenizer) == ("w3", " w4")
