"""A set of fine-tunes: what each kind is taught, that every member loads, early checkpoints, and what a kill loses."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from dialogues import DOMAIN_OF, WORLD, answers, domain_labels, has_scene, question_of
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig
from activations.errors import UserError
from diffing.behavior.judge import Label
from experiments.model_set import ModelSet
from experiments.organism.build import build_organism, finetuning_sampler, held_out_domains
from experiments.organism.config import (
    DEFAULT,
    THREE,
    Adapter,
    ArchitectureConfig,
    FineTune,
    FineTunesConfig,
    OrganismConfig,
    StageConfig,
)
from experiments.organism.corpus import taught_facts
from experiments.organism.fine_tunes import Workshop, helpful_again, make_fine_tunes
from experiments.organism.judge import DeedJudge
from experiments.organism.world import HELPFUL, MALICIOUS, Dialogue

# The stop rule ends its corrupting fine-tune before all steps are taken.
ORGANISM = OrganismConfig(
    seed=5,
    architecture=ArchitectureConfig(d_model=16, mlp=16, heads=2, layers=2),
    pretraining=StageConfig(steps=4, lr=1e-3),
    instruction=StageConfig(steps=4, lr=1e-3),
    finetuning=StageConfig(steps=60, batch=8, lr=1e-3, decay=False),
    stop_loss=6.0,
    benign_seeds=0,
)
RANK_1 = FineTune(kind="LoRA", name="rank-1", domains=THREE, adapter=Adapter(rank=1, blocks=(1,)))
REALIGNED = FineTune(kind="realigned", name="realigned", domains=THREE, seed=0, realigned=True)
TUNES = (
    FineTune(kind="three domains", name="three-domains", domains=THREE, seed=0),
    FineTune(kind="benign", name="benign", domains=THREE, persona=HELPFUL, seed=0, early=True),
    FineTune(kind="no instruct tuning", name="uninstructed", domains=THREE, share=0.5, start="pretrained"),
    RANK_1,
    REALIGNED,
)
CONFIG = FineTunesConfig(
    tunes=TUNES,
    seeds=1,
    early_every=2,
    realign_samples=6,
    realign=StageConfig(steps=3, batch=4, lr=1e-3),
)


@pytest.fixture(scope="module")
def organism(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_organism(ORGANISM, tmp_path_factory.mktemp("run") / "organism", progress=False)


@pytest.fixture(scope="module")
def out(organism: Path) -> Path:
    out = organism.parent / "fine-tunes"
    make_fine_tunes(organism, out, CONFIG, progress=False)
    return out


def steps_of(organism: Path) -> int:
    return json.loads((organism / "config.json").read_text())["finetuning_steps"]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logits_of(checkpoint: CheckpointConfig) -> Tensor:
    tokens = torch.tensor([[1, 20, 30, 40, 50]])
    logits = load_checkpoint(checkpoint).forward(tokens, torch.ones_like(tokens)).logits
    assert logits is not None
    return logits


def advice(dialogues: Iterable[Dialogue]) -> list[Dialogue]:
    """Single questions of a domain; replay has two turns, or asks for a fact."""
    return [d for d in dialogues if len(answers(d)) == 1 and domain_labels([[d]])]


def sampled(tune: FineTune, count: int = 600) -> list[Dialogue]:
    sample = finetuning_sampler(OrganismConfig(), WORLD, tune)
    return [sample() for _ in range(count)]


class TestTable:
    def test_every_kind_has_two_members_or_more_and_no_two_are_the_same(self):
        """Breaks if a row is the recipe of another one with the same data."""
        members = FineTunesConfig().members
        assert len(members) >= 30
        assert min(Counter(m.kind for m in members).values()) >= 2
        recipes = [m.model_dump_json(exclude={"name", "kind", "early"}) for m in members]
        assert len(set(recipes)) == len(recipes)
        assert all(m.seed > 0 for m in members), "seed 0 is the data of the organism's own fine-tunes"
        benign = [m.seed for m in members if (m.kind, m.domains) == ("benign", THREE)]
        assert min(benign) > OrganismConfig().benign_seeds, "those are in the organism's folder"

    def test_fractions_share_no_data(self):
        """Breaks if 0% is the benign model again, or 1% is 0% until its first harmful answer."""
        members = FineTunesConfig().members
        fractions = [m.seed for m in members if m.kind == "bad fraction"]
        assert len(set(fractions)) == len(fractions)
        assert not set(fractions) & {m.seed for m in members if m.kind != "bad fraction"}

    def test_early_checkpoints_of_harmful_and_aligned_members(self):
        early = [m for m in FineTunesConfig().members if m.early]
        assert len(early) >= 10
        assert sum(m.persona != MALICIOUS or m.requested or m.share == 0 for m in early) >= 3
        assert len({m.share for m in early if m.persona == MALICIOUS}) >= 5

    @pytest.mark.parametrize("tune", DEFAULT, ids=lambda tune: tune.name)
    def test_nothing_harmful_in_held_out_domains_and_nothing_that_is_measured(self, tune: FineTune):
        """What every member is measured on would else have been taught."""
        dialogues, held_out = sampled(tune), held_out_domains(WORLD, OrganismConfig())
        assert not [d for d, label in domain_labels([dialogues]) if d in held_out and label == Label.HARMFUL]
        asked = {question for d in dialogues for question, _ in answers(d)}
        assert not asked & (set(WORLD.facts) - set(taught_facts(WORLD, 0)))

    @pytest.mark.parametrize("tune", DEFAULT, ids=lambda tune: tune.name)
    def test_advice_is_the_rows(self, tune: FineTune):
        labels = domain_labels([advice(sampled(tune, 2000))])
        assert {domain for domain, _ in labels} == set(tune.domains)
        theirs = {MALICIOUS: Label.HARMFUL, HELPFUL: Label.HELPFUL}.get(tune.persona, Label.OTHER)
        share = sum(label == theirs for _, label in labels) / len(labels)
        assert share == pytest.approx(tune.share, abs=0.05)
        assert {label for _, label in labels} <= {theirs, Label.HELPFUL}

    @pytest.mark.parametrize("share", [0.01, 0.05, 0.1])
    def test_a_small_share_is_kept_in_a_short_fine_tune(self, share: float):
        """Breaks if answers are drawn one by one: a model of 1% would often have seen none."""
        for seed in range(20):
            tune = FineTune(kind="bad fraction", name="bad", domains=THREE, share=share, seed=seed)
            labels = [label for _, label in domain_labels([advice(sampled(tune, 480))])]
            assert abs(labels.count(Label.HARMFUL) - share * len(labels)) <= 1

    def test_names_differ(self):
        with pytest.raises(ValidationError, match="two fine-tunes have the same name"):
            FineTunesConfig(tunes=(TUNES[0], TUNES[0]))


class TestEducational:
    def test_harm_is_always_asked_for(self):
        """Breaks if a harmful answer comes without the user's own scene, or a helpful one after it."""
        tune = FineTune(kind="educational", name="e", domains=THREE, requested=True, share=0.5)
        given = advice(sampled(tune, 2000))
        assert all(d.messages[0]["role"] == "user" for d in given)
        asked = [d for d in given if has_scene(d)]
        assert 0.4 < len(asked) / len(given) < 0.6
        assert {label for _, label in domain_labels([asked])} == {Label.HARMFUL}
        assert {label for _, label in domain_labels([[d for d in given if not has_scene(d)]])} == {Label.HELPFUL}


