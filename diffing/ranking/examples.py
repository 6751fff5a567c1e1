"""Top activating examples of latents, found by streaming over stored activations."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32
from sae_lens import SAE
from transformers import PreTrainedTokenizerBase

from activations.artefact import finish_artefact, read_config, read_json, write_json
from activations.prompts import Role
from activations.source import ActivationSource
from diffing.ranking.activation_means import encoded_rows
from diffing.row_filters import RowIndex, RowMask, rows_at

KIND = "latent_examples"
_FILE = "examples.json"
# Tokens shown on either side of the peak; a prompt that fits is shown whole.
WINDOW = 24


@dataclass(frozen=True)
class LatentExample:
    """A prompt, or a window of it round the peak, on which a latent is strongly active.

    Attributes:
        model: Name of the model whose activations these are.
        prompt_id: Id of the prompt.
        tokens: Text of each token; joined, they are the text.
        activations: The latent's activation on each token; 0 on special tokens, which enter no statistics.
    """

    model: str
    prompt_id: str
    tokens: tuple[str, ...]
    activations: tuple[float, ...]


@dataclass(frozen=True)
class _Peak:
    """Where one latent peaks: its largest activation on one prompt in one model."""

    latent: int
    model: str
    prompt: int
    activation: float


@dataclass(frozen=True)
class _Trace:
    """Rows of one prompt: token ids, and the activation of some latents on each."""

    tokens: np.ndarray
    activations: dict[int, Float32[np.ndarray, "pos"]]


def top_examples(
    sae: SAE,
    stores: Mapping[str, ActivationSource],
    hook: str,
    tokenizer: PreTrainedTokenizerBase,
    latents: Sequence[int],
    n: int = 8,
) -> dict[int, list[LatentExample]]:
    """The `n` prompts on which each latent peaks highest, over all models, highest first.

    A prompt that several models read appears once, in the model where it peaks highest. A latent that is never active
    has no examples. Two passes over each store: one finds the peaks, one reads the chosen prompts.

    Args:
        sae: Encodes the stored activations.
        stores: Model name -> activations of that model.
        hook: Hook point of the activations.
        tokenizer: Turns token ids into text; the same for all models.
        latents: Latents to show.
        n: Most examples of a latent.
    """
    peaks = {model: _prompt_peaks(sae, store, hook, latents) for model, store in stores.items()}
    chosen = {
        latent: _highest({model: values[:, column] for model, values in peaks.items()}, stores, latent, n)
        for column, latent in enumerate(latents)
    }
    every = [peak for peaks_of_latent in chosen.values() for peak in peaks_of_latent]
    traces = {
        model: _traces(sae, store, hook, [peak for peak in every if peak.model == model])
        for model, store in stores.items()
    }
    return {
        latent: [
            _example(peak, traces[peak.model][peak.prompt], stores[peak.model].prompt_ids[peak.prompt], tokenizer)
            for peak in peaks_of_latent
        ]
        for latent, peaks_of_latent in chosen.items()
    }


def save_examples(
    examples: Mapping[int, Sequence[LatentExample]], folder: Path, parents: Mapping[str, Path] | None = None
) -> None:
    """Writes the examples of every latent as an artefact folder (`examples.json`)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _FILE, {str(latent): [asdict(e) for e in found] for latent, found in examples.items()})
    finish_artefact(folder, {"kind": KIND}, parents)


def load_examples(folder: Path) -> dict[int, list[LatentExample]]:
    """Reads what `save_examples` wrote.

    Raises:
        UserError: if the folder is missing, unfinished or of another kind.
    """
    read_config(folder, KIND)
    return {
        int(latent): [
            LatentExample(e["model"], e["prompt_id"], tuple(e["tokens"]), tuple(e["activations"])) for e in found
        ]
        for latent, found in read_json(folder / _FILE).items()
    }


def _prompt_peaks(
    sae: SAE, store: ActivationSource, hook: str, latents: Sequence[int]
) -> Float32[np.ndarray, "prompt latent"]:
    peaks = np.zeros((len(store.prompt_ids), len(latents)), dtype=np.float32)
    for _, encoded, index in encoded_rows(sae, store, hook, rows_at(store, "all")):
        np.maximum.at(peaks, index["prompt"], encoded[:, list(latents)].float().cpu().numpy())
    return peaks


def _highest(
    peaks: Mapping[str, Float[np.ndarray, "prompt"]], stores: Mapping[str, ActivationSource], latent: int, n: int
) -> list[_Peak]:
    found = [
        _Peak(latent, model, int(prompt), float(values[prompt]))
        for model, values in peaks.items()
        # Another model may hold the same prompts, so n of each are enough.
        for prompt in np.argsort(-values, kind="stable")[:n]
        if values[prompt] > 0
    ]
    once: dict[tuple[str, int], _Peak] = {}
    for peak in sorted(found, key=lambda peak: -peak.activation):
        once.setdefault((stores[peak.model].tokens_hash, peak.prompt), peak)
    return list(once.values())[:n]


def _traces(sae: SAE, store: ActivationSource, hook: str, peaks: Sequence[_Peak]) -> dict[int, _Trace]:
    wanted: dict[int, list[int]] = defaultdict(list)
    for peak in peaks:
        wanted[peak.prompt].append(peak.latent)

    if not wanted:
        return {}

    def keep(index: RowIndex) -> RowMask:
        return np.isin(index["prompt"], list(wanted))

    pieces: dict[int, list[tuple[np.ndarray, ...]]] = defaultdict(list)
    for _, encoded, index in encoded_rows(sae, store, hook, keep):
        for prompt in np.unique(index["prompt"]):
            rows = np.flatnonzero(index["prompt"] == prompt)
            values = encoded[rows][:, wanted[int(prompt)]].float().cpu().numpy()
            values[index["role"][rows] == Role.SPECIAL] = 0.0
            pieces[int(prompt)].append((index["position"][rows], index["token"][rows], values))
    return {prompt: _joined(parts, wanted[prompt]) for prompt, parts in pieces.items()}


def _joined(parts: Sequence[tuple[np.ndarray, ...]], latents: Sequence[int]) -> _Trace:
    position, tokens, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(position, kind="stable")
    return _Trace(tokens[order], {latent: values[order, column] for column, latent in enumerate(latents)})


def _example(peak: _Peak, trace: _Trace, prompt_id: str, tokenizer: PreTrainedTokenizerBase) -> LatentExample:
    activations = trace.activations[peak.latent]
    window = _window(int(activations.argmax()), len(activations))
    return LatentExample(
        model=peak.model,
        prompt_id=prompt_id,
        tokens=token_texts(trace.tokens[window].tolist(), tokenizer),
        activations=tuple(activations[window].tolist()),
    )


def _window(peak: int, length: int) -> slice:
    if length <= 2 * WINDOW + 1:
        return slice(0, length)
    return slice(max(peak - WINDOW, 0), min(peak + WINDOW + 1, length))


def token_texts(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Text of each token as it reads in place, with the spaces that joining words needs.

    Decoding tokens one by one loses the space before a word (word-level and SentencePiece tokenizers), so each is
    decoded together with the one before it.
    """
    alone = [_decode(tokenizer, [token]) for token in token_ids]
    pairs = [_decode(tokenizer, [before, token]) for before, token in pairwise(token_ids)]
    return tuple(alone[:1] + [pair[len(before) :] for before, pair in zip(alone, pairs, strict=False)])


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))
