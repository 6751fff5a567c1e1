"""The user's files that follow-up experiments read again, copied into the run's folder, so that it may be moved.

Text for the SAE, which may be large and is not read again, stays where it is.
"""

import shutil
from pathlib import Path

from experiments.run.config import INPUTS, PromptFiles, RunConfig

# An organism's judge finds the domains of questions beside them.
BESIDE = ("domains.json",)


def copy_inputs(config: RunConfig, folder: Path) -> None:
    """Copies prompt files and the judge's file to `folder/inputs`; files that the run makes itself are there anyway."""
    (folder / INPUTS).mkdir(exist_ok=True)
    for source, target in _copies(config, folder).items():
        if source.is_file():  # what is missing is told where it is read
            shutil.copyfile(source, target)
    if config.organism is None and config.prompts.selection is not None:
        for name in BESIDE:
            if (found := config.prompts.selection.parent / name).is_file():
                shutil.copyfile(found, folder / INPUTS / name)


def _copies(config: RunConfig, folder: Path) -> dict[Path, Path]:
    """From where to where."""
    pairs = [] if config.organism is not None else _pairs(config.prompts, config.prompts.copied_to(folder))
    kept = config.within(folder).judge
    if config.judge is not None and config.judge.file is not None and kept is not None and kept.file is not None:
        pairs.append((config.judge.file, kept.file))
    return dict(pairs)


def _pairs(before: PromptFiles, after: PromptFiles) -> list[tuple[Path, Path]]:
    names = ("ranking", "selection", "reporting", "capability")
    pairs = [(getattr(before, name), getattr(after, name)) for name in names]
    pairs += [(path, after.personas[persona]) for persona, path in before.personas.items()]
    return [(source, target) for source, target in pairs if source is not None]
