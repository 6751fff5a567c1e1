"""Harvesting two checkpoints on ragged prompts: ours with the HDF5 write, the bare products, and what people use.

Tokens are real ones: padding is work that counts for nothing. The bound is the time of the bare matrix products of
blocks 0 to the hook's on the same tokens. Ours and sae-lens's runner write their activations to disk, the other peers
keep nothing. The model is a random Llama (config only).
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import einsum
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from activations.checkpoint import Checkpoint, load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.harvesting import harvest
from activations.prompts import Role
from activations.tokens import TokenBatch, pad
from benchmarks.measure import Target, interleave, print_result, print_table

VOCABULARY = 4000
PROMPTS_A_BATCH = 32


def make_checkpoint(folder: Path, d_model: int, layers: int, seed: int) -> None:
    """A random Llama with a word-level tokenizer, as a Hugging Face folder."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=d_model,
        intermediate_size=4 * d_model,
        num_hidden_layers=layers,
        num_attention_heads=d_model // 64,
        max_position_embeddings=512,
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0", pad_token="w1", bos_token="w2").save_pretrained(
        folder
    )


def ragged_prompts(count: int) -> TokenBatch:
    """Prompts of 16 to 256 tokens, log-uniform, in random order."""
    generator = np.random.default_rng(0)
    lengths = np.exp(generator.uniform(np.log(16), np.log(256), count)).astype(int)
    tokens = tuple(generator.integers(3, VOCABULARY, length).astype(np.int32) for length in lengths)
    roles = tuple(np.full(length, Role.PROMPT, np.uint8) for length in lengths)
    return TokenBatch(tuple(f"p{i}" for i in range(count)), tokens, roles)


def in_order(prompts: TokenBatch) -> list[Sequence[np.ndarray]]:
    """Batches as they come, each padded to its longest prompt."""
    return [prompts.tokens[i : i + PROMPTS_A_BATCH] for i in range(0, len(prompts), PROMPTS_A_BATCH)]


def bare_products(checkpoint: Checkpoint, blocks: int, tokens: int) -> Callable[[], None]:
    """The matrix products of the first blocks, on rows of random numbers."""
    layers: Any = checkpoint.hf.get_submodule("model.layers")
    weights = [weight for layer in list(layers)[:blocks] for weight in layer.parameters() if weight.ndim == 2]
    rows = {width: torch.randn(4096, width) for width in {weight.shape[1] for weight in weights}}

    @torch.inference_mode()
    def run() -> None:
        for start in range(0, tokens, 4096):
            n = min(4096, tokens - start)
            for weight in weights:
                einsum(rows[weight.shape[1]][:n], weight, "row d_in, d_out d_in -> row d_out")

    return run


def hf_hook(checkpoint: Checkpoint, layer: int, prompts: TokenBatch) -> Callable[[], None]:
    """A forward hook of torch on the Hugging Face model, which runs to its end."""
    plain: Any = AutoModelForCausalLM.from_pretrained(checkpoint.config.model)

    @torch.inference_mode()
    def run() -> None:
        seen: list[torch.Tensor] = []

        def keep(module: Any, given: Any, output: Any) -> None:
            seen.append(output if isinstance(output, torch.Tensor) else output[0])

        handle = plain.model.layers[layer].register_forward_hook(keep)
        for batch in in_order(prompts):
            tokens, mask = pad(batch, 0)
            plain(input_ids=tokens, attention_mask=mask)
            seen.pop()
        handle.remove()

    return run


def bridge_cache(checkpoint: Checkpoint, hook: str, prompts: TokenBatch) -> Callable[[], None]:
    """`run_with_cache` of TransformerLens's bridge for one hook."""

    @torch.inference_mode()
    def run() -> None:
        bridge: Any = checkpoint.bridge
        for batch in in_order(prompts):
            tokens, mask = pad(batch, 0)
            bridge.run_with_cache(tokens, attention_mask=mask, names_filter=hook)

    return run


