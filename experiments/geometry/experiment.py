"""The geometry of the personality space, and whether a fine-tune leaves it as it was.

    sae-diff personas geometry --run runs/quickstart

Works on what `extract` wrote. How traits lie to one another (cosines, tree, map, valence) is compared between the base
and every other model, beside random directions, traits with shuffled names, and the same model at another layer. An
organism's traits are bundles of personas that were given numbers when its world was written, so there the recovered
geometry can be held against the true one. Last, the run's SAE: which latents make up a trait, whether the toxic latent
is one of the traits or the valence axis, and how much of what the fine-tune shifted lies in the space.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from activations.artefact import finish_artefact, open_folder, write_json
from activations.errors import UserError
from diffing.personality.config import TraitPositions
from experiments.geometry.config import GeometryConfig
from experiments.geometry.generator import generator_table
from experiments.geometry.latents import latent_table, toxic_table
from experiments.geometry.mean_shift import shift_table
from experiments.geometry.model_geometry import Geometry, cosine_table_of, model_geometry, trait_table
from experiments.geometry.page import write_page
from experiments.geometry.question_bootstrap import Intervals, Resampled
from experiments.geometry.spaces import Spaces
from experiments.geometry.stability import null_table, stability_table
from experiments.geometry.summary import summarise
from experiments.output.run_folder import RunFolder

KIND = "personality geometry"
SUMMARY, PAGE = "summary.json", "personality.html"


def geometry(
    extracted: Path, out: Path, config: GeometryConfig, overwrite: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Writes tables, summary and page of the personality space.

    Args:
        extracted: The folder that `extract` wrote.
        out: Output folder; the same call again, as after the set of models has grown, replaces what it holds.
        config: What is looked at.
        overwrite: Deletes what `out` holds.
        progress: Shows bars.

    Returns:
        The summary.

    Raises:
        UserError: if the folder holds no finished extraction, lacks the positions or the hook, or has too few traits;
            or if `out` is in use.
    """
    spaces = Spaces.load(extracted)
    where = _headline(spaces, config)
    settings = {"extracted": str(extracted.resolve()), **config.model_dump(mode="json")}
    with RunFolder(out, settings, overwrite, lambda line: None):
        open_folder(out, overwrite=True)
        found, tables, summary = compare(spaces, config, where, progress)
        for name, table in tables.items():
            table.to_parquet(out / f"{name}.parquet", index=False)
        write_json(out / SUMMARY, summary)
        write_page(out / PAGE, spaces, found, tables, summary)
        finish_artefact(out, {"kind": KIND, **settings}, {"extracted": extracted})
    return summary


def compare(
    spaces: Spaces, config: GeometryConfig, where: tuple[TraitPositions, str], progress: bool
) -> tuple[dict[str, Geometry], dict[str, pd.DataFrame], dict[str, Any]]:
    """Every model's geometry at a place, with intervals; tables over all models and places; the summary."""
    found: dict[str, Geometry] = {space.name: model_geometry(spaces, space, *where) for space in spaces.models}
    base = Resampled.of(spaces, spaces.base, *where, config.replicates)
    intervals = {
        space.name: Intervals.of(Resampled.of(spaces, space, *where, config.replicates), base)
        for space in spaces.models
    }
    tables = {
        "traits": trait_table(spaces, found, intervals),
        "cosines": cosine_table_of(found, intervals),
        "stability": stability_table(spaces, config, progress),
        "nulls": null_table(spaces, config, progress),
        "generator": generator_table(spaces, config, progress),
        "latents": latent_table(spaces, config),
        "toxic": toxic_table(spaces, config),
        "shift": shift_table(spaces, config, where[1]),
    }
    return found, tables, summarise(spaces, found, intervals, tables, where)


def _headline(spaces: Spaces, config: GeometryConfig) -> tuple[TraitPositions, str]:
    measured = spaces.base.config["best_hook"]
    if config.positions not in measured:
        raise UserError(f"No directions at {config.positions}, only at {', '.join(measured)}; extract them.")
    hook = config.hook or measured[config.positions]
    if hook not in spaces.base.config["hooks"]:
        raise UserError(
            f"No directions at {hook}, only at {', '.join(spaces.base.config['hooks'])}; choose one of them."
        )
    return config.positions, hook
