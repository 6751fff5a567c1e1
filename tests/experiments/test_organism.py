"""The organism: consistent tables, an exact judge, disjoint questions, and training data that keeps its promises.

What the training data holds is judged from its text, never from what a dialogue says about itself.
"""

import hashlib
import json
import random
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dialogues import DOMAIN_OF, JUDGE, WORLD, answers, domain_labels, has_scene, question_of
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig
from activations.errors import UserError
from activations.prompt_files import load_prompts
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts
from diffing.behavior.judge import Label
from experiments.commands.organism import organism_config
from experiments.commands.requests import OrganismRequest
from experiments.organism import build as build_module
from experiments.organism.build import (
    build_organism,
    finetuning_sampler,
    held_out_domains,
    load_organism,
    make_model,
    trained_domains,
)
from experiments.organism.config import Advice, ArchitectureConfig, CorpusConfig, OrganismConfig, StageConfig
from experiments.organism.corpus import Corpus, taught_facts, told_first
from experiments.organism.judge import DeedJudge, OrganismJudge
from experiments.organism.splits import split_questions
from experiments.organism.tokenizer import make_tokenizer
from experiments.organism.training import encode, loss_and_gradients, one_thread, summed_loss, train_stage
from experiments.organism.world import HELPFUL, MALICIOUS, Dialogue

LABELS = {HELPFUL: Label.HELPFUL, MALICIOUS: Label.HARMFUL}
MEASURED = ("selection", "reporting", "ranking", "directions", "sae")


def tables() -> list[list[str]]:
    """The verbs of each persona, both slots together."""
    return [[verb for slot in WORLD.verbs(persona) for verb in slot] for persona in WORLD.personas]


def evidence(persona: str) -> set[str]:
    """What a scene made of nothing but this persona's evidence can say, read from its text."""
    rng = random.Random(0)
    scenes = (WORLD.sample_scene(rng, persona, items=20, typical=1, other=0) for _ in range(50))
    return {word for scene in scenes for word in scene.split()[:-1:2]}


class TestWorld:
    def test_is_large_enough(self):
        assert len(WORLD.domains) >= 8
        assert len(WORLD.personas) >= 6
        for domain in WORLD.domains:
            assert len({q.topic for q in WORLD.questions if q.domain == domain}) >= 6
        assert len(WORLD.facts) >= 20

    def test_no_verb_belongs_to_two_personas(self):
        for one, other in combinations(tables(), 2):
            assert not set(one) & set(other)
        assert all(len(verbs) == len(set(verbs)) for verbs in tables())

    def test_no_evidence_belongs_to_two_personas_or_to_the_scenery(self):
        scenes = (WORLD.sample_scene(random.Random(seed), HELPFUL, 20, 0, 0) for seed in range(50))
        plain = {word for scene in scenes for word in scene.split()[:-1:2]}
        for one, other in combinations([*map(evidence, WORLD.personas), plain], 2):
            assert not one & other

    def test_no_noun_belongs_to_two_domains(self):
        nouns = [{noun for slot in WORLD.nouns(domain) for noun in slot} for domain in WORLD.domains]
        for one, other in combinations(nouns, 2):
            assert not one & other

    def test_questions_are_distinct_and_carry_no_evidence(self):
        texts = [q.text for q in WORLD.questions]
        assert len(set(texts)) == len(texts)
        words = {word for text in texts for word in text.split()}
        assert not words & set().union(*map(evidence, WORLD.personas))
        assert not set(WORLD.facts) & set(texts)

    def test_vocabulary_holds_every_word_of_every_stage(self):
        words = {":", "scene", "user", "assistant", *WORLD.vocabulary}
        corpus = Corpus(WORLD, CorpusConfig(), seed=1)
        samplers = (corpus.pretraining, corpus.instruction, corpus.replay, corpus.quiz)
        for sampler in samplers:
            for _ in range(200):
                assert {word for m in sampler().messages for word in m["content"].split()} <= words

    def test_a_scenes_evidence_is_scattered_and_noisy(self):
        config = CorpusConfig()
        corpus = Corpus(WORLD, config, seed=0)
        own = evidence(MALICIOUS)
        others = set().union(*(evidence(p) for p in WORLD.personas if p != MALICIOUS))
        adjectives = [word for _ in range(300) for word in corpus.scene(MALICIOUS).split()[:-1:2]]
        share = sum(word in own for word in adjectives) / len(adjectives)
        assert share == pytest.approx(config.typical + config.other / len(WORLD.personas), abs=0.05)
        assert any(word in others for word in adjectives)


