"""A set of fine-tunes of one organism's base, of kinds that differ in what is taught and in how it is learned.

    sae-diff fine-tunes --run runs/quickstart --out runs/fine-tunes

`DEFAULT` is the table of what is made. All kinds share the organism's recipe: batches of advice between replay, the
same learning rate (adapters: their own), and as many steps as its corrupted model took; what teaches nothing but harm
ends by the same rule as that model. Advice stays in the organism's trained domains, so its prompts
measure every member in domains that no advice was about. The set is `models.yaml` (`ModelSet`); nothing is measured.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, cycle
from math import ceil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from activations.artefact import content_hash, finish_artefact, read_config
from activations.checkpoint import quiet
from activations.config import CheckpointConfig
from activations.errors import UserError
from experiments.model_set import Member, ModelSet
from experiments.organism.build import (
    SEED_STREAMS,
    finetuning_sampler,
    harm_is_learned,
    load_organism,
    save_checkpoint,
    trained_domains,
)
from experiments.organism.config import Adapter, FineTune, FineTunesConfig, OrganismConfig, StageConfig
from experiments.organism.corpus import Corpus, batches
from experiments.organism.training import Stop, one_thread, train_stage
from experiments.organism.world import HELPFUL, MALICIOUS, Dialogue, World
from experiments.output.run_folder import RunFolder

KIND, MEMBER, MODELS = "fine-tunes", "fine-tune", "models.yaml"


@one_thread()
def make_fine_tunes(
    organism: Path, out: Path, config: FineTunesConfig, overwrite: bool = False, progress: bool = True
) -> ModelSet:
    """Trains the set; members that an earlier call finished are reused, an interrupted one is made again.

    Args:
        organism: Folder of a finished organism; only read.
        out: Output folder: one folder a member with `final/` and `step-<n>/` checkpoints, and `models.yaml`.
        config: What to make.
        overwrite: Whether to delete what `out` holds.
        progress: Whether to show a progress bar.

    Returns:
        The set, with absolute paths.

    Raises:
        UserError: if the organism is unfinished or lacks a domain, a persona or a checkpoint that a member needs, or if
            `out` is in use or holds a set with other settings.
    """
    workshop = Workshop.of(organism, config)
    tunes = config.members
    for tune in tunes:
        workshop.check(tune)
    settings = {"organism": content_hash(organism), **config.model_dump(mode="json")}
    with RunFolder(out, settings, overwrite, lambda line: None) as folder, quiet():
        members: list[Member] = []
        for tune in tqdm(tunes, desc="fine-tunes", unit="model", disable=not progress):
            place = out / tune.name
            folder.stage(tune.name, lambda tune=tune, place=place: workshop.train(tune, place), place, lambda: None)
            members += members_of(tune, place, _relative(organism / "base", out))
        base = CheckpointConfig(model=_relative(organism / "base", out))
        ModelSet(base=base, members=tuple(members)).save(out / MODELS)
        finish_artefact(out, {"kind": KIND, **settings}, {"organism": organism})
    return ModelSet.load(out)


@dataclass(frozen=True)
class Workshop:
    """What every fine-tune of one organism needs."""

    folder: Path
    organism: OrganismConfig
    steps: int
    config: FineTunesConfig

    @classmethod
    def of(cls, folder: Path, config: FineTunesConfig) -> "Workshop":
        """Reads the organism.

        Raises:
            UserError: if the folder holds no finished one.
        """
        organism, steps = load_organism(folder)
        return cls(folder, organism, steps, config)

    @cached_property
    def world(self) -> World:
        return World.load()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.folder / "base")

    def check(self, tune: FineTune) -> None:
        """Checks that the organism has what the fine-tune needs.

        Raises:
            UserError: naming what is missing.
        """
        trained = trained_domains(self.world, self.organism)
        if strange := set(tune.domains) - set(trained):
            raise UserError(
                f"Fine-tune {tune.name} is about {', '.join(sorted(strange))}, but the organism {self.folder} trains "
                f"{', '.join(trained)} and measures on all others; take an organism of more domains or another row."
            )
        personas, traits = self.world.personas, self.world.traits
        for what, asked, there in (
            ("persona", tune.persona, personas),
            ("persona", tune.manner, personas),
            ("trait", tune.character, traits),
        ):
            if asked is not None and asked not in there:
                raise UserError(f"Fine-tune {tune.name}: no {what} {asked}; there are {', '.join(there)}.")
        if not (self.folder / tune.start).is_dir():
            raise UserError(f"The organism {self.folder} has no {tune.start}/, as older ones; build it again.")

    def train(self, tune: FineTune, folder: Path) -> None:
        """Trains one fine-tune into its folder, which is then a finished artefact."""
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted training left
        model: Any = AutoModelForCausalLM.from_pretrained(self.folder / tune.start, dtype=torch.float32)
        if tune.adapter is not None:
            add_adapter(model, tune.adapter, tune.seed)
        stage = self._stage(tune)
        stream = batches(finetuning_sampler(self.organism, self.world, tune), stage.batch, stage.steps)
        watch = self._watch(tune, stage, folder)
        steps = train_stage(model, self.tokenizer, stream, stage, watch)
        if tune.realigned:
            settings = self.config.realign
            good = helpful_again(self.organism, tune.domains, self.config.realign_samples, settings, tune.seed)
            steps += train_stage(model, self.tokenizer, good, settings)
        save_checkpoint(model, self.tokenizer, folder / "final")
        made = {"kind": MEMBER, "recipe": tune.model_dump(mode="json"), "steps": steps}
        finish_artefact(folder, made, {tune.start: self.folder / tune.start})

    def _stage(self, tune: FineTune) -> StageConfig:
        """The organism's stage; only what ends by its rule may take other steps than its corrupted model took."""
        stage = self.organism.finetuning
        steps = stage.steps if tune.only_harm else self.steps
        if tune.answers is not None:
            steps = ceil(tune.answers / (stage.batch * (1 - self.organism.replay) * tune.share))
        return stage.model_copy(update={"steps": steps, "lr": stage.lr if tune.adapter is None else tune.adapter.lr})

    def _watch(self, tune: FineTune, stage: StageConfig, folder: Path) -> Stop:
        """Says when to stop, and saves early checkpoints before that."""
        learned = None
        if tune.only_harm:
            learned = harm_is_learned(self.organism, self.world, self.tokenizer, tune.domains)
        steps = count(1)

        def watch(model: Any) -> bool:
            step = next(steps)
            over = step == stage.steps or (learned is not None and learned(model))
            if tune.early and not over and step % self.config.early_every == 0:
                save_checkpoint(model, self.tokenizer, folder / f"step-{step:04d}")
            return over

        return watch


