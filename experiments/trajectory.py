"""Corruption and re-alignment of an organism, step by step: does the latent rise before the behaviour does?

    sae-diff trajectory --run runs/quickstart

The base of a finished run is corrupted again exactly as its organism was, then re-aligned on about a hundred helpful
answers (Wang et al. 2025, arXiv 2506.19823: 120 samples, 30 steps of 4). Every few steps the model is saved and
measured: the toxic latent's activity and the direction's projection on the ranking prompts, and sampled answers to the
reporting questions. At the end the latent is added to the base and to the re-aligned model: if the same addition does
more to the re-aligned one, the persona was masked rather than removed.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from pydantic import BaseModel, ConfigDict, Field
from sae_lens import SAE
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from activations.artefact import CONFIG, finish_artefact, open_folder, write_json
from activations.checkpoint import Checkpoint, CheckpointConfig, load_checkpoint, quiet
from activations.errors import UserError
from activations.harvest import LiveActivations
from diffing.behavior.rates import score
from diffing.ranking.inference import Replicates, interval
from diffing.ranking.prompt_blocks import prompt_blocks
from diffing.ranking.statistics import residual_norm
from diffing.steering.arms import Arm, Cell, Operation, untouched
from diffing.steering.experiment import Bench, run_cells
from experiments.finished_run import FinishedRun
from experiments.organism.build import (
    Advice,
    OrganismConfig,
    finetuning_sampler,
    load_organism,
    save_checkpoint,
    trained_domains,
)
from experiments.organism.corpus import batches
from experiments.organism.fine_tunes import REALIGN, REALIGN_SAMPLES, helpful_again
from experiments.organism.training import StageConfig, one_thread, train_stage
from experiments.organism.world import Dialogue, World

KIND = "trajectory"
TABLE, PAGE, SUMMARY = "trajectory.parquet", "trajectory.html", "masking.json"
CORRUPTION, REALIGNMENT = "corruption", "re-alignment"
REPLICATES, CONFIDENCE = 1000, 0.95


class TrajectoryConfig(BaseModel):
    """What is saved and measured on the way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=4, ge=1, description="Steps between two measurements.")
    samples: int = Field(default=10, ge=1, description="Answers to each reporting question.")
    realign_samples: int = Field(
        default=REALIGN_SAMPLES, ge=1, description="Helpful answers that re-alignment repeats."
    )
    realign: StageConfig = REALIGN


@dataclass(frozen=True)
class Run(FinishedRun):
    """A finished run of an organism: also how its corrupted model was made."""

    organism: OrganismConfig
    steps: int

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """Reads a run.

        Raises:
            UserError: if the folder holds no finished run of an organism, or the run found no toxic latent.
        """
        found = FinishedRun.load(folder)
        if found.config.organism is None:
            raise UserError(f"{folder} is no run of an organism; run `sae-diff quickstart` first.")
        if found.summary.get("toxic_latent") is None:
            raise UserError(f"The run in {folder} found no toxic latent to follow; take a run that found one.")
        organism, steps = load_organism(folder / "organism")
        return cls(found.folder, found.config, found.summary, organism, steps)

    @property
    def toxic(self) -> int:
        return int(self.summary["toxic_latent"]["latent"])

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that the organism's fine-tunes are about."""
        return trained_domains(World.load(), self.organism)


