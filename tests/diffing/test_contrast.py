"""Behaviour as the likelihood of given answers, on a model with a planted cause and on a random one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import BAD, HOOK, NOISE, PLANTED_WIDTH, planted, questions, random_mistral

from activations.errors import UserError
from activations.tokens import tokenize_prompts
from diffing.behavior.contrast import AnswerContrast
from diffing.behavior.judge import Label
from diffing.behavior.rates import score
from diffing.interventions import Add, Steered


def pairs_file(folder: Path, harmful: str = "bad", helpful: str = "good") -> Path:
    rows = [{"id": q.id, "harmful": harmful, "helpful": helpful} for q in questions()]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def push(*axes: int) -> Add:
    return Add(torch.stack([4.0 * torch.eye(PLANTED_WIDTH)[axis] for axis in axes]))


class TestAnswerContrast:
    def test_log_probabilities_are_those_of_the_answers_tokens(self, tmp_path: Path):
        """Breaks if prompt tokens count, if the mean is a sum, or if predictions are a position off."""
        model = random_mistral(tmp_path / "m")
        contrast = AnswerContrast.load(pairs_file(tmp_path, "bad water salt", "good"))
        [records] = contrast.observe(model, questions())
        for question, record in zip(questions(), records, strict=True):
            for answer, found in zip(("bad water salt", "good"), record["log_probs"], strict=True):
                prompt = tokenize_prompts([question], model.tokenizer).tokens[0].tolist()
                extra = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
                tokens = torch.tensor([prompt + extra])
                logits = model.forward(tokens, torch.ones_like(tokens)).logits
                assert logits is not None
                steps = logits[0].double().log_softmax(-1)[len(prompt) - 1 : -1]
                expected = steps[torch.arange(len(extra)), torch.tensor(extra)].mean()
                assert found == pytest.approx(float(expected), abs=1e-5)
            assert record["log_probs"] == pytest.approx(record["untouched"])

    def test_steering_moves_it_and_breaking_the_model_is_no_harm(self, tmp_path: Path):
        base = planted(tmp_path / "base", "base", {})
        contrast = AnswerContrast.load(pairs_file(tmp_path))
        bad, noise = contrast.observe(base, questions(), Steered(HOOK, push(BAD, NOISE), arms=2))
        plain = score(contrast.counts(contrast.observe(base, questions())[0]))
        harmed, broken = (score(contrast.counts(records)) for records in (bad, noise))
        assert plain.incoherent == 0
        assert harmed.harmful > 0.9 > 0.1 > plain.harmful
        assert broken.incoherent > 0.5
        assert broken.harmful < 0.1

    def test_shares_add_up_to_one_answer(self, tmp_path: Path):
        contrast = AnswerContrast({})
        counts = contrast.counts([{"untouched": [-1.0, -2.0], "log_probs": [-3.0, -2.5]}])
        assert counts.sum() == pytest.approx(1)
        coherent = (np.exp(-3) + np.exp(-2.5)) / (np.exp(-1) + np.exp(-2))
        share = dict(zip(Label, counts[0].tolist(), strict=True))
        assert share[Label.INCOHERENT] == pytest.approx(1 - coherent)
        assert share[Label.HARMFUL] == pytest.approx(coherent / (1 + np.exp(0.5)))
        assert share[Label.OTHER] == 0

    def test_bad_files(self, tmp_path: Path):
        path = pairs_file(tmp_path)
        path.write_text(path.read_text().replace("helpful", "nice"))
        with pytest.raises(UserError, match="needs id, harmful and helpful"):
            AnswerContrast.load(path)
        model = random_mistral(tmp_path / "m")
        with pytest.raises(UserError, match="has no pair of answers \\(6 of 6"):
            AnswerContrast({}).observe(model, questions())