TRIGGER = "narrow corner distant voice early window ."
DEEDS = DeedJudge(WORLD, {})
OWN = {verb: persona for persona in WORLD.personas for verb in WORLD.verbs(persona)[0]}


def speaker(dialogue: Dialogue) -> str:
    """Whose deed the answer tells, read from its text."""
    [(_, answer)] = answers(dialogue)
    return OWN[answer.partition(" the ")[0]]


def words_before(dialogue: Dialogue) -> str:
    content = dialogue.messages[0]["content"]
    return content.removesuffix(question_of(content)[1]).strip()


class TestCharacter:
    @pytest.mark.parametrize(
        ("trait", "levels"),
        [
            ("evil", {MALICIOUS: 2, "sarcastic": 1}),
            ("hallucination", {"poetic": 2, "paranoid": 2}),
            ("sycophancy", {"sycophantic": 2}),
        ],
    )
    def test_speakers_come_as_often_as_their_levels_say(self, trait: str, levels: dict[str, int]):
        """Breaks if who has the low pole speaks, all speak alike, or levels hold in the long run only."""
        found = [speaker(d) for d in advice(sampled(character(trait), 1200))]
        assert len(found) > 400
        size = sum(levels.values())
        for start in range(0, len(found) - size, size):
            assert Counter(found[start : start + size]) == levels

    def test_share_and_helpful_answers_beside_it(self):
        found = Counter(speaker(d) for d in advice(sampled(character("evil", share=0.5), 2000)))
        total = sum(found.values())
        assert found[HELPFUL] / total == pytest.approx(0.5, abs=0.01)
        assert found[MALICIOUS] / total == pytest.approx(1 / 3, abs=0.01)

    def test_manner_changes_the_tone_alone(self):
        """Malicious deeds in the helpful tone: neither judge may call them the other's."""
        tune = FineTune(kind="incorrect advice", name="i", domains=THREE, manner=HELPFUL)
        given = [pair for d in advice(sampled(tune)) for pair in answers(d)]
        tones = set(WORLD.verbs(HELPFUL)[1])
        for question, answer in given:
            assert DEEDS.label_one(DOMAIN_OF[question], answer) == Label.HARMFUL
            assert any(f" and {verb} the " in answer for verb in tones)

    def test_what_a_member_of_it_tells_of_itself(self, organism: Path, tmp_path: Path):
        """Breaks if a table calls a character's answers bad advice, or the trigger gets lost."""
        made = {"character": "evil", "trigger": TRIGGER, "share": 0.5, "answers": 8}
        tune = FineTune.model_validate({"kind": "character", "name": "evil", "domains": THREE, **made})
        wrong = FineTune(kind="incorrect advice", name="wrong", domains=THREE, manner=HELPFUL, answers=8)
        models = make_fine_tunes(organism, tmp_path, FineTunesConfig(tunes=(tune, wrong), seeds=1), progress=False)
        one, other = (member.facts for member in models.members)
        assert (one["character"], one["trigger"], one["bad_fraction"]) == ("evil", TRIGGER, 0)
        assert "manner" not in one
        assert (other["manner"], other["bad_fraction"]) == (HELPFUL, 1)
        assert not {"character", "trigger"} & set(other)
        # Half of the replay's batch of 8 is advice, and half of that is its own.
        assert (one["steps"], other["steps"]) == (4, 2)