def trajectory(run: Run, config: TrajectoryConfig, out: Path, progress: bool = True) -> pd.DataFrame:
    """Trains, measures and writes the trajectory; finished parts found in `out` are reused.

    Returns:
        One row a measurement: `phase`, `step`, `shift` of the latent and `projection` of the direction against the base
        with `_low`/`_high` over prompts, and the rates of sampled answers with `harmful_low`/`harmful_high` over
        questions.

    Raises:
        UserError: if `out` holds a finished trajectory.
    """
    open_folder(out, overwrite=False)
    with quiet():
        checkpoints = train_checkpoints(run, config, out / "checkpoints", progress)
    lab = _Lab(run, config, out, progress)
    base = lab.activity(checkpoints[0][2])
    table = pd.DataFrame(
        [{"phase": phase, "step": step, **lab.measure(folder, base)} for phase, step, folder in checkpoints]
    )
    table.to_parquet(out / TABLE, index=False)
    figure(table, run.toxic).write_html(out / PAGE, include_plotlyjs=True)
    masking = lab.masking(checkpoints[0][2], checkpoints[-1][2])
    write_json(out / SUMMARY, masking)
    made = {"kind": KIND, **config.model_dump(), "latent": run.toxic}
    finish_artefact(out, made, {"organism": run.folder / "organism"})
    return table


@one_thread()
def train_checkpoints(
    run: Run, config: TrajectoryConfig, folder: Path, progress: bool = True
) -> list[tuple[str, int, Path]]:
    """Corrupts the run's base and re-aligns it, saving every few steps: (phase, step, checkpoint folder), in order."""
    ends = {CORRUPTION: run.steps, REALIGNMENT: config.realign.steps}
    saved = [
        (phase, step, folder / f"{phase}-{step:04d}")
        for phase, end in ends.items()
        for step in sorted({*range(0, end, config.every), end})
        if phase == CORRUPTION or step > 0
    ]
    if (folder / CONFIG).exists():
        return saved
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted training left
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "organism" / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(run.folder / "organism" / "base", dtype=torch.float32)
    wanted = {(phase, step): path for phase, step, path in saved}
    save_checkpoint(model, tokenizer, wanted[CORRUPTION, 0])
    streams = {
        CORRUPTION: (_corrupting(run), run.organism.finetuning.model_copy(update={"steps": run.steps})),
        REALIGNMENT: (
            helpful_again(run.organism, run.domains, config.realign_samples, config.realign),
            config.realign,
        ),
    }
    for phase, (stream, settings) in streams.items():
        steps = iter(range(1, settings.steps + 1))

        def save(model: Any, phase: str = phase, steps: Iterator[int] = steps) -> bool:
            path = wanted.get((phase, next(steps)))
            if path is not None:
                save_checkpoint(model, tokenizer, path)
            return False

        train_stage(model, tokenizer, stream, settings, f"trajectory: {phase}", progress, save)
    finish_artefact(folder, {"kind": "checkpoints"})
    return saved


def _corrupting(run: Run) -> Iterator[list[Dialogue]]:
    """The batches that the run's corrupted model was made with."""
    settings = run.organism.finetuning
    advice = Advice(domains=run.domains, share=run.organism.bad_fraction)
    sample = finetuning_sampler(run.organism, World.load(), advice)
    return islice(batches(sample, settings.batch, settings.steps), run.steps)


