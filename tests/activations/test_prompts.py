import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from activations.errors import UserError
from activations.prompts import Prompt, Role, TokenBatch, length_buckets, load_prompts, pad, tokenize_prompts

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
        batch.select([1, 0]),
        batch.select([0]),
        TokenBatch(("a", "c"), batch.tokens, batch.roles),
        TokenBatch(batch.ids, batch.tokens, (batch.roles[0] + 1, batch.roles[1])),
        TokenBatch(batch.ids, (np.append(batch.tokens[0], 5), batch.tokens[1]), batch.roles),
    ]
    assert len({batch.hash, *(other.hash for other in others)}) == 6
    assert batch.n_tokens == 5
    assert batch.select([1]).ids == ("b",)


def test_prompt_files(tmp_path: Path):
    rows = [
        {"id": 7, "prompt": "how ?"},
        {"text": "plain", "answer": " more"},
        {"messages": [{"role": "user", "content": "x"}], "answer": "y"},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    assert load_prompts(path) == [
        Prompt.chat("7", "how ?"),
        Prompt("prompts:3", text="plain", answer=" more"),
        Prompt.chat("prompts:5", "x", answer="y"),
    ]
    (tmp_path / "text.txt").write_text("one line\n\nanother\n")
    assert load_prompts(tmp_path / "text.txt") == [
        Prompt.plain("text:1", "one line"),
        Prompt.plain("text:3", "another"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "bad.jsonl:2: Invalid JSON"),
        ('{"promt": "x"}', "bad.jsonl:2: promt: Extra inputs"),
        ('{"prompt": 3}', "bad.jsonl:2: prompt: Input should be a valid string"),
        ('{"prompt": "x", "text": "y"}', "bad.jsonl:2: expected exactly one of"),
        ('{"answer": "y"}', "bad.jsonl:2: expected exactly one of"),
        ('{"prompt": "  "}', "bad.jsonl:2: Prompt 'bad:2' is empty"),
        ('{"messages": []}', "bad.jsonl:2: Prompt 'bad:2' needs either"),
        ('{"messages": [{"content": "x"}]}', "bad.jsonl:2: messages.0.role: Field required"),
        ('{"id": "a", "prompt": "x"}', "bad.jsonl:2: id 'a' is taken by line 1"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path: Path, row: str, message: str):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "a", "prompt": "x"}\n' + row)
    with pytest.raises(UserError) as error:
        load_prompts(path)
    assert message in str(error.value)


def test_bad_prompt_files(tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "table.csv").write_text("a,b")
    for name, message in [
        ("empty.jsonl", "holds no prompts"),
        ("latin.txt", "is not UTF-8"),
        ("table.csv", "neither a .jsonl nor a .txt"),
        ("absent.txt", "does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            load_prompts(tmp_path / name)


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