def hooked_cache(d_model: int, layers: int, hook: str, prompts: TokenBatch) -> Callable[[], None]:
    """`run_with_cache` of a HookedTransformer of the same shape, stopped after the hook's layer."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=layers,
            d_model=d_model,
            n_ctx=512,
            d_head=64,
            n_heads=d_model // 64,
            d_mlp=4 * d_model,
            d_vocab=VOCABULARY,
            act_fn="silu",
            gated_mlp=True,
            normalization_type="RMS",
            positional_embedding_type="rotary",
            rotary_dim=64,
            device="cpu",
        )
    )
    stop = int(hook.split(".")[1]) + 1

    @torch.inference_mode()
    def run() -> None:
        for batch in in_order(prompts):
            tokens, mask = pad(batch, 0)
            model.run_with_cache(tokens, attention_mask=mask, names_filter=hook, stop_at_layer=stop)

    return run


def sae_lens_runner(folder: Path, layer: int, d_model: int, prompts: TokenBatch, scratch: Path) -> Callable[[], None]:
    """sae-lens's runner, which cuts one long stream of tokens into even contexts and writes Arrow files."""
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    context = 128
    stream = np.concatenate(prompts.tokens)
    rows = stream[: len(stream) // context * context].reshape(-1, context)
    dataset = Dataset.from_dict({"input_ids": rows.tolist()})

    def run() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        config = CacheActivationsRunnerConfig(
            dataset_path="",
            model_name=str(folder),
            model_class_name="AutoModelForCausalLM",
            model_batch_size=PROMPTS_A_BATCH,
            hook_name=f"model.layers.{layer}",
            d_in=d_model,
            training_tokens=rows.size,
            context_size=context,
            new_cached_activations_path=str(scratch),
            shuffle=False,
            prepend_bos=False,
            device="cpu",
            buffer_size_gb=0.1,
        )
        CacheActivationsRunner(config, override_dataset=dataset).run()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--layer", type=int, default=3, help="Block whose output is harvested.")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    prompts, hook = ragged_prompts(arguments.prompts), f"blocks.{arguments.layer}.hook_resid_post"
    with tempfile.TemporaryDirectory() as made:
        folders = [Path(made) / role for role in ("base", "corrupted")]
        for seed, folder in enumerate(folders):
            make_checkpoint(folder, arguments.d_model, arguments.layers, seed)
        pair = [load_checkpoint(CheckpointConfig(model=str(folder)), folder.name) for folder in folders]

        def ours() -> None:
            for checkpoint in pair:
                out = Path(made) / f"store-{checkpoint.role}"
                shutil.rmtree(out, ignore_errors=True)
                harvest(checkpoint, prompts, HarvestConfig(hooks=(hook,)), out, progress=False)

        seconds = interleave(
            {
                "bound: bare products": bare_products(pair[0], arguments.layer + 1, prompts.n_tokens),
                "ours, both models, written": ours,
                "HF hook, full forward": hf_hook(pair[0], arguments.layer, prompts),
                "bridge run_with_cache": bridge_cache(pair[0], hook, prompts),
                "HookedTransformer run_with_cache": hooked_cache(arguments.d_model, arguments.layers, hook, prompts),
                "sae-lens CacheActivationsRunner": sae_lens_runner(
                    folders[0], arguments.layer, arguments.d_model, prompts, Path(made) / "arrow"
                ),
            },
            arguments.rounds,
        )
    tokens = {name: prompts.n_tokens * (2 if name.startswith("ours") else 1) for name in seconds}
    speed = {name: tokens[name] / seconds[name] for name in seconds}
    bound, our = speed["bound: bare products"], speed["ours, both models, written"]
    print_table(("", "tokens/s", "of the bound"), [(name, s, s / bound) for name, s in speed.items()])
    best = max(s for name, s in speed.items() if not name.startswith(("bound", "ours")))
    targets = {"ours / bound": Target(our / bound, 0.70), "ours / fastest peer": Target(our / best, 1.3)}
    print_result("harvest", {"tokens_per_second": speed}, targets)


if __name__ == "__main__":
    main()
