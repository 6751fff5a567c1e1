"""The geometry of the personality space, and whether a fine-tune leaves it as it was.

    sae-diff personas geometry --run runs/quickstart

Works on what `extract` wrote. How traits lie to one another (cosines, tree, map, valence) is compared between the base
and every other model, beside random directions, traits with shuffled names, and the same model at another layer. An
organism's traits are bundles of personas that were given numbers when its world was written, so there the recovered
geometry can be held against the true one. Last, the run's SAE: which latents make up a trait, whether the toxic latent
is one of the traits or the valence axis, and how much of what the fine-tune shifted lies in the space.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from activations.artefact import finish_artefact, open_folder, read_config, write_json
from activations.errors import UserError
from diffing.auc import percentile_interval
from diffing.directions.decompose import decompose, null_unexplained
from diffing.directions.geometry import cosine_matrix, cosines
from diffing.directions.random_directions import chance_cosine, covariance_directions
from diffing.personality.similarity import (
    Rsa,
    beside_nulls,
    principal_angles,
    projection_share,
    rsa,
    rsa_with_matrix,
    similarity_nulls,
    space_similarity,
)
from diffing.personality.spaces import trait_matrix
from diffing.personality.valence import SemanticValence, TraitMap, TraitTree, semantic_valence, trait_map, trait_tree
from experiments.finished_run import FinishedRun
from experiments.organism.world import World
from experiments.personas.space.extract import KIND as EXTRACT_KIND
from experiments.personas.space.extract import ModelSpace
from experiments.personas.space.measure import BASE_ANSWER, Reading
from experiments.results import BASE

KIND = "personality geometry"
SUMMARY, PAGE = "summary.json", "personality.html"
SVV, PC1 = "SVV", "PC1"
EVIL = "evil"


class GeometryConfig(BaseModel):
    """What is looked at, and with how many draws."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positions: Reading = Field(default=BASE_ANSWER, description="Directions that the page is about.")
    hook: str | None = Field(default=None, description="None: where the base's traits separate best (see `extract`).")
    permutations: int = Field(default=2000, ge=1, description="Of the traits' names, for the p of every RSA.")
    replicates: int = Field(default=500, ge=1, description="Resamples, for every interval.")
    draws: int = Field(default=200, ge=1, description="Random sets of directions, for every null.")
    latents: int = Field(default=5, ge=1, description="Latents that a direction is decomposed into.")


@dataclass(frozen=True)
class Spaces:
    """What `extract` wrote, and the run that it was about.

    Attributes:
        run: The run.
        base: The run's base.
        others: All other models.
        valence: Trait -> prosocial, antisocial, neutral, or None.
        seed: Of all draws.
    """

    run: FinishedRun
    base: ModelSpace
    others: Sequence[ModelSpace]
    valence: Mapping[str, str | None]
    seed: int

    @classmethod
    def load(cls, extracted: Path) -> "Spaces":
        """Reads extract's folder.

        Raises:
            UserError: if it was not written to its end, or the run has moved.
        """
        config = read_config(extracted, EXTRACT_KIND)
        models = [ModelSpace.load(extracted, name) for name in config["models"]]
        run = FinishedRun.load(Path(config["run"]))
        return cls(run, models[0], models[1:], config["valence"], config["seed"])

    @property
    def models(self) -> Sequence[ModelSpace]:
        return [self.base, *self.others]

    @cached_property
    def generator(self) -> pd.DataFrame | None:
        """Cosines of the traits' bundles of personas [trait trait]; None if the world is not known."""
        world = World.load()
        if self.run.config.organism is None or not set(self.valence) <= set(world.traits):
            return None
        known = cosine_matrix(torch.from_numpy(world.trait_levels())).numpy()
        return pd.DataFrame(known, index=pd.Index(list(world.traits)), columns=pd.Index(list(world.traits)))

    def pole(self, valence: str, directions: Mapping[str, Tensor]) -> list[str]:
        """Traits of a valence that have a direction."""
        return [trait for trait in directions if self.valence.get(trait) == valence]


