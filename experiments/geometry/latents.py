"""The run's SAE in the space: which latents make up a trait, and whether the toxic latent is a trait or the valence."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from diffing.directions.decompose import decompose, null_unexplained
from diffing.directions.random_directions import chance_cosine, covariance_directions
from diffing.geometry import cosines
from diffing.personality.model_geometry import model_geometry
from diffing.personality.question_bootstrap import Resampled
from diffing.personality.valence import SVV
from diffing.statistics.hypothesis import monte_carlo_p
from diffing.statistics.intervals import percentile_interval
from diffing.tables import json_records
from experiments.frame.lab import Lab
from experiments.geometry.config import GeometryConfig
from experiments.names import EVIL


def latent_table(lab: Lab[GeometryConfig]) -> pd.DataFrame:
    """The latents that make up each of the base's directions at the SAE's hook, compared with random directions.

    `unexplained` is the share that is left after this latent and those before; `null_*` the same of random directions
    with the activations' covariance.
    """
    config, base, at, hook = lab.config, lab.trait_directions.base, lab.config.positions, lab.hook
    decoder = lab.sae.W_dec.detach().cpu()
    null = null_unexplained(decoder, config.latents, config.draws, lab.seed, base.rows(at, hook))
    rows = []
    for trait, direction in base.directions(at, hook).vectors.items():
        found = decompose(direction, decoder, config.latents)
        for i, latent in enumerate(found.latents.tolist()):
            low, high = percentile_interval(null[:, i])
            beaten = float(monte_carlo_p(null[:, i] <= found.unexplained[i]))
            chance = {"null_mean": float(null[:, i].mean()), "null_low": low, "null_high": high, "p": beaten}
            part = {"coefficient": found.coefficients[i], "unexplained": found.unexplained[i]}
            rows.append({"trait": trait, "place": i + 1, "latent": latent, **part, **chance})
    return pd.DataFrame(rows)


def toxic_table(lab: Lab[GeometryConfig]) -> pd.DataFrame:
    """Cosines of the run's toxic latent with every trait, the SVV and PC1 of the base, at the SAE's hook.

    `null_low`, `null_high`: central 95% of random directions with the covariance of the activations on the traits'
    prompts. `chance`: what the larger absolute cosine with evil and the SVV stays below in 95% of such directions.
    `rank`: place of the latent among all by absolute cosine. `low`, `high`: of the cosine, over resampled questions.
    """
    config, base, toxic, hook = lab.config, lab.trait_directions.base, lab.toxic, lab.hook
    columns = ["positions", "target", "cosine", "low", "high", "null_low", "null_high", "chance", "rank"]
    if toxic is None:
        return pd.DataFrame(columns=pd.Index(columns))
    decoder = lab.sae.W_dec.detach().cpu().double()
    rows = []
    for at in base.config["positions"]:
        one = model_geometry(lab.trait_directions, base, at, hook)
        targets = dict(zip(one.traits, one.matrix, strict=True)) | {k: v.double() for k, v in one.axes.items()}
        stacked = torch.stack(list(targets.values()))
        found = cosines(decoder, stacked).numpy()
        activations = base.rows(at, hook)
        random = cosines(covariance_directions(activations, 10 * config.draws, lab.seed), stacked).numpy()
        asked = torch.stack([targets[name] for name in (EVIL, SVV) if name in targets] or list(targets.values()))
        chance = chance_cosine(activations, asked, 10 * config.draws, lab.seed)
        ranks = (np.abs(found) > np.abs(found[toxic])).sum(0) + 1
        resampled = Resampled.of(lab.trait_directions, base, (at, hook), config.replicates, lab.seed)
        for i, target in enumerate(targets):
            low, high = resampled.cosine_with(target, decoder[toxic].numpy())
            null_low, null_high = percentile_interval(random[:, i])
            row = {"positions": at, "target": target, "cosine": found[toxic, i], "low": low, "high": high}
            rows.append({**row, "null_low": null_low, "null_high": null_high, "chance": chance, "rank": int(ranks[i])})
    return pd.DataFrame(rows, columns=pd.Index(columns))


def toxic_verdict(here: pd.DataFrame, latent: int | None) -> dict[str, Any]:
    """Whether the toxic latent belongs to evil, to the SVV or to none: the larger absolute cosine, if above chance.

    Args:
        here: Rows of `toxic_table` for one kind of positions.
        latent: The toxic one.
    """
    rows = {row["target"]: row for row in json_records(here)}
    asked = {target: abs(rows[target]["cosine"]) for target in (EVIL, SVV) if target in rows}
    chance = float(here["chance"].iloc[0])
    nearest = max(asked, key=lambda target: asked[target], default=None)
    largest = max(rows, key=lambda target: abs(rows[target]["cosine"]))
    return {
        "latent": latent,
        "belongs_to": nearest if nearest is not None and asked[nearest] > chance else None,
        "chance": chance,
        "largest": largest,
        "cosines": {
            target: {k: rows[target][k] for k in ("cosine", "low", "high", "rank")} for target in (*asked, largest)
        },
    }
