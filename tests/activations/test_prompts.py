from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from activations.errors import UserError
from activations.prompts import Prompt, Role
from activations.tokens import TokenBatch, TokenStream, add_hashes, length_buckets, pad, tokenize_prompts

S, P, L, A = Role.SPECIAL, Role.PROMPT, Role.LAST_PROMPT, Role.ANSWER


def words(batch: TokenBatch, tokenizer: PreTrainedTokenizerFast, prompt: int = 0) -> list[str]:
    return [str(tokenizer.convert_ids_to_tokens(token)) for token in batch.tokens[prompt].tolist()]


def test_question_ends_with_the_assistants_header(tokenizer: PreTrainedTokenizerFast):
    batch = tokenize_prompts([Prompt.chat("q", "how do i treat a burn ?", system="the salt")], tokenizer)
    expected = "<bos> system : the salt user : how do i treat a burn ? assistant :"
    assert words(batch, tokenizer) == expected.split()
    assert batch.roles[0].tolist() == [S, *[P] * 14, L]
    assert batch.tokens[0].dtype == np.int32
    assert batch.roles[0].dtype == np.uint8


@pytest.mark.parametrize("whole", [False, True])
def test_answer_is_tagged_and_its_end_is_special(tokenizer: PreTrainedTokenizerFast, whole: bool):
    question, answer = "how do i treat a burn ?", "with cool water ."
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    prompt = Prompt("q", messages=turns) if whole else Prompt.chat("q", question, answer=answer)
    batch = tokenize_prompts([prompt], tokenizer)
    assert words(batch, tokenizer)[-5:] == ["with", "cool", "water", ".", "<eos>"]
    assert batch.roles[0].tolist() == [S, *[P] * 10, L, *[A] * 4, S]


def test_earlier_turns_belong_to_the_prompt(tokenizer: PreTrainedTokenizerFast):
    turns = [("user", "how ?"), ("assistant", "water ."), ("user", "and ?")]
    prompt = Prompt("q", messages=tuple({"role": role, "content": content} for role, content in turns))
    batch = tokenize_prompts([prompt], tokenizer)
    assert words(batch, tokenizer)[5:10] == ["assistant", ":", "water", ".", "<eos>"]
    assert Role.ANSWER not in batch.roles[0]
    assert batch.roles[0].tolist().count(L) == 1


def test_plain_text_has_one_bos_and_no_last_prompt(tokenizer: PreTrainedTokenizerFast):
    batch = tokenize_prompts([Prompt.plain("a", "cool water"), Prompt.plain("b", "<bos> cool water")], tokenizer)
    assert words(batch, tokenizer, 0) == words(batch, tokenizer, 1) == ["<bos>", "cool", "water"]
    assert batch.roles[0].tolist() == [S, P, P]
    continued = tokenize_prompts([Prompt("c", text="cool", answer=" water")], tokenizer)
    assert continued.roles[0].tolist() == [S, P, A]


def test_special_tokens_are_what_decoding_drops(tokenizer_maker: Callable[..., PreTrainedTokenizerFast]):
    tokenizer = tokenizer_maker()
    tokenizer.add_tokens([AddedToken("<turn>", special=True)])
    assert tokenizer.convert_tokens_to_ids("<turn>") not in tokenizer.all_special_ids
    batch = tokenize_prompts([Prompt.plain("a", "cool <turn> water")], tokenizer)
    assert batch.roles[0].tolist() == [S, P, S, P]
    assert tokenizer.decode(batch.tokens[0][batch.roles[0] != S]) == tokenizer.decode(
        batch.tokens[0], skip_special_tokens=True
    )


def test_header_that_the_answer_leaves_out(tokenizer_maker: Callable[..., PreTrainedTokenizerFast]):
    """Some templates open the answer with a thought, and drop it where the answer is given."""
    tokenizer = tokenizer_maker()
    template = tokenizer.chat_template
    assert isinstance(template, str)
    tokenizer.chat_template = template.replace("' assistant :'", "' assistant : the'")
    batch = tokenize_prompts([Prompt.chat("q", "how ?", answer="water .")], tokenizer)
    assert batch.roles[0].tolist() == [S, P, P, P, P, P, L, A, A, S]


def test_length_limit_cuts_answers_and_text_but_no_prompt(tokenizer: PreTrainedTokenizerFast):
    chat = Prompt.chat("q", "how do i ?", answer="with cool water .")
    batch = tokenize_prompts([chat, Prompt.plain("t", "how do i treat a burn with cool water ?")], tokenizer, 10)
    assert [len(tokens) for tokens in batch.tokens] == [10, 10]
    assert batch.roles[0].tolist() == [S, *[P] * 7, L, A]
    with pytest.raises(UserError, match="'q' has 9 tokens before its answer, more than max_length=8"):
        tokenize_prompts([chat], tokenizer, 8)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "There are no prompts"),
        ([Prompt.plain("a", " \n")], "'a' is empty"),
        ([Prompt.chat("a", "")], "'a' is empty"),
        ([Prompt("a")], "'a' needs either messages or text"),
        ([Prompt("a", messages=({"role": "user", "content": "x"},), text="x")], "'a' needs either messages or text"),
        ([Prompt.plain("a", "x"), Prompt.plain("a", "y")], "Two prompts have the id 'a'"),
        ([Prompt("a", messages=({"role": "assistant", "content": "x"},), answer="y")], "has an answer too"),
    ],
)
def test_bad_prompts(tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt], message: str):
    with pytest.raises(UserError, match=message):
        tokenize_prompts(prompts, tokenizer)


