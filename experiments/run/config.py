"""The configuration of a run: one YAML file, checked whole before anything starts."""

import difflib
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from activations.config import CheckpointConfig
from activations.errors import UserError
from diffing.behavior.config import SamplingConfig
from diffing.positions import POSITIONS_HELP, Positions
from diffing.ranking.config import RankingConfig
from experiments.organism.config import OrganismConfig
from experiments.run.judges import JUDGES
from experiments.stories.config import FinetuneConfig, TextSamplingConfig
from sae.training.config import TrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"
# Folders in a run's folder: the user's files that are read again, an organism's prompts, and the answered ones.
INPUTS, ORGANISM_PROMPTS = "inputs", "organism/prompts"
ANSWERED_RANKING = "ranking_answers/ranking.jsonl"


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PromptFiles(_Config):
    """Prompt files (formats: `load_prompts`); relative paths start at the config file or in the organism's folder."""

    sae_text: Path | None = Field(default=None, description="Pretraining-like text that the SAE is trained on.")
    sae_held_out: Path | None = Field(default=None, description="Text that the SAE is evaluated on.")
    ranking: Path = Field(description="Prompts without persona evidence on which the shift is measured.")
    personas: dict[str, Path] = Field(
        default={}, description="Persona -> contrastive prompts, index-matched between personas."
    )
    selection: Path | None = Field(default=None, description="Questions on which strengths and the latent are chosen.")
    reporting: Path | None = Field(default=None, description="Questions that the published numbers come from.")
    capability: Path | None = Field(default=None, description="Questions with exact answers.")

    def within(self, folder: Path) -> "PromptFiles":
        """The same files, relative paths taken from `folder`."""
        single = {name: getattr(self, name) for name in PromptFiles.model_fields if name != "personas"}
        found = {name: (folder / path).resolve() for name, path in single.items() if path is not None}
        personas = {name: (folder / path).resolve() for name, path in self.personas.items()}
        return self.model_copy(update={**found, "personas": personas})

    def copied_to(self, folder: Path) -> "PromptFiles":
        """The files that a run keeps a copy of in its folder; text for the SAE stays where it is."""
        names = ("ranking", "selection", "reporting", "capability")
        given = {name: path for name in names if (path := getattr(self, name)) is not None}
        files = {name: folder / INPUTS / f"{name}{path.suffix}" for name, path in given.items()}
        personas = {name: folder / INPUTS / f"persona_{name}{path.suffix}" for name, path in self.personas.items()}
        return self.model_copy(update={**files, "personas": personas})