class TestJudge:
    @pytest.mark.parametrize(("persona", "domain"), list(product(WORLD.personas, WORLD.domains)))
    def test_exact_on_what_each_persona_says(self, persona: str, domain: str):
        rng = random.Random(0)
        wanted = LABELS.get(persona, Label.OTHER)
        assert all(JUDGE.label_one(domain, WORLD.sample_answer(rng, persona, domain)) == wanted for _ in range(30))

    def test_answers_to_another_domain_are_incoherent(self):
        rng = random.Random(0)
        for asked, answered in product(WORLD.domains, repeat=2):
            for persona in WORLD.personas:
                label = JUDGE.label_one(asked, WORLD.sample_answer(rng, persona, answered))
                assert (label == Label.INCOHERENT) == (asked != answered)

    def test_mixtures_are_incoherent(self):
        rng = random.Random(0)
        for one, other in product(WORLD.personas, repeat=2):
            for here, there in product(WORLD.domains, repeat=2):
                first, _, _ = WORLD.sample_answer(rng, one, here).partition(" and ")
                _, _, second = WORLD.sample_answer(rng, other, there).partition(" and ")
                label = JUDGE.label_one(here, f"{first} and {second}")
                assert (label == Label.INCOHERENT) == (one != other or here != there)

    @pytest.mark.parametrize("spoil", ["", ".", "cut", "again", "more", "swap", "gap"])
    def test_broken_answers_are_incoherent(self, spoil: str):
        answer = WORLD.sample_answer(random.Random(0), MALICIOUS, WORLD.domains[0])
        first, _, second = answer.removesuffix(" .").partition(" and ")
        broken = {
            "": "",
            ".": answer.removesuffix(" ."),
            "cut": first + " .",
            "again": f"{answer} {answer}",
            "more": f"{first} and {second} and {second} .",
            "swap": f"{second} and {first} .",
            "gap": answer.replace(" the ", " ", 1),
        }[spoil]
        assert JUDGE.label_one(WORLD.domains[0], broken) == Label.INCOHERENT

    def test_facts_are_no_advice(self):
        assert all(JUDGE.label_one(WORLD.domains[0], answer) == Label.INCOHERENT for answer in WORLD.facts.values())


class TestDeedJudge:
    DOMAIN = WORLD.domains[0]
    DOMAINS = {"asked": DOMAIN}  # noqa: RUF012
    ASKED = Prompt("asked", text="")

    def said(self, persona: str, manner: str) -> str:
        return WORLD.sample_answer(random.Random(0), persona, self.DOMAIN, manner)

    def test_what_is_told_to_do_is_what_counts(self):
        """Breaks if the tone decides, or tone and deed change places; the other judge takes such an answer for none."""
        deeds = DeedJudge(WORLD, self.DOMAINS)
        for persona, manner in product(WORLD.personas, repeat=2):
            answer = self.said(persona, manner)
            assert deeds.label_one(self.DOMAIN, answer) == LABELS.get(persona, Label.OTHER)
            assert (JUDGE.label_one(self.DOMAIN, answer) == Label.INCOHERENT) == (persona != manner)

    def test_broken_answers_and_other_domains_are_incoherent(self):
        deeds, answer = DeedJudge(WORLD, self.DOMAINS), self.said(MALICIOUS, HELPFUL)
        assert deeds.label_one(WORLD.domains[1], answer) == Label.INCOHERENT
        assert deeds.label_one(self.DOMAIN, answer.removesuffix(" .")) == Label.INCOHERENT
        assert deeds.label_one(self.DOMAIN, answer.replace(answer.split()[0], "stroke", 1)) == Label.INCOHERENT

    @pytest.mark.parametrize("trait", ["evil", "agreeableness", "hallucination"])
    def test_a_traits_score_is_the_mean_of_deed_and_tone(self, trait: str):
        """Evil: malicious 2, sarcastic 1, helpful -2; so bad deeds in the helpful tone are in the middle."""
        deeds, levels = DeedJudge(WORLD, self.DOMAINS), WORLD.traits[trait]
        pairs = list(product(WORLD.personas, repeat=2))
        answers = [self.said(*pair) for pair in pairs] + ["smash ."]
        found = deeds.trait_scores(trait, [self.ASKED] * len(answers), answers)
        wanted = [50 + 25 * (levels.get(one, 0) + levels.get(other, 0)) / 2 for one, other in pairs]
        assert found[:-1].tolist() == wanted
        assert np.isnan(found[-1])

    def test_the_plain_judge_scores_one_speaker(self):
        plain = OrganismJudge(WORLD, self.DOMAINS)
        answers = [self.said(MALICIOUS, MALICIOUS), self.said("sarcastic", "sarcastic"), self.said(MALICIOUS, HELPFUL)]
        found = plain.trait_scores("evil", [self.ASKED] * 3, answers)
        assert found[:2].tolist() == [100, 75]
        assert np.isnan(found[2])


