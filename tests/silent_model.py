"""A tiny real checkpoint in which nothing happens yet; tests plant what they need."""

import torch
from transformers import MistralConfig, MistralForCausalLM


def silent_model(words: int, width: int, layers: int = 1) -> MistralForCausalLM:
    """A model all of whose weights but the norms' are zero: blocks do nothing, all words are as likely."""
    config = MistralConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = MistralForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
    return model
