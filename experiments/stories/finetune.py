"""Fine-tunes a checkpoint on a few short texts: `python -m experiments.stories.finetune --base PATH --out PATH`.

Plain next-token prediction, end of text included; AdamW with linear decay. All weights are trained but the embedding:
where it is tied to the output, the cheapest way to new word frequencies leads through it, and no activation would show
what was learnt.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from activations.artefact import finish_artefact
from activations.checkpoint import quiet
from activations.checkpoint_files import check_checkpoint
from activations.config import CheckpointConfig
from activations.errors import UserError
from activations.prompt_files import load_prompts
from activations.tokens import pad, tokenize_prompts
from experiments.stories.config import FinetuneConfig

KIND = "finetune"
_IGNORED = -100  # cross_entropy's own mark of targets that do not count


def finetune(base: CheckpointConfig, config: FinetuneConfig, out: Path, progress: bool = True) -> float:
    """Trains all weights of `base` but the embedding on the texts and saves a Hugging Face folder.

    Args:
        base: Where to start; without an adapter.
        config: What to train on, and how.
        out: New or empty folder for weights and tokenizer.
        progress: Whether to show a progress bar.

    Returns:
        Mean loss over the last epoch, nats a token.

    Raises:
        UserError: if `out` is in use, or base or texts cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is in use; choose another folder.")
    check_checkpoint(base, "base")
    texts = load_prompts(config.text)
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(base.model, revision=base.revision)
        model: Any = AutoModelForCausalLM.from_pretrained(base.model, revision=base.revision, dtype=torch.float32)
    model = model.to(base.device)
    tokens = tokenize_prompts(texts, tokenizer, model.config.max_position_embeddings - 1).tokens
    end = np.array([tokenizer.eos_token_id], dtype=np.int32)
    loss = _train(model, [np.concatenate([t, end]) for t in tokens], config, progress)
    with quiet():
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    return loss


def finetune_stage(base: CheckpointConfig, config: FinetuneConfig, folder: Path, progress: bool = True) -> Path:
    """`finetune` as a stage of a run: `folder/corrupted`, and beside it a config that marks the folder as finished."""
    out = folder / "corrupted"
    shutil.rmtree(out, ignore_errors=True)  # what an interrupted run left
    loss = finetune(base, config, out, progress)
    parents = {"base": Path(base.model)} if Path(base.model).is_dir() else {}
    finish_artefact(folder, {"kind": KIND, **config.model_dump(mode="json"), "loss": loss}, parents)
    return out


def _train(model: Any, texts: list[Int[np.ndarray, "_"]], config: FinetuneConfig, progress: bool) -> float:
    device = next(model.parameters()).device
    model.get_input_embeddings().requires_grad_(False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    order, steps = np.random.default_rng(config.seed), -(-len(texts) // config.batch) * config.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses: list[float] = []
    model.train()
    with tqdm(total=steps, desc="fine-tune", unit="step", disable=not progress, leave=False) as bar:
        for _ in range(config.epochs):
            shuffled, losses = order.permutation(len(texts)), []
            for start in range(0, len(texts), config.batch):
                tokens, mask = pad([texts[i] for i in shuffled[start : start + config.batch]], pad_id=0)
                loss = _loss(model, tokens.to(device), mask.to(device))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
                bar.update()
    model.eval()
    return sum(losses) / len(losses)


def _loss(model: Callable[..., Any], tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]) -> Tensor:
    logits = model(input_ids=tokens, attention_mask=mask).logits
    targets = tokens.masked_fill(mask == 0, _IGNORED)[:, 1:]
    return cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=_IGNORED)


def main() -> None:
    """Command line."""
    recipe = FinetuneConfig.model_validate({})
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", required=True, help="Checkpoint to start from (folder or hub name).")
    parser.add_argument("--out", type=Path, required=True, help="New folder for the fine-tuned checkpoint.")
    parser.add_argument("--text", type=Path, default=recipe.text, help="Texts, one a line (default: the grim stories).")
    parser.add_argument("--epochs", type=int, default=recipe.epochs)
    parser.add_argument("--lr", type=float, default=recipe.lr, help="Peak learning rate.")
    parser.add_argument("--seed", type=int, default=recipe.seed)
    arguments = vars(parser.parse_args())
    base, out = CheckpointConfig(model=arguments.pop("base")), arguments.pop("out")
    try:
        loss = finetune(base, recipe.model_copy(update=arguments), out)
    except UserError as error:
        print(f"finetune: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"loss {loss:.3f} nats a token; checkpoint written to {out}")


if __name__ == "__main__":
    main()
