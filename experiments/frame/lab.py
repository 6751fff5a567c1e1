"""What experiments measure with: the run's parts, and models that are loaded one after another. Everything is lazy."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from activations.artefact import CONFIG, read_config, read_json, write_json
from activations.checkpoint import Checkpoint, load_checkpoint, require_same_tokenizer
from activations.config import CheckpointConfig, HarvestConfig
from activations.errors import UserError
from activations.harvesting import LiveActivations
from activations.memory import InMemory
from activations.prompt_files import load_prompts
from activations.prompts import PROMPT_ROLES, Prompt
from activations.tokens import TokenBatch, tokenize_prompts
from diffing.behavior.capability import exact_questions
from diffing.behavior.config import SamplingConfig
from diffing.behavior.measure import Behavior, SampledAnswers
from diffing.behavior.model_judge import ModelJudge
from diffing.behavior.trait_judge import TraitJudge
from diffing.directions.persona_directions import PersonaDirections
from diffing.personality.trait_directions import TraitDirections
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.steering.experiment import Bench, QuestionSet
from diffing.traits import load_traits
from diffing.traits.prompts import TraitPrompts, set_traits
from experiments.frame.experiment import ExperimentConfig
from experiments.frame.inputs import Inputs, load_models
from experiments.frame.organism_parts import OrganismParts
from experiments.frame.trials import Trials
from experiments.model_set import Member, ModelSet
from experiments.names import BASE, CAPABILITY, REPORTING, SELECTION
from experiments.organism.judge import OrganismJudge
from experiments.organism.traits import organism_traits
from experiments.output.run_folder import RunFolder
from experiments.run.finished_run import FinishedRun
from experiments.run.judges import make_behavior
from experiments.run.stages import harvest_settings
from sae.storage import load_sae

if TYPE_CHECKING:
    from sae_lens import SAE

C = TypeVar("C", bound=ExperimentConfig)
REPLIES = "judge.jsonl"


class Lab(Generic[C]):
    """A finished run's parts, each read or loaded when it is first asked for.

    Args:
        run: Gives questions, judge, SAE, directions and settings.
        inputs: What else the experiment is given.
        config: The experiment's settings.
        out: The result's folder; stages of it are reused, answers are kept in it.
        progress: Shows bars.
    """

    def __init__(self, run: FinishedRun, inputs: Inputs, config: C, out: RunFolder, progress: bool = True) -> None:
        self.run, self.inputs, self.config, self.out, self.progress = run, inputs, config, out, progress

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.run.config.seed

    @property
    def hook(self) -> str:
        """The run's: what its SAE reads, and where it steers."""
        return self.run.config.hook

    @property
    def hooks(self) -> tuple[str, ...]:
        """The residual stream after every block."""
        return tuple(f"blocks.{block}.hook_resid_post" for block in range(self.base.layers))

    @property
    def toxic(self) -> int | None:
        """The run's toxic latent, if it found one."""
        return self.run.toxic

    @cached_property
    def sae(self) -> "SAE":
        """The SAE that the run trained, or the one that its config names."""
        source = self.run.config.sae.source
        return load_sae(self.run.folder / "sae" if source is None else source, self.run.config.device)

    @cached_property
    def ranking(self) -> FeatureRanking:
        return FeatureRanking.load(self.run.folder / "ranking")

    @cached_property
    def direction(self) -> Float[Tensor, "d_model"]:
        """The base's direction that the run compared latents with, as a unit vector."""
        assert self.run.config.directions is not None
        return self.directions("directions", BASE).unit(self.run.config.directions.direction)

    @cached_property
    def steered_direction(self) -> Float[Tensor, "d_model"]:
        """The base's direction that the run steered with; read at other positions than `direction`."""
        assert self.run.config.directions is not None
        return self.directions("steered_directions", BASE).unit(self.run.config.directions.steer)

    @cached_property
    def trait_directions(self) -> TraitDirections:
        """What `trait-directions` wrote for the run's base.

        Raises:
            UserError: if there is nothing, or it was measured on another base.
        """
        found = TraitDirections.load(self.inputs.directions_folder)
        found.base.require_of(self.ranking.config["activations"][BASE]["checkpoint"])
        return found

    def directions(self, kind: str, role: str) -> PersonaDirections:
        """The run's "directions" or "steered_directions" of a model."""
        return PersonaDirections.load(self.run.folder / kind / role)

    @cached_property
    def models(self) -> ModelSet:
        """The fine-tunes that are given; their base is the run's.

        Raises:
            UserError: if none are given, their base is another, or one is called like the base.
        """
        found = load_models(self.inputs)
        found.require_not_called(BASE, "the model that all are compared with")
        if Path(found.base.model).resolve() != Path(self.run.checkpoint(BASE).model).resolve():
            self._require_base(self._load(found.base, BASE))
        return found

    @cached_property
    def base(self) -> Checkpoint:
        """The run's base.

        Raises:
            UserError: if it is not the model that the run ranked.
        """
        model = self._load(self.run.checkpoint(BASE), BASE)
        self._require_base(model)
        self._require_same_model(model)
        return model

    @cached_property
    def organism(self) -> OrganismParts:
        """How the run's organism was made."""
        return OrganismParts.of(self.run)

    def load(self, checkpoint: CheckpointConfig, name: str) -> Checkpoint:
        """A fine-tune of the base. One model beside the base is in memory at a time: let go of it before the next.

        Raises:
            UserError: if it has another tokenizer, or what is kept here under its name is another model's.
        """
        gc.collect()  # a bridge refers to itself; this one needs the memory of the one before
        model = self._load(checkpoint, name)
        require_same_tokenizer(self.base, model)
        self._require_same_model(model)
        return model

    def model(self, role: str) -> Checkpoint:
        """The run's base, corrupted or benign model."""
        return self.base if role == BASE else self.load(self.run.checkpoint(role), role)

    def each(self, members: Sequence[Member], title: str) -> Iterator[tuple[Member, Checkpoint]]:
        """Members with their models, one after another, with a bar."""
        gc.freeze()  # only what is new has to be looked at when a model is let go
        try:
            for member in tqdm(members, desc=title, unit="model", disable=not self.progress):
                yield member, self.load(member.checkpoint, member.name)
        finally:
            gc.unfreeze()

    def measure_each(
        self,
        checkpoints: Mapping[str, CheckpointConfig],
        folder: Path,
        kind: str,
        measure: Callable[[Checkpoint, Path], None],
    ) -> None:
        """Measures models one after another; one that an earlier call measured is not loaded again.

        Args:
            checkpoints: By name; that of `BASE` is the run's base.
            folder: Holds an artefact a model, under its name.
            kind: Of the artefacts; their config has "checkpoint", the config of the loaded model.
            measure: Measures a model and writes its artefact into the folder that it is given.

        Raises:
            UserError: if an earlier call measured another checkpoint under one of the names.
        """
        for name, checkpoint in checkpoints.items():
            _require_same_checkpoint(
                folder / name, kind, checkpoint.placed(self.run.config.device, self.run.config.dtype)
            )
        gc.freeze()  # only what is new has to be looked at when a model is let go
        try:
            for name, checkpoint in checkpoints.items():
                build = partial(self._measure_one, name, checkpoint, folder / name, measure)
                self.out.stage(f"model {name}", build, folder / name, lambda: None)
        finally:
            gc.unfreeze()

    @cached_property
    def ranking_prompts(self) -> list[Prompt]:
        """The prompts that latents were ranked on, with the answers that the run let a model give, if it did."""
        return load_prompts(self.run.config.prompts.ranking)

    @cached_property
    def ranking_tokens(self) -> TokenBatch:
        """The same as the models read them."""
        return tokenize_prompts(self.ranking_prompts, self.base.tokenizer, self.run.config.max_length)

    def harvesting(self, hooks: Sequence[str] | None = None) -> HarvestConfig:
        """How the run computed activations; at its hook, or at others."""
        settings = harvest_settings(self.run.config)
        return settings if hooks is None else settings.model_copy(update={"hooks": tuple(dict.fromkeys(hooks))})

    def read(self, model: Checkpoint, prompts: Sequence[Prompt], hooks: Sequence[str] | None = None) -> InMemory:
        """Activations on prompts, with their answers if they have any, after every block or at `hooks`."""
        tokens = tokenize_prompts(prompts, model.tokenizer, self.run.config.max_length)
        return InMemory.copy_of(LiveActivations(model, tokens, self.harvesting(hooks or self.hooks)), progress=False)

    @cached_property
    def prompt_rows(self) -> Float[Tensor, "row d_model"]:
        """The base's activations at the run's hook, on prompt tokens of the ranking prompts."""
        return LiveActivations(self.base, self.ranking_tokens, self.harvesting()).read(self.hook, PROMPT_ROLES)

    @cached_property
    def base_reading(self) -> InMemory:
        """The base on the ranking prompts, after every block."""
        return self.read(self.base, self.ranking_prompts)

    @cached_property
    def base_rows(self) -> dict[str, Float[Tensor, "row d_model"]]:
        """Its rows on prompt tokens, by hook."""
        return {hook: self.base_reading.read(hook, PROMPT_ROLES) for hook in self.hooks}

    @cached_property
    def selection(self) -> QuestionSet:
        """The questions that strengths and latents are chosen on."""
        return self._questions(SELECTION)

    @cached_property
    def reporting(self) -> QuestionSet:
        """The questions that published numbers come from."""
        return self._questions(REPORTING)

    def capability(self, samples: int) -> tuple[QuestionSet, SampledAnswers] | None:
        """Questions of fact without their answers, and how exact answers to them count; None if the run has none.

        Raises:
            UserError: if a question has no answer to compare with.
        """
        path, steering = self.run.config.prompts.capability, self.run.config.steering
        if path is None or steering is None:
            return None
        questions, judge = exact_questions(load_prompts(path))
        sampling = steering.sampling.model_copy(update={"samples": samples, "seed": self.seed})
        return QuestionSet(CAPABILITY, questions), SampledAnswers(judge, sampling)

    def behavior(self, samples: int) -> Behavior:
        """How the run measured behaviour, with another number of answers to each question.

        Raises:
            UserError: if the run measured no behaviour.
        """
        self.run.require_behavior()
        steering = self.run.config.steering
        assert steering is not None
        sampling = steering.sampling.model_copy(update={"samples": samples})
        return make_behavior(
            self.run.config.model_copy(update={"steering": steering.model_copy(update={"sampling": sampling})})
        )

    def trials(self, samples: int, controls: int = 8) -> Trials:
        """Asks and treats models as the run did, with another number of answers and of controls."""
        return Trials(self, self.behavior(samples), controls)

    def bench(self, behavior: Behavior) -> Bench:
        """What models are steered with at the run's hook."""
        return Bench(self.hook, self.run.residual_norm, self.sae, behavior)

    @cached_property
    def traits(self) -> list[TraitPrompts]:
        """The traits of the sets that are given, else the organism's own, else those of all shipped sets."""
        if self.inputs.traits or self.run.config.organism is None:
            return set_traits(load_traits(self.inputs.traits) if self.inputs.traits else load_traits())
        return organism_traits(self.run.folder / "organism" / "prompts")

    @cached_property
    def trait_judge(self) -> TraitJudge | None:
        """Who scores traits: the language model that is named, else an organism's exact judge of its own traits.

        None: nobody, so that answers to trait sets stay unfiltered.

        Raises:
            UserError: if the language model does not answer.
        """
        if self.inputs.judge is not None:
            known = load_traits(self.inputs.traits) if self.inputs.traits else load_traits()
            judge = ModelJudge(self.inputs.judge, known, self.out.folder / REPLIES, self.progress)
            judge.check()
            return judge
        if self.inputs.traits or self.run.config.organism is None:
            return None
        return OrganismJudge.load(self.run.folder / "organism" / "prompts")

    def require_trait_judge(self) -> TraitJudge:
        """The judge of traits.

        Raises:
            UserError: if there is none.
        """
        if self.trait_judge is None:
            raise UserError(
                f"Nobody scores traits in answers of the run in {self.run.folder}; name a judge with --judge-url and "
                "--judge-model."
            )
        return self.trait_judge

    def answer_sampling(self, samples: int, max_new_tokens: int | None) -> SamplingConfig:
        """How answers that show traits are sampled; without `max_new_tokens` as the run samples, or 200 tokens."""
        steering = self.run.config.steering
        tokens = max_new_tokens or (steering.sampling.max_new_tokens if steering else 200)
        return SamplingConfig(samples=samples, max_new_tokens=tokens, seed=self.seed)

    def _questions(self, name: str) -> QuestionSet:
        self.run.require_behavior()
        path = getattr(self.run.config.prompts, name)
        return QuestionSet(name, load_prompts(path))

    def _measure_one(
        self, name: str, checkpoint: CheckpointConfig, folder: Path, measure: Callable[[Checkpoint, Path], None]
    ) -> None:
        measure(self.base if name == BASE else self.load(checkpoint, name), folder)

    def _load(self, checkpoint: CheckpointConfig, name: str) -> Checkpoint:
        model = load_checkpoint(checkpoint.placed(self.run.config.device, self.run.config.dtype), name)
        model.require_hook(self.hook)
        return model

    def _require_base(self, model: Checkpoint) -> None:
        """SAE, directions and prompts were made for the run's base."""
        ranked = self.ranking.config["activations"][BASE]
        if model.fingerprint != ranked["checkpoint"]:
            raise UserError(
                f"The base {model.name} is not the run's, {ranked['model']}; take a run of the base that was "
                "fine-tuned, and name it in the same way."
            )

    def _require_same_model(self, model: Checkpoint) -> None:
        """What an earlier call kept under a model's name is this model's."""
        kept = self.out.folder / "fingerprints" / f"{model.role}.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, {"fingerprint": model.fingerprint})
        elif read_json(kept)["fingerprint"] != model.fingerprint:
            raise UserError(
                f"{self.out.folder} holds measurements of another model called {model.role}; choose another --out, "
                "rename the member, or --overwrite."
            )


def _require_same_checkpoint(folder: Path, kind: str, checkpoint: CheckpointConfig) -> None:
    """What an earlier call measured was this checkpoint, on whatever device."""
    if not (folder / CONFIG).exists():
        return
    found, asked = read_config(folder, kind)["checkpoint"], checkpoint.model_dump()
    if {**found, "device": None} != {**asked, "device": None}:
        raise UserError(f"{folder} was measured on another checkpoint; rename the member, or --overwrite.")