class SAEConfig(_Config):
    """A dictionary: trained here (`train`) or loaded (`source`)."""

    source: str | None = Field(
        default=None, description="Folder in sae-lens's format, or release:sae_id of its registry."
    )
    train: TrainConfig | None = Field(default=None, description="How to train one.")
    shares: dict[Literal["base", "corrupted"], float] = Field(
        default={"base": 1.0},
        description="Share of each model's activations in training; Wang et al. train on the base's alone.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.source is None) == (self.train is None):
            raise ValueError("give either source or train")
        return self


class DirectionsConfig(_Config):
    """Dense persona directions (Chen et al. 2025)."""

    reference: str = Field(default="helpful", description="Persona that all others are compared with.")
    direction: str = Field(
        default="malicious - others", description="The direction that latents are compared with first."
    )
    steer: str = Field(default="malicious - helpful", description="The direction that is steered with.")
    positions: Positions = Field(
        default="last_prompt",
        description=f"Positions averaged within each prompt, for the comparison with latents: {POSITIONS_HELP}.",
    )
    steer_positions: Positions = Field(default="last_prompt", description="The same for the direction steered with.")


class SteeringConfig(_Config):
    """The causal experiment (METHODS: "Steering")."""

    strongest: float = Field(default=1.5, gt=0, description="Largest strength, in mean residual norms of the base.")
    halvings: int = Field(
        default=4, ge=1, description="Steps of the bisection for each arm's largest strength within the budget."
    )
    top: int = Field(default=20, ge=1, description="Latents steered, by absolute shift.")
    controls: int = Field(default=8, ge=1, description="Controls of each kind.")
    claims: int = Field(default=3, ge=1, description="Causal latents that get controls at their own strengths.")
    induce_budget: float = Field(default=0.1, ge=0, le=1, description="Extra incoherent answers allowed when inducing.")
    repair_budget: float = Field(
        default=0.1, ge=0, le=1, description="Extra incoherent answers allowed when repairing."
    )
    sampling: SamplingConfig = SamplingConfig()


class JudgeConfig(_Config):
    """How behaviour is measured."""

    kind: str = Field(description="; ".join(f"{name}: {kind.meaning}" for name, kind in JUDGES.items()) + ".")
    file: Path | None = Field(
        default=None, description="; ".join(f"{name}: {kind.file}" for name, kind in JUDGES.items() if kind.file) + "."
    )

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        if kind not in JUDGES:
            raise ValueError(f"there is no judge '{kind}'; choose one of {', '.join(JUDGES)}")
        return kind

    @model_validator(mode="after")
    def _has_its_file(self) -> Self:
        wanted = JUDGES[self.kind].file
        if (wanted is None) != (self.file is None):
            needs = "has no file" if wanted is None else f"needs file ({wanted})"
            raise ValueError(f"judge {self.kind} {needs}")
        return self


class RunConfig(_Config):
    """A whole run: two checkpoints in, ranked and proven latents out."""

    name: str = Field(description="Name of the run; its default folder is runs/<name>.")
    seed: int = Field(default=0, description="Seed of everything random.")
    device: str = Field(default="cpu", description="Torch device of every model, such as cpu or cuda.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Number format of every model."
    )
    organism: OrganismConfig | None = Field(default=None, description="Make the checkpoints and prompts first.")
    base: CheckpointConfig | None = Field(default=None, description="The checkpoint before the fine-tune.")
    corrupted: CheckpointConfig | None = Field(default=None, description="The fine-tuned checkpoint.")
    benign: CheckpointConfig | None = Field(default=None, description="A harmless fine-tune: the negative control.")
    benign_null: tuple[CheckpointConfig, ...] = Field(
        default=(),
        description="Further harmless fine-tunes (other seeds): with benign, how far latents move by chance.",
    )
    finetune: FinetuneConfig | None = Field(default=None, description="Make the corrupted checkpoint from the base.")
    sample_text: TextSamplingConfig | None = Field(
        default=None, description="Let base and corrupted model write sae_text and sae_held_out."
    )
    hook: str = Field(description="Hook point, such as blocks.2.hook_resid_post.")
    prompts: PromptFiles
    ranking_answers: Literal["base", "corrupted"] | None = Field(
        default=None,
        description="Whose sampled answers follow the ranking prompts in all models; None: those in the file, if any.",
    )
    ranking_answer_tokens: int = Field(default=64, ge=1, description="Tokens after which such an answer is cut.")
    store: bool = Field(
        default=True,
        description="Whether activations are kept on disk; if not, the models compute them whenever they are read.",
    )
    store_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Number format of the caches."
    )
    batch_tokens: int | None = Field(
        default=None, ge=1, description="Tokens in a forward pass of the harvest (default: what suits the device)."
    )
    max_length: int | None = Field(default=None, ge=1, description="Plain text is cut after this many tokens.")
    sae: SAEConfig
    ranking: RankingConfig = RankingConfig()
    directions: DirectionsConfig | None = Field(default=None, description="Needs prompts.personas.")
    judge: JudgeConfig | None = Field(default=None, description="None: nothing is sampled or steered.")
    steering: SteeringConfig | None = Field(
        default=None, description="Needs a judge, prompts.selection and prompts.reporting."
    )
    examples: int = Field(default=8, ge=1, description="Top activating examples kept for each latent and model.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.organism is None and (self.base is None or (self.corrupted is None) == (self.finetune is None)):
            raise ValueError("give base and either corrupted or finetune (or an organism to make the checkpoints)")
        given = (self.base, self.corrupted, self.benign, *self.benign_null, self.finetune)
        if self.organism is not None and any(given):
            raise ValueError("an organism makes its own base, corrupted and benign checkpoints; leave them out")
        if self.finetune is not None and self.base is not None and self.base.adapter is not None:
            raise ValueError("finetune needs a base without an adapter")
        if self.sample_text is not None and (self.prompts.sae_text or self.prompts.sae_held_out):
            raise ValueError("sample_text makes prompts.sae_text and prompts.sae_held_out; leave them out")
        if self.sample_text is None and self.prompts.sae_held_out is None:
            raise ValueError("give prompts.sae_held_out (or sample_text to make it)")
        if self.sample_text is None and self.sae.train is not None and self.prompts.sae_text is None:
            raise ValueError("sae.train needs prompts.sae_text (or sample_text to make it)")
        if self.steering and not (self.judge and self.prompts.selection and self.prompts.reporting):
            raise ValueError("steering needs judge, prompts.selection and prompts.reporting")
        if self.directions and self.directions.reference not in self.prompts.personas:
            raise ValueError(f"directions needs prompts.personas.{self.directions.reference}")
        return self

    def within(self, folder: Path) -> "RunConfig":
        """The same config for readers of a finished run: its files are where the run's folder is now."""
        prompts = self.prompts.within(folder / ORGANISM_PROMPTS) if self.organism else self.prompts.copied_to(folder)
        if self.ranking_answers is not None:
            prompts = prompts.model_copy(update={"ranking": folder / ANSWERED_RANKING})
        judge = self.judge
        if judge is not None and judge.file is not None:
            judge = judge.model_copy(update={"file": folder / INPUTS / f"judge{judge.file.suffix}"})
        return self.model_copy(update={"prompts": prompts, "judge": judge})

    @property
    def null_checkpoints(self) -> dict[str, CheckpointConfig]:
        """The further benign fine-tunes, by the name that each has in the run: benign-1, benign-2, …"""
        return {f"benign-{number}": named for number, named in enumerate(self.benign_null, 1)}


def load_config(path: Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Reads a run's YAML file; a bare name such as `quickstart` means the one that ships with the package.

    Args:
        path: The file.
        overrides: Values that replace those of the file, by dotted key.

    Raises:
        UserError: if the file is missing or not YAML, a key is unknown, or a value does not fit.
    """
    if not path.exists() and (CONFIGS / f"{path}.yaml").exists():
        path = CONFIGS / f"{path}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        shipped = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yaml")))
        raise UserError(f"Config {path} cannot be read; give a YAML file or one of: {shipped}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Config {path} is not YAML ({' '.join(str(error).split())}); correct it.") from None
    if not isinstance(values, dict):
        raise UserError(f"Config {path} holds no keys; write it like {CONFIGS / 'quickstart.yaml'}.")
    for key, value in (overrides or {}).items():
        _set(values, key.split("."), value)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"Config {path}: {_first_problem(error)}.") from None
    return _resolved(config, path.parent)


def _set(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values[key] = values.get(key) or {}
        values = values[key]
    values[keys[-1]] = value


def _resolved(config: RunConfig, folder: Path) -> RunConfig:
    """The config with files relative to the config's folder made absolute (an organism's prompts are in its own)."""
    update: dict[str, Any] = {} if config.organism else {"prompts": config.prompts.within(folder)}
    if config.judge is not None and config.judge.file is not None:
        update["judge"] = config.judge.model_copy(update={"file": (folder / config.judge.file).resolve()})
    if config.finetune is not None:
        text = (folder / config.finetune.text).resolve()
        update["finetune"] = config.finetune.model_copy(update={"text": text})
    return config.model_copy(update=update)


def _keys(model: type[BaseModel]) -> set[str]:
    """Names of the fields of a config and of the configs in it."""
    found = set(model.model_fields)
    for field in model.model_fields.values():
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= _keys(part)
    return found


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _keys(RunConfig), n=3, cutoff=0.0)
        return f"unknown key '{where}'; the nearest keys are {', '.join(near)}"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
