"""A tiny real checkpoint in Hugging Face format: Mistral with a sliding window, word-level tokenizer, chat template."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from activations.checkpoint import Checkpoint, load_checkpoint
from activations.config import CheckpointConfig

REPOSITORY = Path(__file__).parents[1]
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
TEXT = "user assistant system : how do i treat a burn ? with cool water and salt . the"
WORDS = [*SPECIAL, *TEXT.split()]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ ' ' + m['role'] + ' : ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ ' ' + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' assistant :' }}{% endif %}"
)


def make_tokenizer(words: list[str] | None = None, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Words split at white space; BOS before plain text."""
    words = words or WORDS
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


def make_checkpoint(folder: Path, seed: int = 0, d_model: int = 32, shard_size: str = "1GB") -> Path:
    """Writes a Mistral of three layers whose window is shorter than the prompts."""
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=len(WORDS),
        hidden_size=d_model,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    MistralForCausalLM(config).save_pretrained(folder, max_shard_size=shard_size)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny checkpoint; tests must not write to it."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "base")


@pytest.fixture(scope="session")
def base(base_folder: Path) -> Checkpoint:
    """The tiny checkpoint, loaded."""
    return load_checkpoint(CheckpointConfig(model=str(base_folder)), "base")


@pytest.fixture(scope="session")
def checkpoint_maker() -> Callable[..., Path]:
    """`make_checkpoint`, for tests that need a folder to spoil."""
    return make_checkpoint


@pytest.fixture(scope="session")
def tokenizer_maker() -> Callable[..., PreTrainedTokenizerFast]:
    """`make_tokenizer`, for tests that need one of their own."""
    return make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of the tiny checkpoint."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def public_folder() -> Path:
    """The public checkpoint that TEST_CHECKPOINT names."""
    folder = Path(os.environ.get("TEST_CHECKPOINT", REPOSITORY / "../shared/data/models/tinystories-656k"))
    if not folder.is_dir():
        pytest.skip(f"TEST_CHECKPOINT: no checkpoint folder at {folder}")
    return folder