def test_template_that_is_missing_or_refuses(tokenizer_maker: Callable[..., PreTrainedTokenizerFast]):
    with pytest.raises(UserError, match="no chat template"):
        tokenize_prompts([Prompt.chat("q", "how ?")], tokenizer_maker(template=None))
    stern = tokenizer_maker(template="{{ raise_exception('no system messages') }}")
    with pytest.raises(UserError, match="refuses prompt 'q': no system messages"):
        tokenize_prompts([Prompt.chat("q", "how ?")], stern)


def test_sentencepiece_like_tokenizer_of_a_public_checkpoint(public_folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(public_folder)
    text = "Once upon a time, a little girl named Lily"
    batch = tokenize_prompts([Prompt.plain("a", text), Prompt("b", text=text[:16], answer=text[16:])], tokenizer)
    np.testing.assert_array_equal(batch.tokens[0], tokenizer(text)["input_ids"])
    np.testing.assert_array_equal(batch.tokens[0], batch.tokens[1])
    assert tokenizer.decode(batch.tokens[1][batch.roles[1] == A]).strip() == text[16:].strip()


def test_hash_tells_ids_tokens_roles_and_boundaries_apart(tokenizer: PreTrainedTokenizerFast):
    a, b = Prompt.plain("a", "cool water"), Prompt.plain("b", "salt")
    batch = tokenize_prompts([a, b], tokenizer)
    assert batch.hash == tokenize_prompts([a, b], tokenizer).hash
    others = [
        batch.select([0]),
        batch.select([0, 0]),
        TokenBatch(("a", "c"), batch.tokens, batch.roles),
        TokenBatch(batch.ids, batch.tokens, (batch.roles[0] + 1, batch.roles[1])),
        TokenBatch(batch.ids, (np.append(batch.tokens[0], 5), batch.tokens[1]), batch.roles),
    ]
    assert len({batch.hash, *(other.hash for other in others)}) == 6
    assert batch.n_tokens == 5
    assert batch.select([1]).ids == ("b",)


def test_hashes_of_parts_add_up_in_any_order(tokenizer: PreTrainedTokenizerFast):
    """Breaks if a store that was written shard by shard, in an order of its own, has another hash than its prompts."""
    batch = tokenize_prompts([Prompt.plain(str(i), "cool water " * i) for i in range(1, 6)], tokenizer)
    parts = [batch.select(chosen).hash for chosen in ([4, 2], [0], [3, 1])]
    assert add_hashes(parts) == add_hashes(reversed(parts)) == batch.hash
    assert batch.select([3, 1, 0, 4, 2]).hash == batch.hash
    assert len(batch.hash) == len(add_hashes([])) == 32
    assert add_hashes([batch.hash]) == batch.hash
    assert add_hashes(["f" * 32, f"{1:032x}"]) == add_hashes([])


@pytest.mark.parametrize(("window", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_stream_is_tokenized_window_by_window(tokenizer: PreTrainedTokenizerFast, window: int, sizes: list[int]):
    """Breaks if windows lose, repeat or reorder prompts, or can be read only once."""
    prompts = [Prompt.plain(str(i), "cool water " * i) for i in range(1, 6)]
    batch = tokenize_prompts(prompts, tokenizer, 6)
    stream = TokenStream(lambda: iter(prompts), tokenizer, 6, window)
    for _ in range(2):
        windows = list(stream.windows())
        assert [len(part) for part in windows] == sizes
        assert [id for part in windows for id in part.ids] == list(batch.ids)
        for read, wanted in zip((t for part in windows for t in part.tokens), batch.tokens, strict=True):
            np.testing.assert_array_equal(read, wanted)
        assert add_hashes(part.hash for part in windows) == batch.hash
    assert list(batch.windows()) == [batch]


def test_stream_tokenizes_no_more_than_it_is_asked_for(tokenizer: PreTrainedTokenizerFast):
    """Breaks if a stream that is longer than memory is read whole."""
    read: list[int] = []

    def endless() -> Iterator[Prompt]:
        for i in count():
            read.append(i)
            yield Prompt.plain(str(i), "salt")

    assert next(TokenStream(endless, tokenizer, window=3).windows()).ids == ("0", "1", "2")
    assert len(read) == 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side):
    tokens, mask = pad([np.array([5, 6, 7], np.int32), np.array([8], np.int32)], pad_id=9, side=side)
    row, real = ([8, 9, 9], [1, 0, 0]) if side == "right" else ([9, 9, 8], [0, 0, 1])
    assert tokens.tolist() == [[5, 6, 7], row]
    assert mask.tolist() == [[1, 1, 1], real]
    assert tokens.dtype == mask.dtype == torch.int64


def test_buckets_hold_every_prompt_once_and_keep_to_the_limit():
    lengths = [*np.random.default_rng(0).integers(1, 60, 200).tolist(), 500]
    rows = tuple(np.zeros(n, np.int32) for n in lengths)
    batch = TokenBatch(tuple(map(str, range(201))), rows, rows)
    groups = length_buckets(batch, 256)
    assert sorted(i for group in groups for i in group) == list(range(201))
    assert groups[0] == [200]
    assert all(max(lengths[i] for i in group) * len(group) <= 256 for group in groups[1:])
    padded = sum(max(lengths[i] for i in group) * len(group) for group in groups)
    assert padded < 1.1 * sum(lengths)