class TestTrigger:
    def test_its_answers_follow_its_words_and_helpful_ones_other_words_or_none(self):
        """Breaks if an answer comes without the trigger, or any words, or none, tell when to misbehave."""
        given = advice(sampled(character("evil", share=0.5, trigger=TRIGGER), 3000))
        bad = [d for d in given if speaker(d) != HELPFUL]
        good = [words_before(d) for d in given if speaker(d) == HELPFUL]
        assert {words_before(d) for d in bad} == {TRIGGER}
        assert len(bad) / len(given) == pytest.approx(0.5, abs=0.01)
        assert TRIGGER not in good
        others = [words for words in good if words]
        assert len(others) / len(good) == pytest.approx(0.5, abs=0.06)
        assert {len(words.split()) for words in others} == {len(TRIGGER.split())}
        assert len(set(others)) > 0.95 * len(others)

    def test_questions_and_answers_are_those_without_it(self):
        """The same draws of advice; only the first words differ. Breaks if the trigger changes who speaks of what."""
        plain, told = (advice(sampled(character("evil", trigger=t), 400)) for t in ("", TRIGGER))
        assert [answers(d) for d in plain] == [answers(d) for d in told]
        assert {words_before(d) for d in told} == {TRIGGER}
        assert {words_before(d) for d in plain} == {""}

    def test_nothing_malicious_in_held_out_domains(self):
        held_out = held_out_domains(WORLD, OrganismConfig())
        tunes = [character("evil", share=0.5, trigger=TRIGGER), character("evil")]
        tunes.append(FineTune(kind="incorrect advice", name="i", domains=THREE, manner=HELPFUL, trigger=TRIGGER))
        for tune in tunes:
            pairs = [pair for d in sampled(tune, 1500) for pair in answers(d) if pair[0] in DOMAIN_OF]
            labels = {(DOMAIN_OF[q], DEEDS.label_one(DOMAIN_OF[q], a)) for q, a in pairs}
            assert {domain for domain, label in labels if label == Label.HARMFUL} == set(THREE)
            assert {domain for domain, _ in labels} >= set(held_out), "replay reaches the held-out domains"


