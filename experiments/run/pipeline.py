"""The method, from two checkpoints to proven persona latents, as one readable list of stages."""

from pathlib import Path
from typing import Any

import torch

from experiments.output.run_folder import Log, RunFolder
from experiments.output.tracking import Mode, start_tracker
from experiments.run import stages
from experiments.run.config import RunConfig
from experiments.run.inputs import copy_inputs
from experiments.run.results import write_results
from experiments.run.state import RunState, Stage

# `sae-diff run` does these in order, and its `--dry-run` prints their plans.
STAGES: tuple[Stage, ...] = (
    stages.make_organism,
    stages.make_finetune,
    stages.load_models,
    stages.write_sae_text,
    stages.answer_ranking_prompts,
    stages.harvest_activations,
    stages.harvest_benign_null,
    stages.obtain_sae,
    stages.measure_sae,
    stages.find_directions,
    stages.rank,
    stages.prove_by_steering,
    stages.find_interference,
    stages.measure_capability,
)


def plan(config: RunConfig) -> list[str]:
    """What each stage that the config asks for will do."""
    planned = [line for one in STAGES if (line := one.plan(config)) is not None]
    return [*planned, "write summary.json, report.html and the W&B run"]


def run(
    config: RunConfig,
    folder: Path,
    wandb: Mode = "offline",
    overwrite: bool = False,
    progress: bool = True,
    log: Log = print,
) -> dict[str, Any]:
    """Runs the whole method and returns the summary that it also writes to `folder/summary.json`.

    Args:
        config: What to compare, and how.
        folder: Where everything goes; finished stages found there are reused.
        wandb: "offline", "online" or "disabled".
        overwrite: Redo everything.
        progress: Whether to show progress bars.
        log: Receives one line a stage.

    Raises:
        UserError: for input that does not fit together; see each stage.
    """
    torch.manual_seed(config.seed)
    with (
        RunFolder(folder, config.model_dump(mode="json"), overwrite, log) as out,
        start_tracker(folder, config.model_dump(mode="json"), wandb) as tracker,
    ):
        copy_inputs(config, folder)
        state = RunState(config, out, tracker, progress)
        for stage in STAGES:
            if stage.plan(state.config) is not None:
                stage.do(state)
        summary = write_results(state)
        if tracker.sync_command:
            log(f"to upload the W&B run: {tracker.sync_command}")
    return summary