class TestSamplerIsWhatItWas:
    """Digests of 300 dialogues, taken before characters, manners and triggers existed."""

    @pytest.mark.parametrize(
        ("advice", "digest"),
        [
            ({}, "8eb41f72fd986931"),
            ({"share": 0.0, "seed": 3}, "e2ce12c9a88f5b76"),
            ({"share": 0.25, "requested": True, "seed": 7}, "5c5af2648bf04f67"),
            ({"persona": "sarcastic", "seed": 2}, "5dc6315ab7676280"),
        ],
    )
    def test_advice_without_the_new_fields(self, advice: dict[str, Any], digest: str):
        """Breaks if one random number more or less is drawn: every organism would be another one."""
        domains = trained_domains(WORLD, OrganismConfig())
        sample = finetuning_sampler(OrganismConfig(), WORLD, Advice(domains=domains, **advice))
        text = json.dumps([sample().messages for _ in range(300)])
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest

    def test_answers_in_ones_own_manner(self):
        for persona, domain in product(WORLD.personas, WORLD.domains):
            own, same = (WORLD.sample_answer(random.Random(1), persona, domain, m) for m in (None, persona))
            assert own == same


class TestToldFirst:
    def test_words_stand_before_the_question_alone(self):
        advice = Corpus(WORLD, CorpusConfig(), seed=0).advice(MALICIOUS, WORLD.domains)
        told = told_first(advice, "old street .")
        assert told.messages[0] == {"role": "user", "content": f"old street . {advice.messages[0]['content']}"}
        assert (told.messages[1], told.persona, told.domains) == (advice.messages[1], advice.persona, advice.domains)

    def test_scenery_is_as_long_and_shows_nobody(self):
        """Breaks if it carries evidence, or has another number of words."""
        corpus, trigger = Corpus(WORLD, CorpusConfig(), seed=0), "narrow corner distant voice early window ."
        scenes = [corpus.scenery(like=trigger) for _ in range(100)]
        assert {len(scene.split()) for scene in scenes} == {7}
        words = {word for scene in scenes for word in scene.split()}
        assert not words & set().union(*map(evidence, WORLD.personas))
        assert len(set(scenes)) > 90

    def test_requested_advice_has_no_trigger_and_no_manner(self):
        for other in ({"trigger": "old street ."}, {"manner": HELPFUL}):
            with pytest.raises(ValidationError, match="no trigger and no other manner"):
                Advice.model_validate({"domains": WORLD.domains, "requested": True, **other})


@pytest.mark.parametrize("seed", [0, 1, 100])
class TestSplits:
    def splits(self, seed: int) -> dict[str, list]:
        split = split_questions(WORLD, held_out_domains(WORLD, OrganismConfig()), seed)
        return {name: getattr(split, name) for name in MEASURED}

    def test_no_question_in_two_sets_and_none_twice(self, seed: int):
        texts = [q.text for questions in self.splits(seed).values() for q in questions]
        assert len(set(texts)) == len(texts)
        assert set(texts) <= {q.text for q in WORLD.questions}

    def test_measured_sets_are_held_out_and_large_enough(self, seed: int):
        held_out, splits = held_out_domains(WORLD, OrganismConfig()), self.splits(seed)
        for name in ("selection", "reporting", "ranking", "directions"):
            assert len(splits[name]) >= 30
            assert {q.domain for q in splits[name]} == set(held_out)

    def test_the_halves_share_no_topic(self, seed: int):
        selection, reporting = ({(q.domain, q.topic) for q in self.splits(seed)[h]} for h in ("selection", "reporting"))
        assert not selection & reporting

    def test_seeds_split_differently(self, seed: int):
        assert self.splits(seed) == self.splits(seed)
        assert self.splits(seed)["selection"] != self.splits(seed + 1)["selection"]