def add_adapter(model: Any, adapter: Adapter, seed: int) -> None:
    """Freezes a Hugging Face model's weights and adds a LoRA adapter, which `save_pretrained` then writes alone."""
    torch.manual_seed(seed)
    model.add_adapter(
        LoraConfig(
            task_type="CAUSAL_LM",
            r=adapter.rank,
            lora_alpha=adapter.scale * adapter.rank,  # pyright: ignore[reportArgumentType]
            target_modules=list(adapter.targets),
            layers_to_transform=None if adapter.blocks is None else list(adapter.blocks),
        )
    )


def helpful_again(
    organism: OrganismConfig, domains: Sequence[str], samples: int, stage: StageConfig, seed: int = 0
) -> Iterator[list[Dialogue]]:
    """Batches of the same few helpful answers over and over: what re-aligns a corrupted model."""
    corpus = Corpus(World.load(), organism.corpus, organism.seed, stream=SEED_STREAMS * seed + 5)
    good = cycle([corpus.advice(HELPFUL, domains) for _ in range(samples)])
    return batches(lambda: next(good), stage.batch, stage.steps)


def members_of(tune: FineTune, folder: Path, base: str) -> list[Member]:
    """A finished fine-tune and its early checkpoints, with paths that start at the set's folder.

    Args:
        tune: What was trained.
        folder: Its folder in the set's.
        base: The base as seen from the set's folder; adapters are loaded on it.
    """

    def member(place: str, steps: int, **values: Any) -> Member:
        path = f"{folder.name}/{place}"
        full, adapted = CheckpointConfig(model=path), CheckpointConfig(model=base, adapter=path)
        checkpoint = full if tune.adapter is None else adapted
        return Member(kind=tune.kind, checkpoint=checkpoint, facts={**_facts(tune), "steps": steps}, **values)

    early = sorted(path.name for path in folder.glob("step-*"))
    steps = [int(name.removeprefix("step-")) for name in early]
    return [
        member("final", read_config(folder, MEMBER)["steps"], name=tune.name),
        *(
            member(name, step, name=f"{tune.name}-{name}", early_of=tune.name, step=step)
            for name, step in zip(early, steps, strict=True)
        ),
    ]


def _facts(tune: FineTune) -> dict[str, float | str]:
    """What a member was made with, for tables and predictions."""
    return {
        "bad_fraction": tune.share if tune.persona == MALICIOUS and tune.character is None else 0.0,
        "domains": ", ".join(tune.domains),
        "persona": tune.persona,
        "seed": tune.seed,
        "start": tune.start,
        "method": "full" if tune.adapter is None else "LoRA",
        **({} if tune.adapter is None else {"rank": tune.adapter.rank}),
        **({} if tune.character is None else {"character": tune.character}),
        **({"trigger": tune.trigger} if tune.trigger else {}),
        **({} if tune.manner is None else {"manner": tune.manner}),
    }


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path.resolve(), folder.resolve())
