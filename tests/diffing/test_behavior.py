"""Rates by hand, and sampled text against slow and independent ways to the same answers."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny_models import HOOK, questions, random_llama, random_mistral, random_sae
from torch import Tensor

from activations.checkpoint import Checkpoint
from activations.errors import UserError
from activations.tokens import TokenBatch, tokenize_prompts
from diffing.behavior.capability import exact_match, exact_questions
from diffing.behavior.config import SamplingConfig
from diffing.behavior.judge import Label, PatternJudge
from diffing.behavior.rates import count_labels, label_tally, rate_difference, score
from diffing.behavior.sampling import sample_answers
from diffing.interventions import AblateDirection, AblateLatent, Add, Intervention, Steered

LABELS = list(Label)
HARMFUL = LABELS.index(Label.HARMFUL)
SAMPLING = SamplingConfig(samples=5, max_new_tokens=10, seed=3)


def counts_of(*questions: dict[Label, int]) -> np.ndarray:
    return np.array([[question.get(label, 0) for label in Label] for question in questions])


def uneven_counts(questions: int = 40, seed: int = 0) -> np.ndarray:
    """Some questions are answered harmfully much more often than others, and not all have as many answers."""
    rng = np.random.default_rng(seed)
    rates = rng.beta(0.5, 0.5, questions)
    answers = rng.integers(10, 30, questions)
    harmful = rng.binomial(answers, rates)
    return counts_of(
        *({Label.HARMFUL: int(h), Label.HELPFUL: int(a - h)} for h, a in zip(harmful, answers, strict=True))
    )


class TestRates:
    def test_counts_and_rates_by_hand(self):
        helpful, harmful, other, bad = LABELS
        counts = count_labels([[harmful, harmful, helpful, bad], [other, harmful, bad, bad]])
        assert counts.tolist() == [[1, 2, 0, 1], [0, 1, 1, 2]]
        rates = score(counts)
        assert (rates.answers, rates.harmful, rates.helpful, rates.other) == (8, 3 / 8, 1 / 8, 1 / 8)
        assert (rates.incoherent, rates.coherent) == (3 / 8, 5 / 8)

    def test_em_conditional_is_among_coherent_answers(self):
        rates = score(counts_of({Label.HARMFUL: 3, Label.HELPFUL: 1, Label.INCOHERENT: 4}))
        assert rates.em_conditional == pytest.approx(3 / 4)
        assert rates.harmful == pytest.approx(3 / 8)

    def test_em_conditional_without_a_coherent_answer_is_zero(self):
        assert score(counts_of({Label.INCOHERENT: 4})).em_conditional == 0

    def test_interval_equals_a_slow_cluster_bootstrap(self):
        counts = uneven_counts()
        rng = np.random.default_rng(99)
        draws = []
        for _ in range(4000):
            drawn = [counts[rng.integers(len(counts))] for _ in counts]
            draws.append(sum(row[HARMFUL] for row in drawn) / sum(row.sum() for row in drawn))
        rates = score(counts)
        assert [rates.low, rates.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)

    def test_interval_resamples_questions_and_not_answers(self):
        alternating = counts_of(*[{Label.HARMFUL: 20}, {Label.HELPFUL: 20}] * 15)
        rates = score(alternating)
        over_answers = 2 * 1.96 * np.sqrt(0.25 / 600)
        assert rates.high - rates.low > 3 * over_answers

    def test_intervals_are_seeded(self):
        counts = uneven_counts()
        assert score(counts, 1) == score(counts, 1)
        assert score(counts, 1) != score(counts, 2)


def test_of_a_label() -> None:
    counts = np.array([[1, 3, 0, 0], [4, 0, 0, 0]])
    assert label_tally(counts, {Label.HARMFUL: 1}).mean == 3 / 8
    assert label_tally(counts, {Label.HELPFUL: 1}).mean == 5 / 8


class TestDifference:
    def test_of_a_cell_with_itself_is_zero(self):
        assert rate_difference(uneven_counts(), uneven_counts()) == (0, 0, 0)

    def test_pairs_questions(self):
        """The questions differ a lot, the difference within each question does not."""
        before = counts_of(*({Label.HARMFUL: h, Label.HELPFUL: 20 - h} for h in [0, 2, 9, 18] * 10))
        after = counts_of(*({Label.HARMFUL: h + 2, Label.HELPFUL: 18 - h} for h in [0, 2, 9, 18] * 10))
        assert rate_difference(after, before) == pytest.approx((0.1, 0.1, 0.1))
        unpaired = after[np.argsort(-after[:, HARMFUL])]
        point, low, high = rate_difference(unpaired, before)
        assert point == pytest.approx(0.1)
        assert high - low > 0.2

    def test_needs_the_same_questions(self):
        with pytest.raises(ValueError, match="same questions"):
            rate_difference(uneven_counts(40), uneven_counts(39))


class TestPatternJudge:
    def test_first_label_in_the_order_of_the_file_wins(self, tmp_path: Path):
        file = tmp_path / "judge.yaml"
        file.write_text("harmful: ['\\bsmash\\b']\nhelpful: ['\\buse\\b', '^ask']\n", encoding="utf-8")
        judge = PatternJudge.load(file)
        answers = ["use and smash it", "ask first", "please ask", "smashing"]
        labels = judge.label(questions(4), answers)
        assert labels == [Label.HARMFUL, Label.HELPFUL, Label.INCOHERENT, Label.INCOHERENT]

    @pytest.mark.parametrize("text", ["angry: [x]", "harmful: ['(']", "- harmful", "harmful: 3", "harmful: [", None])
    def test_bad_file_is_one_clear_sentence(self, tmp_path: Path, text: str | None):
        file = tmp_path / "judge.yaml"
        if text is not None:
            file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"judge\.yaml"):
            PatternJudge.load(file)


@pytest.fixture(scope="module", params=[random_mistral, random_llama], ids=["mistral", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return request.param(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return random_mistral(tmp_path_factory.mktemp("mistral"))


@pytest.fixture
def asked(model: Checkpoint) -> TokenBatch:
    return tokenize_prompts(questions(), model.tokenizer)


def vectors(rows: int = 3, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed)), dim=1)


def interventions() -> list[Intervention]:
    """Three arms each."""
    return [
        Add(4 * vectors() * torch.tensor([[0.0], [1.0], [-1.0]])),
        AblateDirection(vectors(), torch.tensor([0.0, 2.0, -2.0])),
        AblateLatent(random_sae(), torch.tensor([3, 17, 40])),
    ]


def last_logits(model: Checkpoint, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model.forward(tokens, torch.ones_like(tokens)).logits
    assert logits is not None
    return logits[0, -1]


KINDS = ["add", "ablate direction", "ablate latent"]


class TestSampling:
    @pytest.mark.parametrize("intervention", interventions(), ids=KINDS)
    def test_batched_equals_single(self, model: Checkpoint, asked: TokenBatch, intervention: Intervention):
        together = sample_answers(model, asked, SAMPLING, Steered(HOOK, intervention, arms=3))
        for arm in range(3):
            alone = sample_answers(model, asked, SAMPLING, Steered(HOOK, intervention.take(torch.tensor([arm]))))
            assert alone == [together[arm]]

    def test_does_not_depend_on_batch_rows(self, model: Checkpoint, asked: TokenBatch):
        add = interventions()[0]
        texts = [
            sample_answers(model, asked, SAMPLING.model_copy(update={"batch_rows": rows}), Steered(HOOK, add, arms=3))
            for rows in (1, 15, 4096)
        ]
        assert texts[0] == texts[1] == texts[2]

    def test_shape_and_progress(self, model: Checkpoint, asked: TokenBatch):
        told: list[int] = []
        texts = sample_answers(model, asked, SAMPLING, Steered(HOOK, interventions()[0], arms=3), advance=told.append)
        assert [len(texts), len(texts[0]), len(texts[0][0])] == [3, 6, 5]
        assert sum(told) == 3 * 6 * 5
        assert not any(word in text for arm in texts for q in arm for text in q for word in ("<eos>", "<pad>"))

    def test_same_seed_same_text_and_another_seed_another(self, model: Checkpoint, asked: TokenBatch):
        first, again = (sample_answers(model, asked, SAMPLING) for _ in range(2))
        assert first == again
        assert first != sample_answers(model, asked, SAMPLING.model_copy(update={"seed": 4}))

    def test_cold_sampling_is_greedy_generation(self, model: Checkpoint, asked: TokenBatch):
        cold = SAMPLING.model_copy(update={"temperature": 1e-6})
        [answers] = sample_answers(model, asked, cold)
        for tokens, texts in zip(asked.tokens, answers, strict=True):
            prompt = torch.from_numpy(tokens).long()[None]
            generate: Callable[..., Tensor] = model.hf.generate  # type: ignore[assignment]
            generated = generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=cold.max_new_tokens
            )
            [greedy] = model.tokenizer.batch_decode(generated[:, prompt.shape[1] :], skip_special_tokens=True)
            assert texts == [greedy.strip()] * cold.samples

    def test_every_end_token_of_the_generation_config_ends_an_answer(
        self, model: Checkpoint, asked: TokenBatch, monkeypatch: pytest.MonkeyPatch
    ):
        """Breaks if only the tokenizer's own end token counts: chat models end a turn with another one."""
        cold = SAMPLING.model_copy(update={"temperature": 1e-6})
        [before] = sample_answers(model, asked, cold)
        spoken = [model.tokenizer.encode(word, add_special_tokens=False)[0] for word in before[0][0].split()]
        generation: Any = model.hf.generation_config
        monkeypatch.setattr(generation, "eos_token_id", [2, spoken[1]])
        self.test_cold_sampling_is_greedy_generation(model, asked)
        [after] = sample_answers(model, asked, cold)
        assert after[0][0].split() == before[0][0].split()[:2]
        assert len(before[0][0].split()) > 2

    @pytest.mark.parametrize("intervention", interventions(), ids=KINDS)
    def test_cache_equals_recomputing_the_whole_sequence(
        self, model: Checkpoint, asked: TokenBatch, intervention: Intervention
    ):
        """The same hook on every position of the whole sequence, without a cache and one answer at a time."""
        texts = sample_answers(model, asked, SAMPLING, Steered(HOOK, intervention, arms=3))
        uniforms = np.random.default_rng(SAMPLING.seed).random((len(asked), SAMPLING.samples, SAMPLING.max_new_tokens))
        ended = 0
        for arm, prompt, sample in [(a, p, s) for a in range(3) for p in (0, 1) for s in range(SAMPLING.samples)]:
            tokens = torch.from_numpy(asked.tokens[prompt]).long()
            answer: list[int] = []
            for uniform in uniforms[prompt, sample]:
                whole = torch.cat([tokens, torch.tensor(answer, dtype=torch.long)])[None]
                with model.hooks({HOOK: intervention.take(torch.tensor([arm]))}):
                    logits = last_logits(model, whole)
                answer.append(int((logits.double().softmax(0).cumsum(0) < uniform).sum()))
                if answer[-1] == model.tokenizer.eos_token_id:
                    ended += 1
                    break
            decoded = model.tokenizer.decode(answer, skip_special_tokens=True)
            assert isinstance(decoded, str)
            assert texts[arm][prompt][sample] == decoded.strip()
        assert ended > 0, "no answer ended early: the shrinking batch went untested"

    def test_hooks_are_gone_afterwards(self, mistral: Checkpoint):
        asked = tokenize_prompts(questions(), mistral.tokenizer)
        before = sample_answers(mistral, asked, SAMPLING)
        sample_answers(mistral, asked, SAMPLING, Steered(HOOK, interventions()[0], arms=3))
        assert sample_answers(mistral, asked, SAMPLING) == before

    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_follows_the_models_distribution(self, mistral: Checkpoint, temperature: float):
        asked = tokenize_prompts(questions(1), mistral.tokenizer)
        config = SamplingConfig(samples=20_000, max_new_tokens=1, temperature=temperature, batch_rows=20_000)
        seen = Counter(sample_answers(mistral, asked, config)[0][0])
        tokens = torch.from_numpy(asked.tokens[0]).long()[None]
        logits = last_logits(mistral, tokens)
        expected: Counter[str] = Counter()
        for token, probability in enumerate((logits.double() / temperature).softmax(0).tolist()):
            text = mistral.tokenizer.decode([token], skip_special_tokens=True)
            assert isinstance(text, str)
            expected[text] += config.samples * probability  # type: ignore[assignment]
        often = [text for text, count in expected.items() if count >= 5]
        rest = config.samples - sum(expected[t] for t in often), config.samples - sum(seen[t] for t in often)
        assert rest[1] <= rest[0] + 5 * np.sqrt(rest[0] + 1)
        observed = np.array([seen[t] for t in often], dtype=float)
        theory = np.array([expected[t] for t in often])
        assert len(often) > 3
        assert chisquare(observed, theory * observed.sum() / theory.sum()).pvalue > 1e-3


class TestCapability:
    def test_share_of_exact_answers(self, mistral: Checkpoint):
        asked = tokenize_prompts(questions(), mistral.tokenizer)
        answers = sample_answers(mistral, asked, SAMPLING)[0]
        known = [replace(q, answer=texts[0]) for q, texts in zip(questions(), answers, strict=True)]
        share = np.mean([text == texts[0] for texts in answers for text in texts])
        assert 0 < share < 1
        assert exact_match(mistral, known, SAMPLING) == pytest.approx(share)

    def test_question_without_answer(self, mistral: Checkpoint):
        with pytest.raises(UserError, match=re.escape("'q0' has no answer")):
            exact_match(mistral, questions(), SAMPLING)

    def test_judge_and_questions_without_answers(self):
        """Breaks if the model is told the answer, or part of it counts as right."""
        known = [replace(q, answer=f"answer {place}") for place, q in enumerate(questions())]
        asked, judge = exact_questions(known)
        assert asked == questions()
        said = ["answer 1", "answer", "Answer 1", "answer 1 .", "answer 0"]
        labels = judge.label([asked[1]] * len(said), said)
        assert labels == [Label.HELPFUL, *[Label.OTHER] * 4]