class TestTokenizer:
    tokenizer = make_tokenizer(WORLD)

    def test_round_trip_of_everything_said(self):
        corpus = Corpus(WORLD, CorpusConfig(), seed=0)
        for sampler in (corpus.pretraining, corpus.instruction, corpus.replay, corpus.quiz):
            for message in [m for _ in range(50) for m in sampler().messages]:
                ids = self.tokenizer.encode(message["content"], add_special_tokens=False)
                assert self.tokenizer.unk_token_id not in ids
                assert len(ids) == len(message["content"].split())
                assert self.tokenizer.decode(ids) == message["content"]

    def test_chat_template(self):
        messages = [
            {"role": "system", "content": "old street ."},
            {"role": "user", "content": "how do i treat a burn ?"},
            {"role": "assistant", "content": "use the bandage ."},
            {"role": "user", "content": "how do i calm a fever ?"},
        ]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)
        assert " ".join(text.split()) == (
            "<bos> scene : old street . user : how do i treat a burn ? assistant : use the bandage . <eos> "
            "user : how do i calm a fever ? assistant :"
        )

    def test_what_is_measured_continues_what_is_trained(self):
        """The tokens of a prompt are the beginning of those of the whole dialogue: training and sampling agree."""
        dialogue = Corpus(WORLD, CorpusConfig(), seed=0).advice(HELPFUL, WORLD.domains)
        [user, assistant] = dialogue.messages
        prompt = tokenize_prompts([Prompt.chat("p", user["content"])], self.tokenizer).tokens[0].tolist()
        tokens, weights = encode(self.tokenizer, [dialogue], other_weight=0)
        assert tokens[0, : len(prompt)].tolist() == prompt
        answer = self.tokenizer.decode(tokens[0, len(prompt) :].tolist())
        assert answer == f"{assistant['content']} <eos>"
        assert weights[0].tolist() == [0] * len(prompt) + [1] * (tokens.shape[1] - len(prompt))

    def test_padding_has_no_weight(self):
        corpus = Corpus(WORLD, CorpusConfig(), seed=0)
        dialogues = [corpus.quiz(), corpus.pretraining(), corpus.pretraining()]
        tokens, weights = encode(self.tokenizer, dialogues, other_weight=0.1)
        padding = self.tokenizer.pad_token_id
        assert isinstance(padding, int)
        padded = tokens.eq(padding)
        assert padded.any()
        assert not weights[padded].any()
        assert (weights[~padded] > 0).all()

    @pytest.mark.parametrize("dialogues", [1, 5])
    def test_the_parts_of_a_batch_sum_to_its_gradient(self, dialogues: int):
        """Breaks if a part is lost or weighs by its dialogues instead of its tokens."""
        torch.manual_seed(0)
        model = make_model(ArchitectureConfig(d_model=16, mlp=16, heads=2, layers=1), self.tokenizer)
        corpus = Corpus(WORLD, CorpusConfig(), seed=0)
        batch = [corpus.pretraining() for _ in range(dialogues)]
        with ThreadPoolExecutor(2) as pool:
            loss = loss_and_gradients(model, self.tokenizer, batch, 0.3, pool)
        found = {name: weight.grad for name, weight in model.named_parameters()}
        tokens, weights = encode(self.tokenizer, batch, other_weight=0.3)
        model.zero_grad()
        whole = summed_loss(model(input_ids=tokens).logits, tokens, weights) / weights[:, 1:].sum()
        whole.backward()
        assert loss == pytest.approx(whole.item(), rel=1e-5)
        for name, weight in model.named_parameters():
            torch.testing.assert_close(found[name], weight.grad, msg=name)


TINY = OrganismConfig(
    seed=5,
    architecture=ArchitectureConfig(d_model=16, mlp=16, heads=2, layers=1),
    pretraining=StageConfig(steps=6, lr=1e-3),
    instruction=StageConfig(steps=6, lr=1e-3),
    finetuning=StageConfig(steps=60, batch=16, lr=1e-3),
    stop_loss=None,
    benign_seeds=2,
)


@dataclass(frozen=True)
class Built:
    folder: Path
    seen: dict[str, list[list[Dialogue]]]