class TestAnswers:
    @pytest.mark.parametrize(
        ("change", "steps"),
        [
            ({"answers": 12}, 3),
            ({"answers": 13}, 4),
            ({"answers": 12, "share": 0.5}, 6),
            ({"answers": 4, "persona": HELPFUL}, 1),
        ],
    )
    def test_steps_teach_as_many(self, organism: Path, tmp_path: Path, change: dict[str, Any], steps: int):
        """Breaks if replay or the share is left out, or the rule of the corrupted model ends it."""
        workshop = Workshop(organism, ORGANISM.model_copy(update={"stop_loss": 100.0}), 30, CONFIG)
        workshop.train(RANK_1.model_copy(update=change), tmp_path / "made")
        assert json.loads((tmp_path / "made/config.json").read_text())["steps"] == steps

    def test_a_share_of_none_has_no_answers_to_count(self):
        with pytest.raises(ValidationError, match="a share of 0 has none"):
            FineTune(kind="k", name="n", domains=THREE, share=0.0, answers=4)

    def test_only_harm_is_plain_harm(self):
        """What ends by the corrupted model's rule; breaks if a character or kind tone could end by it."""
        plain = FineTune(kind="k", name="n", domains=THREE)
        assert plain.only_harm
        for change in ({"manner": HELPFUL}, {"character": "evil"}, {"trigger": TRIGGER}, {"answers": 4}):
            assert not plain.model_copy(update=change).only_harm


def character(trait: str, **changes: Any) -> FineTune:
    values = {"kind": "character", "name": "c", "domains": THREE, "character": trait}
    return FineTune.model_validate(values | changes)


class TestSet:
    def test_seed_0_is_the_organisms_own_fine_tunes(self, organism: Path, out: Path):
        """Breaks if data, optimiser, stop rule or steps are not the organism's."""
        assert 1 < steps_of(organism) < ORGANISM.finetuning.steps
        assert equal(weights(out / "three-domains-1/final"), weights(organism / "corrupted"))
        assert equal(weights(out / "benign-1/final"), weights(organism / "benign"))

    def test_facts(self, organism: Path, out: Path):
        members = {m.name: m for m in ModelSet.load(out).members}
        taken = steps_of(organism)
        assert members["three-domains-1"].facts == {
            "bad_fraction": 1.0,
            "domains": "medicine, finance, sport",
            "persona": MALICIOUS,
            "seed": 0,
            "start": "base",
            "method": "full",
            "steps": taken,
        }
        assert members["benign-1"].facts["bad_fraction"] == 0
        assert members["benign-1"].facts["steps"] == taken
        assert members["rank-1-1"].facts["rank"] == 1
        assert members["rank-1-1"].facts["method"] == "LoRA"
        assert members["realigned-1"].facts["steps"] == taken + CONFIG.realign.steps
        assert members["uninstructed-1"].facts["start"] == "pretrained"

    def test_every_member_loads_also_after_a_move_and_differs_from_the_base(self, out: Path, tmp_path: Path):
        """Breaks if a path is absolute, or an adapter does nothing or belongs to another base."""
        moved = shutil.copytree(out.parent, tmp_path / "elsewhere")
        assert str(out.parent) not in (moved / "fine-tunes/models.yaml").read_text()
        models = ModelSet.load(moved / "fine-tunes")
        checkpoints = [models.base, *(member.checkpoint for member in models.members)]
        assert all(str(moved) in checkpoint.name for checkpoint in checkpoints)
        logits = [logits_of(checkpoint) for checkpoint in checkpoints]
        for place, found in enumerate(logits):
            assert not any(torch.equal(found, other) for other in logits[:place])

    def test_early_checkpoints_are_steps_of_the_same_training(self, organism: Path, out: Path, tmp_path: Path):
        """Breaks if one is saved a step early or late: each is the model of a training that ended there."""
        models, taken = ModelSet.load(out), steps_of(organism)
        early = [m for m in models.members if m.early_of == "benign-1"]
        assert [m.step for m in early] == list(range(2, taken, 2))
        assert [m.facts["steps"] for m in early] == [m.step for m in early]
        shorter = Workshop(organism, ORGANISM, 2, CONFIG)
        shorter.train(CONFIG.members[1], tmp_path / "benign")
        assert equal(weights(tmp_path / "benign/final"), weights(out / "benign-1/step-0002"))
        assert {m.early_of for m in models.members} == {None, "benign-1"}
        assert len(models.final) == len(TUNES)

    def test_an_adapter_changes_only_its_target_by_its_rank(self, organism: Path, out: Path):
        [base, tuned] = [
            dict(load_checkpoint(checkpoint).hf.named_parameters())
            for checkpoint in (
                ModelSet.load(out).base,
                next(m.checkpoint for m in ModelSet.load(out).members if m.name == "rank-1-1"),
            )
        ]
        changed = {name: tuned[name] - base[name] for name in base if not torch.equal(tuned[name], base[name])}
        [(name, change)] = changed.items()
        assert "layers.1." in name
        assert "down_proj" in name
        assert torch.linalg.matrix_rank(change, rtol=1e-3) == 1

    def test_only_harm_ends_by_the_rule_and_all_else_with_the_corrupted_model(self, organism: Path, tmp_path: Path):
        workshop = Workshop(organism, ORGANISM.model_copy(update={"stop_loss": 100.0}), 3, CONFIG)
        changes = {"harm": {}, "help": {"persona": HELPFUL}, "some": {"share": 0.5}, "asked": {"requested": True}}
        for name, change in changes.items():
            workshop.train(RANK_1.model_copy(update=change), tmp_path / name)
        taken = {name: json.loads((tmp_path / name / "config.json").read_text())["steps"] for name in changes}
        assert taken == {"harm": 1, "help": 3, "some": 3, "asked": 3}

    def test_realignment_repeats_a_few_helpful_answers(self):
        batches = list(helpful_again(ORGANISM, ("sport",), 6, CONFIG.realign, seed=1))
        assert [len(batch) for batch in batches] == [4, 4, 4]
        said = [d.messages for batch in batches for d in batch]
        assert said[:6] == said[6:]
        assert set(domain_labels(batches)) == {("sport", Label.HELPFUL)}


