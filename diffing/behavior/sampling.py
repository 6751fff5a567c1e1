"""Sampled answers, many arms of steering at once.

Every prompt is read once for each arm and its key-value cache is copied to the samples. Prompts of one length share a
batch, so no padding exists that could leak into the result. All arms see the same random numbers (one uniform for each
question, sample and step, turned into a token by the inverse distribution function): arms differ by what was done to
them and not by luck, and an answer does not depend on what else is in the batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.checkpoint import Checkpoint
from activations.errors import UserError
from activations.tokens import TokenBatch
from diffing.behavior.config import SamplingConfig
from diffing.interventions import Steered

if TYPE_CHECKING:
    from transformers.modeling_outputs import CausalLMOutputWithPast


@dataclass(frozen=True)
class Work:
    """Rows of one batch: which arm and which prompt each reads."""

    arms: Int[Tensor, "row"]
    prompts: Int[Tensor, "row"]


@torch.inference_mode()
def sample_answers(
    checkpoint: Checkpoint,
    questions: TokenBatch,
    config: SamplingConfig,
    steered: Steered | None = None,
    advance: Callable[[int], object] = lambda answers: None,
) -> list[list[list[str]]]:
    """Samples answers to every question under every arm.

    Args:
        checkpoint: The model that answers.
        questions: Prompts that end where the answer begins.
        config: How to sample.
        steered: What is done to the model, arm by arm; None leaves it untouched, as one arm.
        advance: Told the number of answers done, for progress bars.

    Returns:
        Texts as [arm][question][sample], special tokens removed.
    """
    arms = 1 if steered is None else steered.arms
    answers: list[list[list[str]]] = [[[] for _ in range(len(questions))] for _ in range(arms)]
    uniforms = torch.from_numpy(
        np.random.default_rng(config.seed).random((len(questions), config.samples, config.max_new_tokens))
    )
    for work in batches(questions, arms, max(1, config.batch_rows // config.samples)):
        prompts = torch.from_numpy(np.stack([questions.tokens[i] for i in work.prompts.tolist()])).long()
        rows = steered.of(work.arms) if steered is not None else None
        tokens = _generate(checkpoint, prompts, uniforms[work.prompts], config, rows)
        texts = checkpoint.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        for row, (arm, prompt) in enumerate(zip(work.arms.tolist(), work.prompts.tolist(), strict=True)):
            answers[arm][prompt] = [t.strip() for t in texts[row * config.samples : (row + 1) * config.samples]]
        advance(len(texts))
    return answers


def batches(questions: TokenBatch, arms: int, rows: int) -> Iterator[Work]:
    """Batches of at most `rows` (arm, prompt) pairs whose prompts have one length."""
    lengths = np.array([len(tokens) for tokens in questions.tokens])
    for length in np.unique(lengths):
        prompts = torch.from_numpy(np.flatnonzero(lengths == length))
        pairs = torch.cartesian_prod(torch.arange(arms), prompts)
        for part in pairs.split(rows):
            yield Work(part[:, 0], part[:, 1])


def _generate(
    checkpoint: Checkpoint,
    prompts: Int[Tensor, "row pos"],
    uniforms: Float[Tensor, "row sample step"],
    config: SamplingConfig,
    steered: Steered | None,
) -> Int[np.ndarray, "answer step"]:
    """Generated token ids, answers of one row next to each other; after the end of an answer, padding."""
    device = checkpoint.device
    ends, pad = _ends_and_pad(checkpoint)
    rows, length = prompts.shape
    prompts = prompts.to(device)
    draws = uniforms.flatten(0, 1).to(device)
    repeated = torch.arange(rows, device=device).repeat_interleave(config.samples)
    generated = torch.full((len(repeated), config.max_new_tokens), pad, dtype=torch.long, device=device)

    with checkpoint.hooks(steered.hooks() if steered is not None else {}):
        output = checkpoint.forward(prompts, torch.ones_like(prompts), use_cache=True)
    cache: Any = output.past_key_values
    cache.batch_repeat_interleave(config.samples)
    logits = _last(output).repeat_interleave(config.samples, dim=0)
    running = torch.arange(len(repeated), device=device)
    for step in range(config.max_new_tokens):
        token = _inverse_cdf(logits / config.temperature, draws[running, step])
        generated[running, step] = token
        going = torch.isin(token, ends, invert=True).nonzero().flatten()
        if len(going) == 0 or step + 1 == config.max_new_tokens:
            break
        if len(going) < len(running):
            cache.batch_select_indices(going)
            running, token = running[going], token[going]
        mask = torch.ones(len(running), length + step + 1, dtype=torch.long, device=device)
        with checkpoint.hooks(steered.of(repeated[running]).hooks() if steered is not None else {}):
            output = checkpoint.forward(token[:, None], mask, past_key_values=cache, use_cache=True)
        logits = _last(output)
    return generated.cpu().numpy()


def _ends_and_pad(checkpoint: Checkpoint) -> tuple[Int[Tensor, "end"], int]:
    """Tokens that end an answer (chat models name several in their generation config), and what stands after them."""
    tokenizer = checkpoint.tokenizer
    generation: Any = getattr(checkpoint.hf, "generation_config", None)
    named = [tokenizer.eos_token_id, getattr(generation, "eos_token_id", None)]
    ends = [end for one in named for end in (one if isinstance(one, list) else [one]) if end is not None]
    if not ends:
        raise UserError(f"The tokenizer of {checkpoint.name} names no end-of-sequence token; add eos_token to it.")
    pad = tokenizer.pad_token_id
    return torch.tensor(ends, device=checkpoint.device), pad if isinstance(pad, int) else ends[0]


def _last(output: "CausalLMOutputWithPast") -> Float[Tensor, "row vocab"]:
    assert output.logits is not None
    return output.logits[:, -1]


def _inverse_cdf(logits: Float[Tensor, "row vocab"], uniform: Float[Tensor, "row"]) -> Int[Tensor, "row"]:
    cumulative = logits.double().softmax(-1).cumsum(-1)
    # The last entry may round below 1; the clamp keeps a uniform above it inside the vocabulary.
    token = torch.searchsorted(cumulative, uniform.to(cumulative.dtype)[:, None]).squeeze(-1)
    return token.clamp(max=logits.shape[-1] - 1)