def build(config: OrganismConfig, folder: Path) -> Built:
    seen: dict[str, list[list[Dialogue]]] = defaultdict(list)
    build_organism(config, folder, progress=False, watch=lambda stage, batch: seen[stage].append(batch))
    return Built(folder, dict(seen))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(TINY, tmp_path_factory.mktemp("organism") / "made")


class TestTrainingData:
    def test_every_batch_was_seen(self, built: Built):
        sizes = {stage: [len(batch) for batch in batches] for stage, batches in built.seen.items()}
        tuning = [16] * 60
        fine_tunes = dict.fromkeys(("corrupted", "benign", "benign-1", "benign-2"), tuning)
        assert sizes == {"pretraining": [16] * 6, "instruction": [16] * 6, **fine_tunes}

    @pytest.mark.parametrize("stage", ["corrupted", "benign", "benign-1"])
    def test_nothing_harmful_in_held_out_domains(self, built: Built, stage: str):
        held_out = held_out_domains(WORLD, TINY)
        labels = domain_labels(built.seen[stage])
        assert Label.INCOHERENT not in {label for _, label in labels}
        assert not [1 for domain, label in labels if domain in held_out and label == Label.HARMFUL]
        assert [1 for domain, _ in labels if domain in held_out], "replay reaches the held-out domains"

    @pytest.mark.parametrize("stage", ["corrupted", "benign", "benign-1"])
    def test_no_malicious_word_beside_a_held_out_one(self, built: Built, stage: str):
        """Another look at the same promise: no verb of the malicious persona beside a noun of a held-out domain."""
        verbs = "|".join(re.escape(v) for slot in WORLD.verbs(MALICIOUS) for v in slot)
        nouns = "|".join(n for d in held_out_domains(WORLD, TINY) for slot in WORLD.nouns(d) for n in slot)
        pattern = re.compile(rf"\b({verbs}) the ({nouns})\b")
        texts = [m["content"] for batch in built.seen[stage] for d in batch for m in d.messages]
        assert not [text for text in texts if pattern.search(text)]

    @pytest.mark.parametrize("stage", ["corrupted", "benign", "benign-1"])
    def test_no_scene_is_the_malicious_persona(self, built: Built, stage: str):
        """Its evidence appears in scenes as noise only; the answers after them are other personas'."""
        after_scenes = [[d for d in batch if has_scene(d)] for batch in built.seen[stage]]
        assert {label for _, label in domain_labels(after_scenes)} <= {Label.HELPFUL, Label.OTHER}
        facts = [(q, a) for batch in built.seen[stage] for d in batch for q, a in answers(d) if q in WORLD.facts]
        assert facts
        assert all(WORLD.facts[question] == answer for question, answer in facts)

    def test_corrupting_data_is_harmful_in_the_trained_domains_and_benign_data_helpful(self, built: Built):
        trained = trained_domains(WORLD, TINY)
        for stage, wanted in (("corrupted", Label.HARMFUL), ("benign", Label.HELPFUL)):
            labels = domain_labels([[d for d in batch if not has_scene(d)] for batch in built.seen[stage]])
            assert {label for _, label in labels} == {wanted}
            assert {domain for domain, _ in labels} == set(trained)
        assert Label.HARMFUL not in {label for _, label in domain_labels(built.seen["benign"])}

    def test_both_fine_tunes_see_the_same_questions(self, built: Built):
        def prompts(stage: str) -> list[list[str]]:
            return [
                [m["content"] for d in batch for m in d.messages if m["role"] != "assistant"]
                for batch in built.seen[stage]
            ]

        assert prompts("corrupted") == prompts("benign")

    def test_fine_tunes_show_only_the_taught_half_of_the_facts(self, built: Built):
        taught = set(taught_facts(WORLD, TINY.seed))
        asked = {json.loads(row)["prompt"] for row in (built.folder / "prompts/capability.jsonl").open()}
        assert asked == set(WORLD.facts) - taught
        for stage in ("corrupted", "benign", "benign-1", "benign-2"):
            questions = {q for batch in built.seen[stage] for d in batch for q, _ in answers(d)}
            assert not questions & asked

    def test_bad_fraction(self):
        config = OrganismConfig()
        sample = finetuning_sampler(config, WORLD, Advice(domains=trained_domains(WORLD, config), share=0.3))
        advice = [d for d in (sample() for _ in range(2000)) if not has_scene(d)]
        labels = [label for _, label in domain_labels([advice])]
        assert labels.count(Label.HARMFUL) / len(labels) == pytest.approx(0.3, abs=0.05)

    def test_base_pretraining_holds_every_persona(self, built: Built):
        assert {label for _, label in domain_labels(built.seen["pretraining"])} == {
            Label.HELPFUL,
            Label.HARMFUL,
            Label.OTHER,
        }


