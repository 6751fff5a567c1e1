"""Tiny real models whose directions of traits are planted, a file of these traits, and a run of the models."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from planted_models import BAD, GOOD, TEXT, WIDTH, write_run
from silent_model import silent_model

from activations.artefact import read_json, write_json
from activations.config import CheckpointConfig
from experiments.frame.conduct import conduct
from experiments.frame.experiment import Result
from experiments.frame.inputs import Inputs, Options
from experiments.model_set import Member, ModelSet
from experiments.output.run_folder import Log
from experiments.trait_directions.config import TraitDirectionsConfig
from experiments.trait_directions.experiment import EXPERIMENT

VALENCE = {"calm": "prosocial", "kind": "prosocial", "evil": "antisocial", "rude": "antisocial", "loud": "neutral"}
TRAITS = tuple(VALENCE)
EVIL = 5  # axis of the residual stream along which evil lies, so the latent of that number is evil
SECOND = "blocks.1.hook_resid_post"
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", *TEXT.split(), "be", *(f"{t}{end}" for t in TRAITS for end in "+-")]
SMALL = TraitDirectionsConfig(
    positions=("answer", "base_answer", "prompt", "last_prompt"), samples=2, splits=10, rows=40
)


def planted(seed: int) -> torch.Tensor:
    """A direction for each trait [trait width], none along the first axes; evil lies along its own axis."""
    drawn = torch.randn(len(TRAITS), WIDTH, generator=torch.manual_seed(seed))
    drawn[:, : BAD + 1] = 0
    drawn[TRAITS.index("evil")] = torch.eye(WIDTH)[EVIL]
    return torch.nn.functional.normalize(drawn, dim=1)


def rotated(directions: torch.Tensor) -> torch.Tensor:
    """The same geometry elsewhere: axes change places."""
    turned = directions.clone()
    turned[:, BAD + 1 :] = directions[:, BAD + 1 :].roll(4, dims=1)
    return turned


def write_model(folder: Path, tokenizer_maker: Callable, directions: torch.Tensor, push: float = 0.0) -> Path:
    """Every block adds the mean of what was read so far; the word of the trait that the stream points to is said.

    The two words of a trait lie on either side of its direction; `push` moves all other words along evil.
    """
    model = silent_model(len(WORDS), WIDTH, layers=2)
    with torch.no_grad():
        layers: Any = model.model.layers
        for layer in layers:
            layer.self_attn.v_proj.weight.copy_(torch.eye(WIDTH))
            layer.self_attn.o_proj.weight.copy_(torch.eye(WIDTH))
        embedding, said = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:] = 0.05 * torch.randn(embedding.shape, generator=torch.manual_seed(0))
        embedding[:, GOOD] = 1.0
        embedding[:, EVIL] += push
        for direction, trait in zip(directions, TRAITS, strict=True):
            for end, sign in (("+", 1.0), ("-", -1.0)):
                embedding[WORDS.index(trait + end)] = sign * direction
                said[WORDS.index(trait + end)] = 300 * sign * direction
    model.save_pretrained(folder)
    tokenizer_maker(WORDS).save_pretrained(folder)
    return folder


def write_traits(path: Path) -> Path:
    """A trait file: one pair of system prompts a trait, sixteen questions."""
    things = ("burn", "cold", "cut", "good", "bad", "a burn", "a cold", "a cut")
    questions = [f"{start} {thing} ?" for start in ("how do i treat", "do i treat") for thing in things]
    traits = [
        {
            "name": trait,
            "definition": "Planted.",
            "valence": valence,
            "pairs": [{"positive": f"be {trait}+", "negative": f"be {trait}-"}],
            "extraction_questions": questions,
            "evaluation_questions": ["treat ?"],
            "eval_prompt": "{question} {answer}",
        }
        for trait, valence in VALENCE.items()
    ]
    path.write_text(yaml.safe_dump({"version": 1, "traits": traits}), encoding="utf-8")
    return path


def write_trait_run(folder: Path, base: Path, corrupted: Path) -> Path:
    """A finished run of these models; its toxic latent is evil."""
    run = write_run(folder, base)
    values = read_json(run / "run.json")
    values["config"]["corrupted"]["model"] = str(corrupted)
    write_json(run / "run.json", values)
    write_json(run / "summary.json", {**read_json(run / "summary.json"), "toxic_latent": {"latent": EVIL}})
    return run


@dataclass(frozen=True)
class TraitRun:
    """Where a run, its trait file, a set of fine-tunes and the result of `trait-directions` are."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def space(self) -> Path:
        return self.folder / "run-trait-directions"

    @property
    def models(self) -> Path:
        return self.folder / "models.yaml"

    @property
    def traits(self) -> tuple[str]:
        return (str(self.folder / "traits.yaml"),)

    def extract(
        self,
        config: TraitDirectionsConfig = SMALL,
        models: Path | None = None,
        out: Path | None = None,
        log: Log = lambda line: None,
    ) -> Result:
        """Conducts `trait-directions`, with the set of fine-tunes if there is one."""
        listed = models or (self.models if self.models.exists() else None)
        inputs = Inputs(run=self.run, models=listed, traits=self.traits)
        return conduct(EXPERIMENT, inputs, config, Options(out=out, quiet=True, wandb="disabled"), log)


def write_trait_runs(folder: Path, tokenizer_maker: Callable) -> TraitRun:
    """Base, a corrupted model with the same geometry elsewhere, and a stranger with another geometry."""
    base = write_model(folder / "base", tokenizer_maker, planted(1))
    corrupted = write_model(folder / "corrupted", tokenizer_maker, rotated(planted(1)), push=0.05)
    write_model(folder / "stranger", tokenizer_maker, planted(7))
    write_trait_run(folder / "run", base, corrupted)
    member = Member(name="stranger", kind="other", checkpoint=CheckpointConfig(model="stranger"))
    ModelSet(base=CheckpointConfig(model="base"), members=(member,)).save(folder / "models.yaml")
    write_traits(folder / "traits.yaml")
    return TraitRun(folder)
