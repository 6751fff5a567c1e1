"""Checks of a run's files that need no model, so that what is missing is said at once."""

from pathlib import Path

from activations.errors import UserError
from activations.prompt_files import load_prompts
from experiments.run.config import RunConfig


def check_files(config: RunConfig) -> None:
    """Reads every prompt file that the config names, and looks for local checkpoints and the SAE.

    Raises:
        UserError: if a file is missing or cannot be read.
    """
    if config.organism is None:
        files = config.prompts
        named = (files.sae_text, files.sae_held_out, files.ranking, files.selection, files.reporting, files.capability)
        for path in (*named, *files.personas.values()):
            if path is not None:
                load_prompts(path)
    if config.judge is not None and config.judge.file is not None and not config.judge.file.is_file():
        raise UserError(f"The judge's file {config.judge.file} does not exist; name an existing one in judge.file.")
    source = config.sae.source
    if source is not None and Path(source).is_absolute() and not Path(source).exists():
        raise UserError(f"SAE folder {source} does not exist; name an existing one, or release:sae_id of sae-lens.")
