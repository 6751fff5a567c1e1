"""What an experiment is given on the command line beside its own config, and the checks of it that need no model."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from activations.artefact import read_config
from activations.errors import UserError
from diffing.behavior.config import ModelJudgeConfig
from diffing.personality.config import TRAIT_DIRECTIONS
from experiments.frame.experiment import Experiment, Need
from experiments.model_set import ModelSet
from experiments.run.finished_run import FinishedRun


class _Given(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Inputs(_Given):
    """What is asked about."""

    run: Path = Field(description="Folder of a finished run, such as runs/quickstart.")
    models: Path | None = Field(
        default=None, description="Fine-tunes of the run's base: models.yaml, or the folder that holds it."
    )
    trait_directions: Path | None = Field(
        default=None, description="What `sae-diff trait-directions` wrote (default: <run>-trait-directions)."
    )
    traits: tuple[str, ...] = Field(
        default=(), description="Trait set, file or folder (default: the organism's traits, else all shipped sets)."
    )
    judge_url: str | None = Field(
        default=None,
        description="A language model judges traits: an OpenAI-compatible API, such as http://localhost:8000/v1.",
    )
    judge_model: str | None = Field(default=None, description="Name under which that server knows the judge.")
    judge_samples: int | None = Field(
        default=None,
        ge=1,
        description="Judge's answers that a score is the mean of (default: the first token's log-probabilities).",
    )

    @model_validator(mode="after")
    def _judge_is_whole(self) -> Self:
        if (self.judge_url is None) != (self.judge_model is None) or (self.judge_samples and self.judge_url is None):
            raise ValueError("a language model judges where both judge_url and judge_model are given; give both")
        return self

    @property
    def judge(self) -> ModelJudgeConfig | None:
        """The language model that judges traits, if one is named."""
        if self.judge_url is None or self.judge_model is None:
            return None
        return ModelJudgeConfig(url=self.judge_url, model=self.judge_model, samples=self.judge_samples)

    @property
    def directions_folder(self) -> Path:
        """Where trait directions are read."""
        return self.trait_directions or self.run.with_name(f"{self.run.name}-{TRAIT_DIRECTIONS}")


class Options(_Given):
    """How every experiment is run."""

    out: Path | None = Field(default=None, description="Output folder (default: <run>-<experiment>).")
    device: str | None = Field(
        default=None, description="Torch device, such as cpu, cuda or cuda:1 (default: the run's)."
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="Number format of the models (default: the run's)."
    )
    seed: int | None = Field(default=None, description="Seed of everything random (default: the run's).")
    overwrite: bool = Field(default=False, description="Redo what the output folder already holds.")
    wandb: Literal["offline", "online", "disabled"] = Field(
        default="offline", description="W&B mode: offline, online or disabled."
    )
    quiet: bool = Field(default=False, description="No progress bars.")


# Which inputs each need is given by; `run` is always there.
FIELDS: dict[Need, tuple[str, ...]] = {
    Need.FINE_TUNES: ("models",),
    Need.TRAIT_DIRECTIONS: ("trait_directions",),
    Need.TRAITS: ("traits", "judge_url", "judge_model", "judge_samples"),
}


def fields_of(experiment: Experiment[Any]) -> list[str]:
    """Names of the inputs that an experiment has."""
    wanted = experiment.needs | experiment.takes
    return ["run", *(name for need, names in FIELDS.items() if need in wanted for name in names)]


def open_run(experiment: Experiment[Any], inputs: Inputs, options: Options) -> FinishedRun:
    """The run, after checking that everything the experiment needs is there; loads no model.

    Raises:
        UserError: if something is missing: what, and the command that makes it.
    """
    run = FinishedRun.load(inputs.run, device=options.device, dtype=options.dtype, seed=options.seed)
    for need in sorted(experiment.needs):
        _CHECKS.get(need, _nothing)(run, inputs)
    return run


def load_models(inputs: Inputs) -> ModelSet:
    """The set of fine-tunes.

    Raises:
        UserError: if none is given, or it cannot be read.
    """
    if inputs.models is None:
        raise UserError(
            f"No fine-tunes of the run's base are given; name a list with --models, such as the one that `sae-diff "
            f"fine-tunes --run {inputs.run} --out runs/fine-tunes` makes."
        )
    return ModelSet.load(inputs.models)


def _needs_organism(run: FinishedRun, inputs: Inputs) -> None:
    if run.config.organism is None:
        raise UserError(f"The run in {run.folder} has no organism; make one with `sae-diff quickstart`.")


def _needs_behavior(run: FinishedRun, inputs: Inputs) -> None:
    run.require_behavior()


def _needs_sampled_answers(run: FinishedRun, inputs: Inputs) -> None:
    run.require_behavior()
    if run.config.judge is not None and run.config.judge.kind == "contrast":
        raise UserError(f"The run in {run.folder} sampled no answers; take one whose judge labels sampled answers.")


def _needs_toxic_latent(run: FinishedRun, inputs: Inputs) -> None:
    if run.toxic is None:
        raise UserError(f"The run in {run.folder} found no toxic latent to follow; take a run that found one.")


def _needs_fine_tunes(run: FinishedRun, inputs: Inputs) -> None:
    load_models(inputs)


def _needs_trait_directions(run: FinishedRun, inputs: Inputs) -> None:
    folder = inputs.directions_folder
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no trait directions; make them with `sae-diff trait-directions --run {run.folder}`, or "
            "name their folder with --trait-directions."
        )
    read_config(folder, TRAIT_DIRECTIONS)


def _nothing(run: FinishedRun, inputs: Inputs) -> None:
    pass


_CHECKS = {
    Need.ORGANISM: _needs_organism,
    Need.BEHAVIOR: _needs_behavior,
    Need.SAMPLED_ANSWERS: _needs_sampled_answers,
    Need.TOXIC_LATENT: _needs_toxic_latent,
    Need.FINE_TUNES: _needs_fine_tunes,
    Need.TRAIT_DIRECTIONS: _needs_trait_directions,
}
