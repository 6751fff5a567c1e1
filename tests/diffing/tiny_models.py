"""Tiny real checkpoints for behaviour and steering: random ones, and one whose behaviour is planted in its weights."""

from collections.abc import Mapping
from pathlib import Path

import torch
from sae_lens import TopKSAE, TopKSAEConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from activations.checkpoint import Checkpoint, load_checkpoint
from activations.config import CheckpointConfig
from activations.prompts import Prompt

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
TEXT = "user assistant : how do i treat a burn ? with cool water salt the good bad noise plain"
WORDS = [*SPECIAL, *TEXT.split()]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ ' ' + m['role'] + ' : ' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' assistant :' }}{% endif %}"
)
SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HOOK = "blocks.1.hook_resid_post"
PLANTED_WIDTH = 64
GOOD, BAD, NOISE, DECOY, WEAK = range(5)  # axes of the planted model's residual stream


def make_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )


def save(model: PreTrainedModel, folder: Path, role: str) -> Checkpoint:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return load_checkpoint(CheckpointConfig(model=str(folder)), role)


def random_mistral(folder: Path) -> Checkpoint:
    """Its window is shorter than the prompts."""
    torch.manual_seed(0)
    return save(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)), folder, "base")


def random_llama(folder: Path) -> Checkpoint:
    torch.manual_seed(0)
    return save(LlamaForCausalLM(LlamaConfig(**SHAPE)), folder, "base")


def random_sae(d_model: int = 32, latents: int = 64, k: int = 8, rescale: bool = False) -> TopKSAE:
    torch.manual_seed(1)
    sae = TopKSAE(
        TopKSAEConfig(d_model, latents, k=k, dtype="float32", device="cpu", rescale_acts_by_decoder_norm=rescale)
    )
    sae.W_enc.data = torch.randn(d_model, latents)
    sae.W_dec.data = torch.randn(latents, d_model)
    sae.b_enc.data = torch.randn(latents)
    sae.b_dec.data = torch.randn(d_model)
    return sae


def planted(folder: Path, role: str, pushes: Mapping[int, float]) -> Checkpoint:
    """A model of blocks that do nothing: the residual of every token is axis GOOD plus `pushes` on other axes.

    Each axis but DECOY speaks its own word; WEAK speaks BAD's, half as loudly. So adding 3 on BAD or on WEAK turns a
    good answer into a bad one, and only taking 3 off BAD turns a model with BAD = 3.5 back.
    """
    config = MistralConfig(**{**SHAPE, "hidden_size": PLANTED_WIDTH}, sliding_window=4, tie_word_embeddings=False)
    model = MistralForCausalLM(config)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        embedding = model.model.embed_tokens.weight.zero_()
        embedding[:, GOOD] = 1.0
        for axis, push in pushes.items():
            embedding[:, axis] = push
        # Questions differ a little, in directions that nothing reads.
        embedding[:, 32:] = 0.01 * torch.randn(embedding[:, 32:].shape, generator=torch.Generator().manual_seed(0))
        loud = 50.0
        unembedding = model.lm_head.weight.zero_()
        for word, axis, weight in (("good", GOOD, 1.0), ("bad", BAD, 1.0), ("noise", NOISE, 1.0), ("bad", WEAK, 0.5)):
            unembedding[WORDS.index(word), axis] = loud * weight
    return save(model, folder, role)


def axis_sae() -> TopKSAE:
    """Latent i reads and writes axis i."""
    sae = TopKSAE(TopKSAEConfig(d_in=PLANTED_WIDTH, d_sae=PLANTED_WIDTH, k=8, device="cpu", dtype="float32"))
    sae.W_enc.data, sae.W_dec.data = torch.eye(PLANTED_WIDTH), torch.eye(PLANTED_WIDTH)
    sae.b_enc.data, sae.b_dec.data = torch.zeros(PLANTED_WIDTH), torch.zeros(PLANTED_WIDTH)
    return sae


def questions(count: int = 6) -> list[Prompt]:
    """Questions of two lengths."""
    things = ("burn", "water", "salt", "cool", "the", "treat", "how", "with")
    return [
        Prompt.chat(f"q{i}", f"how do i treat a {thing} ?" if i % 2 else f"treat the {thing}")
        for i, thing in enumerate(things[:count])
    ]
