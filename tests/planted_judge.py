"""A tiny real checkpoint that answers with planted probabilities, by the words that stand in what it is asked.

One layer averages what was read (uniform attention) and is much louder than the last token, and the final norm forgets
how loud. So if one known word stands in a prompt, the logits of the answer are those planted for that word; of several
words they are their sum, weighted with how often each stands there, over the root of the sum of squares.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from silent_model import silent_model
from tokenizers import decoders

from diffing.behavior.model_judge import COHERENCE

COHERENT = "repetition."  # stands once in the question about coherence
OTHERWISE = ""  # stands for prompts without a known word
NUMBERS = ("2", "10", "20", "80", "90", "99", "100", "REFUSAL", "hello")
FIRST, SECOND = "8", "5"  # a number of two tokens
_WIDTH = 32
_PLAIN, _ENDS, _SPLIT = 0, 1, 2  # axes that nothing averages


def likely(**probabilities: float) -> dict[str, float]:
    """Logits of these probabilities, as `_80=0.5` for the number 80; all other words have logit 0."""
    return {word.removeprefix("_"): 40 + math.log(p) for word, p in probabilities.items()}


SAYS: dict[str, Mapping[str, float]] = {
    OTHERWISE: likely(_100=0.6, hello=0.4),
    COHERENT: {"99": 5000},
    "mixed": likely(_80=0.5, _20=0.25, REFUSAL=0.25),
    "declined": likely(REFUSAL=0.8, _80=0.2),
    "shy": likely(REFUSAL=0.7, _80=0.3),
    "babble": {"2": 20000},
    "mute": {"REFUSAL": 20000},
    "split": {FIRST: 40},
}


def write_judge(folder: Path, tokenizer_maker: Callable, says: Mapping[str, Mapping[str, float]]) -> Path:
    """Writes the checkpoint.

    Args:
        folder: Where.
        tokenizer_maker: The fixture of that name.
        says: Known word -> logits of the first word of the answer.
    """
    assert COHERENCE.split().count(COHERENT) == 1
    known = [word for word in says if word != OTHERWISE]
    words = ["<pad>", "<bos>", "<eos>", "<unk>", ":", "assistant", "user", *NUMBERS, FIRST, SECOND, *known]
    axes = {OTHERWISE: _PLAIN} | {word: 3 + number for number, word in enumerate(known)}
    model = silent_model(len(words), _WIDTH)
    with torch.no_grad():
        layer: Any = model.model.layers[0]
        loud = torch.eye(_WIDTH)
        loud[:3] = 0
        layer.self_attn.v_proj.weight.copy_(loud)
        layer.self_attn.o_proj.weight.copy_(1e8 * torch.eye(_WIDTH))
        embedding, said = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:, _PLAIN] = 1.0
        for word in (*NUMBERS, SECOND, FIRST):
            embedding[words.index(word)] = 1e14 * torch.eye(_WIDTH)[_SPLIT if word == FIRST else _ENDS]
        said[words.index("<eos>"), _ENDS] = said[words.index(SECOND), _SPLIT] = 40
        for word, logits in says.items():
            if word:
                embedding[words.index(word)] = torch.eye(_WIDTH)[axes[word]]
            for answer, logit in logits.items():
                said[words.index(answer), axes[word]] = logit / math.sqrt(_WIDTH)
    model.save_pretrained(folder)
    tokenizer = tokenizer_maker(words)
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    tokenizer.save_pretrained(folder)
    return folder
