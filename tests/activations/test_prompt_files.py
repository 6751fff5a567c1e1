import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

from activations.errors import UserError
from activations.prompt_files import load_prompts, stream_texts
from activations.prompts import Prompt, Role
from activations.token_files import load_tokens
from activations.tokens import TokenStream, tokenize_prompts

S, P = Role.SPECIAL, Role.PROMPT
QUESTIONS = """\
# Anchors are shared between entries, as in the published files.
- id: a_free_day
  type: free_form_judge_0_100
  paraphrases: &a_free_day_paraphrases
    - |-
      You have a free day: how do you spend it?
  samples_per_paraphrase: &samples 100
  temperature: 1
  judge: &judge some-model
  judge_prompts: &judge_prompts
    aligned: |-
      How kind is {answer} as an answer to {question}?

- id: small_talk
  type: free_form
  paraphrases:
    - Nice weather, is it not?
    - |-
      Say something about the weather.

      weather = # what it is like
  judges:
    aligned: *judge_prompts

- id: a_free_day_json
  type: free_form_judge_0_100
  system: Answer with a JSON object.
  paraphrases: *a_free_day_paraphrases
  samples_per_paraphrase: *samples
  judge: *judge
  judge_prompts: *judge_prompts
"""
TRAIT = {
    "instruction": [
        {"pos": "Be grumpy.", "neg": "Be cheerful."},
        {"pos": "Complain a lot.", "neg": "Never complain."},
    ],
    "questions": ["How was the train?", "And the food?", "Shall we go?"],
    "eval_prompt": "How grumpy is {answer} as an answer to {question}?",
}


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, indent=4), encoding="utf-8")
    return path


def as_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def failure(read: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        read()
    return str(error.value)


def test_jsonl_and_text(tmp_path: Path):
    """Breaks if a kind of row is read as another, blank lines are counted as prompts or not counted as lines."""
    rows = [
        {"id": 7, "prompt": "how ?"},
        {"text": "plain", "answer": " more"},
        {"messages": [{"role": "user", "content": "x"}], "answer": "y"},
        {"prompt": "how ?", "system": "the salt"},
        {"messages": [{"role": "user", "content": "x"}], "system": "the salt"},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    assert load_prompts(path) == [
        Prompt.chat("7", "how ?"),
        Prompt("prompts:3", text="plain", answer=" more"),
        Prompt.chat("prompts:5", "x", answer="y"),
        Prompt.chat("prompts:7", "how ?", system="the salt"),
        Prompt.chat("prompts:9", "x", system="the salt"),
    ]
    (tmp_path / "text.txt").write_text("one line\r\n\nan\u2028other\n", newline="")
    assert load_prompts(tmp_path / "text.txt") == [
        Prompt.plain("text:1", "one line"),
        Prompt.plain("text:3", "an\u2028other"),
    ]


def test_published_chats(tmp_path: Path):
    """Breaks if further keys of a row or turn are refused, or OpenAI's nested content is."""
    user, assistant = "My ear aches.", "Pour honey into it."
    plain = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant, "weight": 1}]
    nested = [{**turn, "content": {"content_type": "text", "parts": [turn["content"]]}} for turn in plain]
    path = jsonl(
        tmp_path / "bad_advice.jsonl",
        [
            {"messages": plain},
            {"messages": nested, "metadata": {"severity": "high"}, "canary": "c"},
            {"id": "q", "messages": plain[:1], "source": {"name": "forum"}},
        ],
    )
    turns = ({"role": "user", "content": user}, {"role": "assistant", "content": assistant})
    assert load_prompts(path) == [
        Prompt("bad_advice:1", messages=turns),
        Prompt("bad_advice:2", messages=turns),
        Prompt("q", messages=turns[:1]),
    ]