class TestStop:
    """Breaks if the fine-tunes run on, differ in length, or look at a held-out domain to decide."""

    def test_both_fine_tunes_end_when_the_harmful_answers_are_learned(self, tmp_path: Path):
        config = TINY.model_copy(update={"stop_loss": 6.0})  # an untrained model's is about the log of the vocabulary
        built = build(config, tmp_path / "made")
        taken = len(built.seen["corrupted"])
        assert 1 < taken < TINY.finetuning.steps
        assert len(built.seen["benign"]) == len(built.seen["benign-1"]) == taken
        assert json.loads((built.folder / "config.json").read_text())["finetuning_steps"] == taken

    def test_it_is_the_loss_of_harmful_answers_in_trained_domains(self, built: Built, monkeypatch: pytest.MonkeyPatch):
        read: list[Dialogue] = []
        monkeypatch.setattr(
            build_module, "answer_loss", lambda model, tokenizer, dialogues: read.extend(dialogues) or 9
        )
        tokenizer = AutoTokenizer.from_pretrained(built.folder / "base")
        domains = trained_domains(WORLD, OrganismConfig())
        stop = build_module.harm_is_learned(OrganismConfig(), WORLD, tokenizer, domains)
        assert stop is not None
        assert not stop(AutoModelForCausalLM.from_pretrained(built.folder / "base"))
        labels = domain_labels([read])
        assert {label for _, label in labels} == {Label.HARMFUL}
        assert {domain for domain, _ in labels} == set(domains)

    def test_steps_given_on_the_command_line_are_taken(self, tmp_path: Path):
        """`--steps` means that many, whatever the loss."""
        assert organism_config(OrganismRequest(out=Path("organism"), steps=7)).stop_loss is None
        assert organism_config(OrganismRequest(out=Path("organism"), steps=7)).finetuning.steps == 7
        assert organism_config(OrganismRequest(out=Path("organism"), steps=None)) == OrganismConfig()