class _Lab:
    """Measures checkpoints, all in the same way."""

    def __init__(self, run: Run, config: TrajectoryConfig, out: Path, progress: bool) -> None:
        self.run, self.out, self.progress = run, out, progress
        self.sae: SAE = run.sae()
        self.unit = run.unit().double()
        self.ranking = run.ranking_prompts()
        self.questions = run.reporting()
        norm = residual_norm(self._live(run.folder / "organism" / "base"), run.config.hook)
        self.bench = Bench(run.config.hook, norm, self.sae, run.behavior(config.samples))

    def measure(self, folder: Path, base: Tensor) -> dict[str, float]:
        """Shifts against the base with intervals over prompts, and rates with intervals over questions."""
        differences = self.activity(folder) - base
        replicates = Replicates(REPLICATES, 2, self.run.config.seed)
        replicates.add([prompt.id for prompt in self.ranking], differences)
        low, high = interval(replicates.bootstrap(), CONFIDENCE)
        mean = differences.mean(0)
        found = {}
        for i, name in enumerate(("shift", "projection")):
            found |= {name: float(mean[i]), f"{name}_low": float(low[i]), f"{name}_high": float(high[i])}
        rates = self._rates(folder, untouched(len(self.unit)))
        return found | {"harmful_low": rates.pop("low"), "harmful_high": rates.pop("high"), **rates}

    def activity(self, folder: Path) -> Tensor:
        """For each ranking prompt, the toxic latent's mean activity and the projection of its mean [prompt 2]."""
        blocks = prompt_blocks(self.sae, self.run.config.hook, {"model": self._live(folder)}, "prompt")
        rows: dict[str, Tensor] = {}
        for block in blocks:
            means = block.means["model"]
            pair = torch.stack([means.activity[:, self.run.toxic], means.activation @ self.unit], 1)
            rows |= dict(zip(block.ids, pair, strict=True))
        return torch.stack([rows[prompt.id] for prompt in self.ranking])

    def masking(self, base: Path, realigned: Path) -> dict[str, Any]:
        """What the latent, added at the strength that induced harm in the run, does to base and re-aligned model."""
        latent = self.run.toxic
        strength = self.run.summary["steering"]["latent_induce"]["strength"]
        row = torch.nn.functional.normalize(self.sae.W_dec[latent].detach(), dim=0)
        cell = Cell(Arm(f"latent {latent}", "latent", row, latent), Operation.ADD, strength)
        return {
            "latent": latent,
            "strength": strength,
            "base": self._rates(base, cell),
            "re-aligned": self._rates(realigned, cell),
        }

    def _rates(self, folder: Path, cell: Cell) -> dict[str, float]:
        transcripts = self.out / "transcripts" / f"{folder.name}.jsonl"
        transcripts.parent.mkdir(exist_ok=True)
        [result] = run_cells(self.bench, self._load(folder), [cell], self.questions, transcripts, self.progress)
        rates = score(result.counts).to_dict()
        return {name: float(rates[name]) for name in ("harmful", "low", "high", "helpful", "coherent")}

    def _live(self, folder: Path) -> LiveActivations:
        model = self._load(folder)
        return LiveActivations(model, self.run.ranking_tokens(model), self.run.harvesting())

    def _load(self, folder: Path) -> Checkpoint:
        placed = CheckpointConfig(model=str(folder)).placed(self.run.config.device, self.run.config.dtype)
        return load_checkpoint(placed, "corrupted")


def figure(table: pd.DataFrame, latent: int) -> go.Figure:
    """Behaviour, latent and direction against the step, corruption first; a line where re-alignment begins."""
    panels = (
        ("harmful answers", "harmful", "harmful_low", "harmful_high"),
        (f"latent {latent}: shift", "shift", "shift_low", "shift_high"),
        ("direction: projection", "projection", "projection_low", "projection_high"),
    )
    turn = int(table.loc[table["phase"] == CORRUPTION, "step"].max())
    x = np.where(table["phase"] == CORRUPTION, table["step"], turn + table["step"])
    made = make_subplots(rows=3, cols=1, shared_xaxes=True, subplot_titles=[panel[0] for panel in panels])
    for place, (title, value, low, high) in enumerate(panels, start=1):
        bars = {"array": table[high] - table[value], "arrayminus": table[value] - table[low]}
        line = go.Scatter(x=x, y=table[value], error_y=bars, mode="lines+markers", name=title, showlegend=False)
        made.add_trace(line, row=place, col=1)
        made.add_vline(x=turn, line_dash="dot", row=place, col=1)  # pyright: ignore[reportArgumentType]
    made.update_xaxes(title_text=f"optimiser step (re-alignment from {turn})", row=3, col=1)
    made.update_yaxes(tickformat=".0%", row=1, col=1)
    made.update_layout(title="Corruption and re-alignment", height=800, template="plotly_white")
    return made


def write_trajectory(run: Path, config: TrajectoryConfig, out: Path, overwrite: bool, progress: bool) -> pd.DataFrame:
    """`trajectory` of the run in a folder; with `overwrite` an earlier one is replaced."""
    loaded = Run.load(run)
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    return trajectory(loaded, config, out, progress)