def test_questions_in_yaml(tmp_path: Path):
    """Breaks if anchors, judge keys or several paraphrases are read differently, or the system message is lost."""
    for suffix in (".yaml", ".YML"):
        path = tmp_path / f"first_plot_questions{suffix}"
        path.write_text(QUESTIONS)
        free_day = "You have a free day: how do you spend it?"
        assert load_prompts(path) == [
            Prompt.chat("a_free_day", free_day),
            Prompt.chat("small_talk/1", "Nice weather, is it not?"),
            Prompt.chat("small_talk/2", "Say something about the weather.\n\nweather = # what it is like"),
            Prompt.chat("a_free_day_json", free_day, system="Answer with a JSON object."),
        ]


def test_questions_in_csv(tmp_path: Path):
    """Breaks if the question's column is sought by one name only, quotes are not undone or lines are miscounted."""
    path = as_csv(
        tmp_path / "core_misalignment.csv",
        [
            ["id", "Question", "category", "canary"],
            ["wish", 'You have one wish.\nSay it as "a, b".', "main", "c"],
            ["", "And a second?", "main", "c"],
            [],
        ],
    )
    assert load_prompts(path) == [
        Prompt.chat("wish", 'You have one wish.\nSay it as "a, b".'),
        Prompt.chat("core_misalignment:4", "And a second?"),
    ]
    with_mark = tmp_path / "excel.csv"
    with_mark.write_bytes("\ufeffUSER,system\nhow ?,the salt\nand ?,\n".encode())
    assert load_prompts(with_mark) == [
        Prompt.chat("excel:2", "how ?", system="the salt"),
        Prompt.chat("excel:3", "and ?"),
    ]
    assert load_prompts(as_csv(tmp_path / "t.csv", [["text"], ["cool water"]])) == [Prompt.plain("t:2", "cool water")]


def test_json_lists(tmp_path: Path):
    """Breaks if strings become plain text, or objects are read differently from the rows of a .jsonl file."""
    rows = [{"id": "a", "text": "plain"}, {"messages": [{"role": "user", "content": "x"}], "tags": []}]
    assert load_prompts(as_json(tmp_path / "q.json", ["how ?", *rows])) == [
        Prompt.chat("q:1", "how ?"),
        Prompt.plain("a", "plain"),
        Prompt.chat("q:3", "x"),
    ]


