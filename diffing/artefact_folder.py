"""Opening the folder of an artefact for writing."""

from pathlib import Path

from activations.artefact import CONFIG
from activations.errors import UserError


def open_folder(folder: Path, overwrite: bool) -> None:
    """Make the folder, or declare a finished artefact in it unfinished while it is replaced.

    Raises:
        UserError: if it holds a finished artefact and `overwrite` is false.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / CONFIG
    if config.exists() and not overwrite:
        raise UserError(f"{folder} holds a finished artefact; choose another folder or overwrite it.")
    config.unlink(missing_ok=True)