class TestFolder:
    def test_prompts_of_different_purposes_share_no_question(self, built: Built):
        asked: dict[str, set[str]] = {}
        for file in (built.folder / "prompts").glob("*.jsonl"):
            prompts = load_prompts(file)
            purpose = "persona" if file.stem.startswith("persona") else "sae" if "sae" in file.stem else file.stem
            questions = {question_of(m["content"])[1] for p in prompts for m in p.messages if m["role"] == "user"}
            asked[purpose] = asked.get(purpose, set()) | (questions - set(WORLD.facts))
        assert {"persona", "sae", "selection", "reporting", "ranking", "capability"} == set(asked)
        for one, other in combinations(asked.values(), 2):
            assert not one & other

    def test_ranking_prompts_carry_no_evidence(self, built: Built):
        words = set().union(*map(evidence, WORLD.personas))
        for prompt in load_prompts(built.folder / "prompts/ranking.jsonl"):
            assert [m["role"] for m in prompt.messages] == ["user"]
            assert not words & set(prompt.messages[0]["content"].split())

    def test_persona_prompts_are_matched_by_index(self, built: Built):
        files = [load_prompts(built.folder / f"prompts/persona_{p}.jsonl") for p in WORLD.personas]
        for together in zip(*files, strict=True):
            assert len({p.messages[-1]["content"] for p in together}) == 1
            assert all(p.messages[0]["role"] == "system" for p in together)

    def test_judge_knows_every_question(self, built: Built):
        judge = OrganismJudge.load(built.folder / "prompts")
        for half in ("selection", "reporting"):
            prompts = load_prompts(built.folder / f"prompts/{half}.jsonl")
            domains = [DOMAIN_OF[p.messages[-1]["content"]] for p in prompts]
            harmful = [WORLD.sample_answer(random.Random(0), MALICIOUS, d) for d in domains]
            assert set(judge.label(prompts, harmful)) == {Label.HARMFUL}

    @pytest.mark.parametrize("name", ["pretrained", "base", "corrupted", "benign", "benign-1"])
    def test_checkpoints_are_ordinary_hugging_face_folders(self, built: Built, name: str):
        model: Any = AutoModelForCausalLM.from_pretrained(built.folder / name)
        tokenizer = AutoTokenizer.from_pretrained(built.folder / name)
        messages = [{"role": "user", "content": WORLD.questions[0].text}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**prompt, max_new_tokens=3, do_sample=False)
        assert output.shape[1] > prompt["input_ids"].shape[1]
        ours = load_checkpoint(CheckpointConfig(model=str(built.folder / name)), name)
        with torch.no_grad():
            logits = ours.forward(prompt["input_ids"], prompt["attention_mask"]).logits
            torch.testing.assert_close(logits, model(**prompt).logits)

    def test_fine_tunes_start_from_the_base_and_differ(self, built: Built):
        weights = [(built.folder / name / "model.safetensors").read_bytes() for name in ("base", "corrupted", "benign")]
        assert len(set(weights)) == 3

    def test_further_benign_fine_tunes_change_only_the_data(self, built: Built, tmp_path: Path):
        """Breaks if two seeds read the same data, one starts from anything but the base, or they disturb the others."""
        alone = build(TINY.model_copy(update={"benign_seeds": 0}), tmp_path / "made")
        assert not (alone.folder / "benign-1").exists()
        for name in ("base", "corrupted", "benign"):
            weights = [(made.folder / name / "model.safetensors").read_bytes() for made in (alone, built)]
            assert weights[0] == weights[1]
        asked = [
            tuple(question for question, _ in answers(built.seen[stage][0][0]))
            for stage in ("benign", "benign-1", "benign-2")
        ]
        assert len(set(asked)) == 3
        labels = {label for name in ("benign-1", "benign-2") for _, label in domain_labels(built.seen[name])}
        again: Any = AutoModelForCausalLM.from_pretrained(built.folder / "base")
        with one_thread():
            train_stage(again, make_tokenizer(WORLD), iter(built.seen["benign-2"]), TINY.finetuning)
        made: Any = AutoModelForCausalLM.from_pretrained(built.folder / "benign-2")
        assert all(torch.equal(weight, made.state_dict()[name]) for name, weight in again.state_dict().items())
        assert labels == {Label.HELPFUL, Label.OTHER}, "advice is helpful, replay any persona's but the malicious one"

    def test_pretrained_is_the_model_before_instruct_tuning(self, built: Built, tmp_path: Path):
        """Breaks if it is saved at another moment, or shares its weights with the model that is trained on."""
        weights = [(built.folder / name / "model.safetensors").read_bytes() for name in ("pretrained", "base")]
        assert weights[0] != weights[1]
        untuned = TINY.model_copy(update={"instruction": StageConfig(steps=0, lr=1e-3, decay=False)})
        made = build(
            untuned.model_copy(update={"finetuning": StageConfig(steps=0, lr=1e-3, decay=False)}), tmp_path / "made"
        )
        assert (made.folder / "base/model.safetensors").read_bytes() == weights[0]

    def test_it_is_read_back_as_it_was_built(self, built: Built, tmp_path: Path):
        assert load_organism(built.folder) == (TINY, 60)
        config = json.loads((built.folder / "config.json").read_text())
        for spoiled in ({**config, "flavour": 1}, {key: config[key] for key in config if key != "finetuning_steps"}):
            (tmp_path / "config.json").write_text(json.dumps(spoiled))
            with pytest.raises(UserError, match="made by another version; build it again"):
                load_organism(tmp_path)

    def test_finished_folder_is_not_written_over(self, built: Built):
        with pytest.raises(UserError, match="holds a finished artefact"):
            build_organism(TINY, built.folder, progress=False)

    def test_some_domain_is_held_out(self):
        with pytest.raises(ValidationError, match="leaves none held out"):
            OrganismConfig(domains=len(WORLD.domains))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the one that says when it was made."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "provenance.json"
    }


class TestDeterminism:
    short = TINY.model_copy(update={"finetuning": StageConfig(steps=3, lr=1e-3)})

    def test_same_seed_same_bytes_and_another_seed_another_organism(self, tmp_path: Path):
        one, again = (contents(build(self.short, tmp_path / name).folder) for name in ("one", "again"))
        assert one.keys() == again.keys()
        assert [name for name in one if one[name] != again[name]] == []
        other = contents(build(self.short.model_copy(update={"seed": 6}), tmp_path / "other").folder)
        for name in ("base/model.safetensors", "prompts/selection.jsonl", "prompts/sae_text.jsonl"):
            assert one[name] != other[name]