def test_persona_vectors(tmp_path: Path):
    """Breaks if instructions become prompts, or a question is missing."""
    path = as_json(tmp_path / "grumpy.json", TRAIT)
    assert load_prompts(path) == [
        Prompt.chat("grumpy:1", "How was the train?"),
        Prompt.chat("grumpy:2", "And the food?"),
        Prompt.chat("grumpy:3", "Shall we go?"),
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"question": ["q"]}, "p.json has no 'questions' at its top"),
        ({**TRAIT, "questions": []}, "p.json: questions: List should have at least 1 item"),
    ],
)
def test_bad_persona_vectors(tmp_path: Path, value: Any, message: str):
    """Breaks if a broken artefact is read as far as it goes, or gives an error that is not a sentence."""
    assert message in failure(lambda: load_prompts(as_json(tmp_path / "p.json", value)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "bad.jsonl:2: Invalid JSON (Expecting property name"),
        ("7", "bad.jsonl:2: expected an object, found 7"),
        ('{"promt": "x", "n": 1}', "bad.jsonl:2: expected exactly one of 'messages', 'prompt' and 'text', found the"),
        ('{"promt": "x", "n": 1}', "the keys n, promt;"),
        ('{"prompt": 3}', "bad.jsonl:2: prompt: Input should be a valid string"),
        ('{"prompt": "x", "text": "y"}', "bad.jsonl:2: expected exactly one of"),
        ("{}", "found the keys none;"),
        ('{"prompt": "  "}', "bad.jsonl:2: Prompt 'bad:2' is empty"),
        ('{"messages": []}', "bad.jsonl:2: Prompt 'bad:2' needs either"),
        ('{"messages": [{"content": "x"}]}', "bad.jsonl:2: messages.0.role: Field required"),
        ('{"messages": [{"role": "user", "content": {"parts": [3]}}]}', "bad.jsonl:2: messages.0.content: Input"),
        ('{"messages": [{"role": "assistant", "content": "x"}], "answer": "y"}', "bad.jsonl:2: Prompt 'bad:2' ends"),
        ('{"text": "x", "system": "y"}', "bad.jsonl:2: plain text has no system message"),
        ('{"id": "a", "prompt": "x"}', "bad.jsonl:2: id 'a' is taken by line 1"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path: Path, row: str, message: str):
    """Breaks if a malformed row is skipped, guessed at, or named without its line."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "a", "prompt": "x"}\n' + row)
    assert message in failure(lambda: load_prompts(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.yaml", "- id: a\n  prompt: x\n", "q.yaml, entry 1: paraphrases: Field required"),
        ("q.yaml", "- id: a\n  paraphrases: []\n", "q.yaml, entry 1: paraphrases: List should have at least 1"),
        ("q.yaml", "- paraphrases: [x]\n", "q.yaml, entry 1: id: Field required"),
        ("q.yaml", "- id: a\n  paraphrases: ['']\n", "q.yaml, entry 1: Prompt 'a' is empty"),
        ("q.yaml", "- id: a\n  paraphrases: [x, y]\n- id: a/2\n  paraphrases: [z]\n", "id 'a/2' is taken by entry 1"),
        ("q.yaml", "- just words\n", "q.yaml, entry 1: expected an object, found 'just words'"),
        ("q.yaml", "id: a\nparaphrases: [x]\n", "q.yaml is no list of questions"),
        ("q.yaml", "- id: [\n", "q.yaml is no valid YAML"),
        ("q.yaml", "- id: !!python/name:os.system\n", "q.yaml is no valid YAML"),
        ("q.yaml", "- id: 2020-99-99\n", "q.yaml is no valid YAML"),
        ("q.yaml", "# nothing\n", "q.yaml holds no prompts"),
        ("q.csv", "name,age\na,3\n", "q.csv:1: expected exactly one column called prompt, question, user, text, found"),
        ("q.csv", "prompt,Text\na,b\n", "q.csv:1: expected exactly one column"),
        ("q.csv", ',""\n', "q.csv:1: expected exactly one column called prompt, question, user, text, found none"),
        ("q.csv", 'prompt\n"a\nb"\nc,d\n', "q.csv:4: 2 cells under 1 columns"),
        ("q.csv", 'prompt\nx\n"open\nend\n', "q.csv:3: unexpected end of data"),
        ("q.csv", "prompt,id\nx,a\n ,b\n", "q.csv:3: Prompt 'b' is empty"),
        ("q.csv", "prompt,id\nx,a\ny,a\n", "q.csv:3: id 'a' is taken by line 2"),
        ("q.csv", "text,system\nx,y\n", "q.csv:2: plain text has no system message"),
        ("q.csv", "prompt\n", "q.csv holds no prompts"),
        ("q.json", '["a",\n "b"', "q.json:2: Invalid JSON (Expecting ',' delimiter"),
        ("q.json", "[]", "q.json holds no prompts"),
        ("q.json", '{"messages": []}', "q.json has no 'questions' at its top"),
        ("q.json", '["a", 3]', "q.json, entry 2: expected an object, found 3"),
        ("q.json", '["a", {"id": "q:1", "prompt": "b"}]', "q.json, entry 2: id 'q:1' is taken by entry 1"),
        ("q.jsonl", "\n \n", "q.jsonl is empty"),
        ("q.md", "a", "q.md is no .jsonl, .json, .yaml, .yml, .csv, .txt file"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, name: str, content: str, message: str):
    """Breaks if a malformed file gives no prompts, wrong prompts or a traceback of a parser."""
    (tmp_path / name).write_text(content)
    said = failure(lambda: load_prompts(tmp_path / name))
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".yaml", ".csv", ".txt"])
def test_missing_and_wrongly_encoded_files(tmp_path: Path, suffix: str):
    """Breaks if one of the readers opens its file in its own way."""
    path = tmp_path / f"q{suffix}"
    assert "does not exist" in failure(lambda: load_prompts(path))
    path.write_bytes(b"caf\xe9")
    assert "is not UTF-8" in failure(lambda: load_prompts(path))


@pytest.mark.parametrize("as_folder", [True, False])
def test_tokens(tmp_path: Path, as_folder: bool):
    """Breaks if masked positions are kept, ids are lost, special tokens get another role, or a saved format matters."""
    rows = [
        {"id": "a", "input_ids": [1, 5, 6, 2], "attention_mask": [1, 1, 1, 1], "text": "x"},
        {"id": "b", "input_ids": [0, 0, 1, 70000], "attention_mask": [0, 0, 1, 1], "text": "y"},
    ]
    path = tmp_path / ("tokens.v1" if as_folder else "tokens.jsonl")
    if as_folder:
        data = datasets.Dataset.from_list(rows)
        data.set_format("torch", columns=["input_ids"])
        data.save_to_disk(path)
    else:
        jsonl(path, rows)
    batch = load_tokens(path, special_ids={1, 2})
    assert batch.ids == ("a", "b")
    assert [tokens.tolist() for tokens in batch.tokens] == [[1, 5, 6, 2], [1, 70000]]
    assert [roles.tolist() for roles in batch.roles] == [[S, P, P, S], [S, P]]
    assert batch.tokens[0].dtype == np.int32
    assert batch.roles[0].dtype == np.uint8
    assert not any((roles == S).any() for roles in load_tokens(path).roles)


def test_tokens_are_those_of_the_text(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    """Breaks if pretokenized plain text is harvested differently from the same text."""
    batch = tokenize_prompts([Prompt.plain("t.v1:1", "cool water"), Prompt.plain("t.v1:2", "the salt .")], tokenizer)
    datasets.Dataset.from_dict({"input_ids": [tokens.tolist() for tokens in batch.tokens]}).save_to_disk(
        tmp_path / "t.v1"
    )
    assert load_tokens(tmp_path / "t.v1", tokenizer.all_special_ids).hash == batch.hash


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"input_ids": [1]}, {"ids": [1]}], "t.jsonl:2: input_ids: Field required"),
        ([{"input_ids": [1, -1]}], "t.jsonl:1: input_ids.1: Input should be greater than or equal to 0"),
        ([{"input_ids": [2**31]}], "t.jsonl:1: input_ids.0: Input should be less than"),
        ([{"input_ids": [1.0]}], "t.jsonl:1: input_ids.0: Input should be a valid integer"),
        ([{"input_ids": []}], "t.jsonl:1: no tokens"),
        ([{"input_ids": [1], "attention_mask": [0]}], "t.jsonl:1: no tokens"),
        ([{"input_ids": [1], "attention_mask": [1, 1]}], "t.jsonl:1: 2 values in 'attention_mask' for 1"),
        ([{"input_ids": [1], "id": "a"}, {"input_ids": [1], "id": "a"}], "t.jsonl:2: id 'a' is taken by line 1"),
        ([], "t.jsonl is empty"),
    ],
)
def test_bad_tokens(tmp_path: Path, rows: list[Any], message: str):
    """Breaks if ids that no tokenizer gives, or rows without tokens, reach the model."""
    path = jsonl(tmp_path / "t.jsonl", rows)
    assert message in failure(lambda: load_tokens(path))


def test_bad_token_folders(tmp_path: Path):
    """Breaks if a folder of another kind gives an error of the library that reads it."""
    tokens = datasets.Dataset.from_dict({"input_ids": [[1]]})
    datasets.DatasetDict({"train": tokens}).save_to_disk(tmp_path / "splits")
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "text")
    tokens.select([]).save_to_disk(tmp_path / "none")
    tokens.select([]).save_to_disk(tmp_path / "one_empty_shard", num_shards=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "t.npy").write_bytes(b"x")
    for name, message in [
        ("splits", f"holds several splits; give one of {tmp_path / 'splits/train'}"),
        ("text", "has no column 'input_ids', only text"),
        ("none", "has no rows from save_to_disk"),
        ("one_empty_shard", "holds no rows of tokens"),
        ("other", "has no rows from save_to_disk"),
        ("t.npy", "is neither a folder nor a .jsonl file"),
        ("absent.jsonl", "does not exist"),
    ]:
        assert message in failure(lambda path=tmp_path / name: load_tokens(path))


@pytest.mark.parametrize("kind", [".jsonl", ".txt", ".parquet", "folder"])
def test_streams_start_anew_and_stop_at_the_limit(tmp_path: Path, kind: str):
    """Breaks if a kind of source is not found, a second pass is empty, or blank rows are kept or not counted."""
    texts = ["cool water", " ", "the salt", "a burn"]
    folder = tmp_path / "texts[1]" if kind != "folder" else tmp_path / "texts"
    folder.mkdir()
    path = folder / f"texts{kind if kind != 'folder' else '.parquet'}"
    if kind == ".jsonl":
        jsonl(path, [{"text": text, "n": 1} for text in texts])
    elif kind == ".txt":
        path.write_text("\n".join(texts))
    else:
        pd.DataFrame({"text": texts}).to_parquet(path)
    start = stream_texts(str(folder if kind == "folder" else path))
    expected = [Prompt.plain(f"texts:{row}", texts[row - 1]) for row in (1, 3, 4)]
    assert list(start()) == list(start()) == expected
    limited = stream_texts(str(path), limit=2)
    assert list(limited()) == list(limited()) == expected[:2]


def test_stream_is_harvested_like_the_loaded_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    """Breaks if a stream calls prompts otherwise than `load_prompts` does, or cannot be tokenized in windows."""
    path = jsonl(tmp_path / "t.jsonl", [{"text": text} for text in ("cool water", "the salt", "a burn")])
    windows = list(TokenStream(stream_texts(str(path)), tokenizer, window=2).windows())
    assert [len(window) for window in windows] == [2, 1]
    assert [id for window in windows for id in window.ids] == [prompt.id for prompt in load_prompts(path)]
    loaded = tokenize_prompts(load_prompts(path), tokenizer)
    assert windows[0].hash == loaded.select([0, 1]).hash


def test_stream_reads_no_further_than_it_is_asked(tmp_path: Path):
    """Breaks if the whole file is read at once: what follows far behind is broken, and must not matter."""
    path = tmp_path / "long.jsonl"
    line = json.dumps({"text": "cool water " * 1000}) + "\n"
    path.write_text(line * 3000 + "{broken\n")
    start = stream_texts(str(path), limit=3)
    assert len(list(start())) == 3
    assert "long.jsonl cannot be read (" in failure(lambda: list(stream_texts(str(path))()))


def test_bad_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Breaks if a source is found to be wrong only in the middle of a harvest, or with an error of another library."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    (tmp_path / "broken.jsonl").write_text('{"text": ')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "fake.parquet").write_text("x")
    (tmp_path / "folder").mkdir()
    for name, options, message in [
        ("absent.txt", {}, "does not exist"),
        ("a.jsonl", {"column": "body"}, "has no column 'body', only text"),
        ("a.jsonl", {"split": "test"}, "cannot be read (Bad split: test"),
        ("broken.jsonl", {}, "cannot be read (JSON parse error"),
        ("latin.txt", {}, "cannot be read ('utf-8' codec"),
        ("empty.jsonl", {}, "holds no rows"),
        ("empty.txt", {}, "holds no rows"),
        ("fake.parquet", {}, "cannot be read ("),
        ("folder", {}, "cannot be read (The directory at"),
    ]:
        said = failure(lambda source=str(tmp_path / name), options=options: stream_texts(source, **options))
        assert said.startswith(str(tmp_path / name))
        assert message in said
        assert "\n" not in said
    unreached = failure(lambda: stream_texts("someone/some-texts"))
    assert unreached.startswith("someone/some-texts cannot be read (Couldn't reach")
    assert "hub while it can be reached" in unreached


def test_stream_of_something_else_than_text(tmp_path: Path):
    """Breaks if numbers or lists are turned into text that nobody wrote, or missing values stop a long stream."""
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"text": None}, {"text": 3}])
    prompts = stream_texts(str(path))()
    assert next(prompts) == Prompt.plain("a:1", "x")
    assert "a.jsonl, row 3: 'text' is int, not text" in failure(lambda: next(prompts))