@dataclass(frozen=True)
class Geometry:
    """One model's space at one hook.

    Attributes:
        traits: Names, in the order of all rows.
        matrix: Directions [trait d_model].
        tree, map: See `trait_tree` and `trait_map`.
        svv: None without traits of both valences; the map's first component then points to the first trait.
    """

    traits: list[str]
    matrix: Float64[Tensor, "trait d_model"]
    tree: TraitTree
    map: TraitMap
    svv: SemanticValence | None

    @property
    def cosines(self) -> Float64[np.ndarray, "trait other"]:
        return cosine_matrix(self.matrix).numpy()

    @property
    def axes(self) -> dict[str, Tensor]:
        """The SVV, where there is one, and the first principal component."""
        return ({SVV: self.svv.vector} if self.svv is not None else {}) | {PC1: self.map.first}


def geometry(
    extracted: Path, out: Path, config: GeometryConfig, overwrite: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Writes tables, summary and page of the personality space.

    Args:
        extracted: The folder that `extract` wrote.
        out: Output folder.
        config: What is looked at.
        overwrite: Replaces what `out` holds.
        progress: Shows bars.

    Returns:
        The summary.

    Raises:
        UserError: if the folder holds no finished extraction, lacks the positions or the hook, or has too few traits;
            or if `out` holds a finished geometry.
    """
    from experiments.personas.space.figures import write_page

    spaces = Spaces.load(extracted)
    where = _headline(spaces, config)
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    open_folder(out, overwrite=False)
    found = {space.name: model_geometry(spaces, space, *where) for space in spaces.models}
    tables = {
        "traits": trait_table(spaces, found),
        "cosines": cosine_table_of(found),
        "stability": stability_table(spaces, config, progress),
        "nulls": null_table(spaces, config, progress),
        "generator": generator_table(spaces, config, progress),
        "latents": latent_table(spaces, config),
        "toxic": toxic_table(spaces, config),
        "shift": shift_table(spaces, config, where[1]),
    }
    for name, table in tables.items():
        table.to_parquet(out / f"{name}.parquet", index=False)
    summary = summarise(spaces, found, tables, where)
    write_json(out / SUMMARY, summary)
    write_page(out / PAGE, spaces, found, tables, summary)
    finish_artefact(out, {"kind": KIND, **config.model_dump(mode="json")}, {"extracted": extracted})
    return summary


def model_geometry(spaces: Spaces, space: ModelSpace, positions: str, hook: str) -> Geometry:
    """Cosines, tree, map and valence of one model's directions.

    Raises:
        UserError: as the parts do, for too few traits.
    """
    directions = space.directions(positions, hook).vectors
    # Files keep no order; the traits' own one is that of the trait sets.
    directions = {trait: directions[trait] for trait in spaces.valence if trait in directions}
    poles = [spaces.pole(valence, directions) for valence in ("prosocial", "antisocial")]
    svv = semantic_valence(directions, *poles) if all(poles) else None
    towards = svv.vector if svv is not None else next(iter(directions.values()))
    traits = list(directions)
    return Geometry(
        traits, trait_matrix(directions, traits), trait_tree(directions), trait_map(directions, towards), svv
    )


def trait_table(spaces: Spaces, found: Mapping[str, Geometry]) -> pd.DataFrame:
    """One row a model and trait: cosine with the SVV, loading on PC1, place on the map."""
    rows = []
    for model, one in found.items():
        coordinates = one.map.coordinates[:, :2]
        for i, trait in enumerate(one.traits):
            row = {"model": model, "trait": trait, "valence": spaces.valence[trait]}
            place = {"pc1": one.map.loadings[i], "x": coordinates[i, 0], "y": coordinates[i, -1]}
            rows.append(row | place | {"svv": one.svv.cosines[trait] if one.svv else np.nan})
    return pd.DataFrame(rows)


def cosine_table_of(found: Mapping[str, Geometry]) -> pd.DataFrame:
    """One row a model and pair of traits."""
    rows = []
    for model, one in found.items():
        for i, j in zip(*np.triu_indices(len(one.traits), 1), strict=True):
            pair = {"trait": one.traits[i], "other": one.traits[j]}
            rows.append({"model": model, **pair, "cosine": float(one.cosines[i, j])})
    return pd.DataFrame(rows)


def stability_table(spaces: Spaces, config: GeometryConfig, progress: bool) -> pd.DataFrame:
    """How like the base's space every other model's is: one row a model, positions and hook."""
    rows = []
    for space, at, hook in tqdm(_places(spaces.others), desc="stability", disable=not progress, leave=False):
        traits, base, other = _matched(spaces.base, space, at, hook)
        found = rsa(base, other, config.permutations, config.replicates, spaces.seed)
        angles = np.degrees(principal_angles(base, other))
        row = {"model": space.name, "positions": at, "hook": hook, "traits": len(traits), **_rsa_row(found)}
        measures = {k: v for k, v in asdict(space_similarity(base, other)).items() if k != "rsa"}
        rows.append({**row, **measures, "smallest_angle": angles[0], "largest_angle": angles[-1]})
    return pd.DataFrame(rows)


def null_table(spaces: Spaces, config: GeometryConfig, progress: bool) -> pd.DataFrame:
    """Every measure beside its nulls, at the base's best hook of every positions.

    Kinds: those of `similarity_nulls`, and "other layer": the base at this hook against the other model at each other.
    """
    parts = []
    places = [(space, at) for space in spaces.others for at in space.config["positions"]]
    for space, at in tqdm(places, desc="nulls", disable=not progress, leave=False):
        hook = spaces.base.config["best_hook"].get(at)
        if hook is None:
            continue
        _, base, other = _matched(spaces.base, space, at, hook)
        nulls = similarity_nulls(base, other, config.draws, spaces.seed, space.rows(at, hook))
        layers = [name for name in space.config["hooks"] if name != hook]
        elsewhere = (_at_layers(spaces.base, space, at, hook, name) for name in layers)
        if layers:
            nulls["other layer"] = pd.DataFrame([asdict(space_similarity(*two)) for two in elsewhere])
        table = beside_nulls(space_similarity(base, other), nulls)
        parts.append(table.assign(model=space.name, positions=at, hook=hook))
    return pd.concat(parts, ignore_index=True)


def generator_table(spaces: Spaces, config: GeometryConfig, progress: bool) -> pd.DataFrame:
    """RSA of every model's directions against the world's own geometry; empty where the world is not known.

    `low` and `high` are over resampled traits. `question_low` and `question_high`, at every positions' best hook: over
    resampled questions, which is the noise in the directions.
    """
    rows = []
    if spaces.generator is None:
        return pd.DataFrame(columns=pd.Index(["model", "positions", "hook", "rsa", "p", "low", "high"]))
    for space, at, hook in tqdm(_places(spaces.models), desc="generator", disable=not progress, leave=False):
        traits = [trait for trait in spaces.valence if trait in space.directions(at, hook).vectors]
        if len(traits) < 4:
            continue
        known = spaces.generator.loc[traits, traits].to_numpy()
        matrix = trait_matrix(space.directions(at, hook).vectors, traits)
        found = rsa_with_matrix(matrix, known, config.permutations, config.replicates, spaces.seed)
        row = {"model": space.name, "positions": at, "hook": hook, "traits": len(traits), **_rsa_row(found)}
        if hook == spaces.base.config["best_hook"].get(at):
            low, high = _question_interval(space, at, hook, traits, known, config.draws, spaces.seed)
            row |= {"question_low": low, "question_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def latent_table(spaces: Spaces, config: GeometryConfig) -> pd.DataFrame:
    """The latents that make up each of the base's directions at the SAE's hook, beside random directions.

    `unexplained` is the share that is left after this latent and those before; `null_*` the same of random directions
    with the activations' covariance.
    """
    at, hook = config.positions, spaces.run.config.hook
    decoder = spaces.run.sae().W_dec.detach().cpu()
    covariance = torch.cov(spaces.base.rows(at, hook).double().T).float()
    null = null_unexplained(decoder, config.latents, config.draws, spaces.seed, covariance)
    rows = []
    for trait, direction in spaces.base.directions(at, hook).vectors.items():
        found = decompose(direction, decoder, config.latents)
        for i, latent in enumerate(found.latents.tolist()):
            low, high = percentile_interval(null[:, i])
            beaten = float((1 + (null[:, i] <= found.unexplained[i]).sum()) / (1 + len(null)))
            chance = {"null_mean": float(null[:, i].mean()), "null_low": low, "null_high": high, "p": beaten}
            part = {"coefficient": found.coefficients[i], "unexplained": found.unexplained[i]}
            rows.append({"trait": trait, "place": i + 1, "latent": latent, **part, **chance})
    return pd.DataFrame(rows)


def toxic_table(spaces: Spaces, config: GeometryConfig) -> pd.DataFrame:
    """Cosines of the run's toxic latent with every trait, the SVV and PC1 of the base, at the SAE's hook.

    `null_low`, `null_high`: central 95% of random directions with the covariance of the activations on the traits'
    prompts. `chance`: what the larger absolute cosine with evil and the SVV stays below in 95% of such directions.
    `rank`: place of the latent among all by absolute cosine. `low`, `high`: of a trait's cosine, over resampled
    questions.
    """
    toxic = (spaces.run.summary.get("toxic_latent") or {}).get("latent")
    columns = ["positions", "target", "cosine", "low", "high", "null_low", "null_high", "chance", "rank"]
    if toxic is None:
        return pd.DataFrame(columns=pd.Index(columns))
    decoder = spaces.run.sae().W_dec.detach().cpu().double()
    rows = []
    for at in spaces.base.config["positions"]:
        hook = spaces.run.config.hook
        one = model_geometry(spaces, spaces.base, at, hook)
        targets = dict(zip(one.traits, one.matrix, strict=True)) | {k: v.double() for k, v in one.axes.items()}
        stacked = torch.stack(list(targets.values()))
        found = cosines(decoder, stacked).numpy()
        activations = spaces.base.rows(at, hook)
        random = cosines(covariance_directions(activations, 10 * config.draws, spaces.seed), stacked).numpy()
        asked = torch.stack([targets[name] for name in (EVIL, SVV) if name in targets] or list(targets.values()))
        chance = chance_cosine(activations, asked, 10 * config.draws, spaces.seed)
        ranks = (np.abs(found) > np.abs(found[toxic])).sum(0) + 1
        for i, target in enumerate(targets):
            low, high = _cosine_interval(spaces, at, hook, target, decoder[toxic], config.replicates)
            null_low, null_high = percentile_interval(random[:, i])
            row = {"positions": at, "target": target, "cosine": found[toxic, i], "low": low, "high": high}
            rows.append({**row, "null_low": null_low, "null_high": null_high, "chance": chance, "rank": int(ranks[i])})
    return pd.DataFrame(rows, columns=pd.Index(columns))


def shift_table(spaces: Spaces, config: GeometryConfig, hook: str) -> pd.DataFrame:
    """Share of every fine-tune's mean shift on the ranking prompts that lies in the span of the base's directions.

    Beside spans of as many random directions: isotropic, and with the activations' covariance.
    """
    rows = []
    for at in dict.fromkeys((hook, spaces.run.config.hook)):
        matrix = model_geometry(spaces, spaces.base, config.positions, at).matrix
        activations = spaces.base.rows(config.positions, at)
        for space in spaces.others:
            moved = (space.ranking(at).double() - spaces.base.ranking(at).double()).mean(0)
            if not moved.any():
                continue
            found = projection_share(moved, matrix, config.draws, spaces.seed, activations)
            for kind, null in found.nulls.items():
                low, high = percentile_interval(null)
                chance = {"null": kind, "null_mean": null.mean(), "null_low": low, "null_high": high}
                row = {"model": space.name, "hook": at, "norm": float(moved.norm()), "share": found.share}
                rows.append({**row, "dimensions": found.dimensions, **chance, "p": found.p(kind)})
    return pd.DataFrame(rows)


def summarise(
    spaces: Spaces, found: Mapping[str, Geometry], tables: Mapping[str, pd.DataFrame], where: tuple[Reading, str]
) -> dict[str, Any]:
    """The numbers that the page starts with, at the headline's positions and hook."""
    at, hook = where
    first = found[BASE]
    rows = {name: _rows(tables[name]) for name in ("stability", "generator")}
    shown = {(reading, best) for reading, best in spaces.base.config["best_hook"].items()}
    shown |= {(reading, spaces.run.config.hook) for reading, _ in shown} | {where}
    return {
        "positions": at,
        "hook": hook,
        "traits": first.traits,
        "best_hook": spaces.base.config["best_hook"],
        **{name: [row for row in some if (row["positions"], row["hook"]) in shown] for name, some in rows.items()},
        "valence": {
            model: {
                "pc1_svv_cosine": one.map.valence_cosine if one.svv else None,
                "explained": one.map.explained[:3].tolist(),
                "svv_cosine_with_base": _cosine(first.svv, one.svv),
            }
            for model, one in found.items()
        },
        "toxic_latent": {
            reading: toxic_verdict(where_equal(tables["toxic"], positions=reading), spaces)
            for reading in tables["toxic"]["positions"].unique()
        },
        "shift": _rows(tables["shift"]),
    }


def toxic_verdict(here: pd.DataFrame, spaces: Spaces) -> dict[str, Any]:
    """Whether the toxic latent belongs to evil, to the SVV or to none: the larger absolute cosine, if above chance.

    Args:
        here: Rows of `toxic_table` for one kind of positions.
        spaces: Of the run.
    """
    rows = {row["target"]: row for row in _rows(here)}
    asked = {target: abs(rows[target]["cosine"]) for target in (EVIL, SVV) if target in rows}
    chance = float(here["chance"].iloc[0])
    nearest = max(asked, key=lambda target: asked[target], default=None)
    largest = max(rows, key=lambda target: abs(rows[target]["cosine"]))
    return {
        "latent": spaces.run.summary["toxic_latent"]["latent"],
        "belongs_to": nearest if nearest is not None and asked[nearest] > chance else None,
        "chance": chance,
        "largest": largest,
        "cosines": {
            target: {k: rows[target][k] for k in ("cosine", "low", "high", "rank")} for target in (*asked, largest)
        },
    }


def where_equal(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows with these values in these columns."""
    chosen = np.ones(len(table), dtype=bool)
    for column, value in values.items():
        chosen &= (table[column] == value).to_numpy()
    return table.loc[chosen]


def print_geometry(summary: Mapping[str, Any], console: Console) -> None:
    """The page's positions only: every model against base and generator, the toxic latent, and the mean shift."""
    at = summary["positions"]
    console.print(f"{len(summary['traits'])} traits, {at}; the page shows {summary['hook']}", soft_wrap=True)
    for title, kind in (("against the base", "stability"), ("against the generator", "generator")):
        rows = [row for row in summary[kind] if row["positions"] == at]
        table = Table(title, "hook", "RSA", "95% over traits", "p")
        for row in rows:
            between = f"{row['low']:.3f}, {row['high']:.3f}"
            table.add_row(row["model"], row["hook"], f"{row['rsa']:.3f}", between, f"{row['p']:.2g}")
        if rows:
            console.print(table)
    for reading, toxic in summary["toxic_latent"].items():
        near = ", ".join(f"{name} {row['cosine']:+.3f} (place {row['rank']})" for name, row in toxic["cosines"].items())
        verdict = f"belongs to {toxic['belongs_to'] or 'none'}; chance {toxic['chance']:.3f}"
        console.print(f"toxic latent {toxic['latent']}, {reading}: {near}: {verdict}", soft_wrap=True)
    table = Table("mean shift", "hook", "in the space", "random spans", "", "p")
    for row in summary["shift"]:
        null = f"{row['null_mean']:.1%} [{row['null_low']:.1%}, {row['null_high']:.1%}]"
        table.add_row(row["model"], row["hook"], f"{row['share']:.1%}", row["null"], null, f"{row['p']:.2g}")
    console.print(table)


def _headline(spaces: Spaces, config: GeometryConfig) -> tuple[Reading, str]:
    measured = spaces.base.config["best_hook"]
    if config.positions not in measured:
        raise UserError(f"No directions at {config.positions}, only at {', '.join(measured)}; extract them.")
    hook = config.hook or measured[config.positions]
    if hook not in spaces.base.config["hooks"]:
        raise UserError(
            f"No directions at {hook}, only at {', '.join(spaces.base.config['hooks'])}; choose one of them."
        )
    return config.positions, hook


def _places(models: Sequence[ModelSpace]) -> list[tuple[ModelSpace, Reading, str]]:
    return [(m, at, hook) for m in models for at in m.config["positions"] for hook in m.config["hooks"]]


def _matched(
    base: ModelSpace, other: ModelSpace, positions: str, hook: str
) -> tuple[list[str], Float64[Tensor, "trait d_model"], Float64[Tensor, "trait d_model"]]:
    """The traits that both models have, and their directions in both."""
    return _common(base.directions(positions, hook).vectors, other.directions(positions, hook).vectors)


def _at_layers(
    base: ModelSpace, other: ModelSpace, positions: str, hook: str, elsewhere: str
) -> tuple[Float64[Tensor, "trait d_model"], Float64[Tensor, "trait d_model"]]:
    return _common(base.directions(positions, hook).vectors, other.directions(positions, elsewhere).vectors)[1:]


def _common(
    one: Mapping[str, Tensor], two: Mapping[str, Tensor]
) -> tuple[list[str], Float64[Tensor, "trait d_model"], Float64[Tensor, "trait d_model"]]:
    traits = sorted(set(one) & set(two))
    return traits, trait_matrix(one, traits), trait_matrix(two, traits)


def _rsa_row(found: Rsa) -> dict[str, float]:
    return {"rsa": found.correlation, "p": found.p, "low": found.low, "high": found.high}


def _question_interval(
    space: ModelSpace,
    positions: str,
    hook: str,
    traits: Sequence[str],
    known: Float64[np.ndarray, "trait trait"],
    draws: int,
    seed: int,
) -> tuple[float, float]:
    """RSA with the generator when the questions are drawn anew, trait by trait."""
    generator = np.random.default_rng(seed)
    kept = [_kept(space.differences(trait, positions, hook)) for trait in traits]
    found = []
    for _ in range(draws):
        means = [rows[generator.integers(0, len(rows), len(rows))].mean(0) for rows in kept]
        found.append(rsa_with_matrix(torch.from_numpy(np.stack(means)), known, 1, 1, seed).correlation)
    return percentile_interval(np.array(found))


def _cosine_interval(
    spaces: Spaces, positions: str, hook: str, trait: str, latent: Float64[Tensor, "d_model"], replicates: int
) -> tuple[float, float]:
    """A latent's cosine with a trait when the questions are drawn anew; NaN for what is no trait."""
    if trait in (SVV, PC1):
        return np.nan, np.nan
    rows = _kept(spaces.base.differences(trait, positions, hook))
    weights = np.random.default_rng(spaces.seed).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), replicates)
    drawn = torch.from_numpy(weights @ rows)
    return percentile_interval(cosines(drawn, latent[None])[:, 0].numpy())


def _kept(differences: Float64[np.ndarray, "question d_model"]) -> Float64[np.ndarray, "kept d_model"]:
    return differences[~np.isnan(differences).any(1)]


def _cosine(one: SemanticValence | None, other: SemanticValence | None) -> float | None:
    if one is None or other is None:
        return None
    return float(torch.nn.functional.cosine_similarity(one.vector.double(), other.vector.double(), dim=0))


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON holds them: no value instead of NaN."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]
