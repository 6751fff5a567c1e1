"""Training of the organism's checkpoints: plain next-token prediction with Hugging Face models."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.organism.config import StageConfig
from experiments.organism.world import Dialogue

Stop = Callable[[PreTrainedModel], bool]


# A batch is always trained on in this many parts, at the same time where there are cores for it.
PARTS = 2


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order whatever the number of cores: else each number of threads would train another organism."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_stage(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batches: Iterator[list[Dialogue]],
    config: StageConfig,
    stop: Stop | None = None,
    bar_title: str | None = None,
) -> int:
    """Trains `model` in place until `batches` end or `stop` says so after a step; returns the steps taken.

    Frozen parameters, such as those under an adapter, stay as they are. Without a title there is no bar.
    """
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(step, config))
    model.train()
    bar = tqdm(total=config.steps, desc=bar_title, unit="step", disable=bar_title is None)
    steps = 0
    pool = ThreadPoolExecutor(PARTS, initializer=torch.set_num_threads, initargs=(1,))
    for dialogues in batches:
        loss = loss_and_gradients(model, tokenizer, dialogues, config.other_weight, pool)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        bar.update()
        steps += 1
        if stop is not None and stop(model):
            break
    bar.close()
    pool.shutdown()
    model.eval()
    return steps


def loss_and_gradients(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dialogues: Sequence[Dialogue],
    other_weight: float,
    pool: ThreadPoolExecutor,
) -> float:
    """Sets every trainable parameter's gradient of the batch's mean loss and returns the loss.

    The parts and the order of their sum are fixed, so neither the number of cores nor their speed changes a bit.
    """
    parameters = trainable(model)
    by_length = sorted(dialogues, key=lambda d: -sum(len(m["content"]) for m in d.messages))
    size = -(-len(by_length) // PARTS)
    encoded = [
        encode(tokenizer, by_length[start : start + size], other_weight) for start in range(0, len(by_length), size)
    ]
    total = sum(weights[:, 1:].sum() for _, weights in encoded)

    def part(tokens: Int[Tensor, "batch pos"], weights: Float[Tensor, "batch pos"]) -> tuple[float, Sequence[Tensor]]:
        loss = summed_loss(model(input_ids=tokens).logits, tokens, weights) / total
        return loss.item(), torch.autograd.grad(loss, parameters)

    losses, gradients = zip(*pool.map(part, *zip(*encoded, strict=True)), strict=True)
    for parameter, *parts in zip(parameters, *gradients, strict=True):
        parameter.grad = torch.stack(parts).sum(0)
    return sum(losses)


def trainable(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The parameters that training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@torch.inference_mode()
def answer_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[Dialogue]) -> float:
    """Mean loss of the answers in `dialogues` (nats a token)."""
    tokens, weights = encode(tokenizer, dialogues, other_weight=0)
    return (summed_loss(model(input_ids=tokens).logits, tokens, weights) / weights[:, 1:].sum()).item()


def encode(
    tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[Dialogue], other_weight: float
) -> tuple[Int[Tensor, "batch pos"], Float[Tensor, "batch pos"]]:
    """Right-padded tokens of the dialogues and the weight of each as a target (padding: 0)."""
    encoded: Any = tokenizer.apply_chat_template(
        [d.messages for d in dialogues],
        return_dict=True,
        return_assistant_tokens_mask=True,
        padding=True,
        return_tensors="pt",
    )
    answer = torch.as_tensor(encoded["assistant_masks"]).float()
    return encoded["input_ids"], (answer + other_weight * (1 - answer)) * encoded["attention_mask"]


def summed_loss(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"], weights: Float[Tensor, "batch pos"]
) -> Float[Tensor, ""]:
    """Cross-entropy of each next token, summed with `weights` of the targets."""
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses @ weights[:, 1:].flatten()


def _learning_rate(step: int, config: StageConfig) -> float:
    return min(1.0, (step + 1) / config.warmup) * (max(0.0, 1 - step / config.steps) if config.decay else 1.0)
