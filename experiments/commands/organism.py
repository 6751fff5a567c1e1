"""Makes an organism, and fine-tunes of its base (`sae-diff organism`, `sae-diff fine-tunes`)."""

import shutil
from typing import Any

from rich.console import Console
from rich.table import Table

from activations.artefact import read_config
from experiments.commands.requests import FineTunesRequest, OrganismRequest
from experiments.frame.command import checked
from experiments.organism.config import FineTunesConfig, OrganismConfig


def make_organism(request: OrganismRequest, console: Console) -> None:
    """Makes an organism: checkpoints that show emergent misalignment, with the control and all prompts.

    Raises:
        UserError: if a setting does not fit, or the folder is in use.
    """
    config = organism_config(request)
    from experiments.organism.build import build_organism

    if request.overwrite:
        shutil.rmtree(request.out, ignore_errors=True)
    console.print(f"organism written to {build_organism(config, request.out, not request.quiet)}")


def organism_config(request: OrganismRequest) -> OrganismConfig:
    """The recipe with the request's changes; `steps` are taken in full, whatever the loss.

    Raises:
        UserError: if an option is out of range.
    """
    values: dict[str, Any] = request.model_dump(include={"seed", "domains", "bad_fraction"})
    if request.steps is not None:
        recipe = OrganismConfig().finetuning.model_dump()
        values |= {"finetuning": {**recipe, "steps": request.steps}, "stop_loss": None}
    return checked(OrganismConfig, values)


def make_set(request: FineTunesRequest, console: Console) -> None:
    """Makes a set of fine-tunes of an organism's base: harmful and aligned ones of many kinds, in models.yaml.

    Raises:
        UserError: if the run made no organism, or the folder is in use.
    """
    config = checked(FineTunesConfig, request.model_dump(include={"seeds", "early_every"}))
    organism = request.run / "organism"
    read_config(organism, "organism")
    from experiments.organism.fine_tunes import MODELS, make_fine_tunes

    models = make_fine_tunes(organism, request.out, config, request.overwrite, not request.quiet)
    table = Table("kind", "models", "early checkpoints")
    for kind in dict.fromkeys(member.kind for member in models.members):
        early = [member.early_of is not None for member in models.members if member.kind == kind]
        table.add_row(kind, str(early.count(False)), str(early.count(True)))
    console.print(table)
    console.print(f"set written to {request.out / MODELS}", soft_wrap=True)