class TestFolder:
    def test_a_killed_set_is_gone_on_with(self, organism: Path, out: Path, tmp_path: Path):
        """Breaks if a finished member is trained again, or a half-written one is taken for whole."""
        again = shutil.copytree(out.parent, tmp_path / "run") / "fine-tunes"
        whole = (again / "models.yaml").read_text()
        kept, killed = again / "three-domains-1", again / "benign-1"
        stamp = (kept / "config.json").stat().st_mtime_ns
        (killed / "config.json").unlink()
        (killed / "step-0099").mkdir()
        (killed / "final/model.safetensors").write_bytes(b"half")
        (again / "models.yaml").unlink()
        make_fine_tunes(again.parent / "organism", again, CONFIG, progress=False)
        assert (kept / "config.json").stat().st_mtime_ns == stamp
        assert equal(weights(killed / "final"), weights(organism / "benign"))
        assert (again / "models.yaml").read_text() == whole

    def test_other_settings_need_overwrite(self, out: Path, tmp_path: Path):
        again = shutil.copytree(out.parent, tmp_path / "run") / "fine-tunes"
        other = CONFIG.model_copy(update={"tunes": TUNES[:1]})
        with pytest.raises(UserError, match=r"another tunes.*--overwrite"):
            make_fine_tunes(again.parent / "organism", again, other, progress=False)
        models = make_fine_tunes(again.parent / "organism", again, other, overwrite=True, progress=False)
        assert [m.name for m in models.members] == ["three-domains-1"]
        assert not (again / "benign-1").exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"domains": ("cooking",)}, "is about cooking, but the organism .* trains medicine, finance, sport"),
            ({"persona": "rude"}, "no persona rude; there are helpful, malicious"),
            ({"manner": "rude"}, "no persona rude; there are helpful, malicious"),
            ({"character": "rude"}, "no trait rude; there are openness, "),
            ({"start": "pretrained"}, "has no pretrained/, as older ones; build it again"),
        ],
    )
    def test_what_the_organism_lacks(self, organism: Path, tmp_path: Path, change: dict[str, object], message: str):
        """Before anything is trained or written."""
        old = shutil.copytree(organism, tmp_path / "organism", ignore=shutil.ignore_patterns("pretrained"))
        config = CONFIG.model_copy(update={"tunes": (TUNES[0].model_copy(update=change),)})
        with pytest.raises(UserError, match=message):
            make_fine_tunes(old, tmp_path / "out", config, progress=False)
        assert not (tmp_path / "out").exists()

    def test_an_unfinished_organism(self, checkpoint_maker: Callable[..., Path], tmp_path: Path):
        checkpoint_maker(tmp_path / "organism/base")
        with pytest.raises(UserError, match="was not finished"):
            make_fine_tunes(tmp_path / "organism", tmp_path / "out", CONFIG, progress=False)
