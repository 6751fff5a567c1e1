"""What a run found, and how it is written down: `summary.json`, the report, the W&B run."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sae_lens import SAE

from activations.artefact import code_commit, package_versions, write_json
from diffing import FeatureRanking
from diffing.behavior.rates import BehaviorScores
from diffing.directions.decompose import decompose, null_unexplained
from diffing.steering.proof import Proof
from experiments.names import BASE, BENIGN, CORRUPTED
from experiments.run.report.report import ReportData, write_report
from experiments.run.state import RunState
from sae.evaluation import SAEEvaluation

# Numbers of latents that the page rebuilds directions from.
REBUILD_COUNTS = (1, 2, 5, 10, 20)
DISCOVERY_Q = 0.01


def write_results(results: RunState) -> dict[str, Any]:
    """Writes summary, steering table, report and W&B records; returns the summary."""
    out, tracker, examples = results.out, results.tracker, results.examples
    summary = summarise(results)
    write_json(out.folder / "summary.json", summary)
    proof = results.proofs.get(CORRUPTED)
    if proof is not None:
        proof.table.to_parquet(out.folder / "steering.parquet", index=False)
    report = ReportData(
        title=f"{results.config.name}: what the fine-tune changed",
        summary=summary,
        ranking=results.ranking,
        examples=dict(examples),
        steering=proof.table if proof is not None else None,
        transcripts=sample_transcripts(out.folder / "steering", proof) if proof is not None else None,
        direction=results.direction,
        rebuild=rebuilt_directions(results),
        interference=results.interference,
        provenance={
            "config": results.config.model_dump(mode="json"),
            "commit": code_commit(),
            "packages": package_versions(),
        },
    )
    write_report(out.folder / "report.html", report)
    for stage in ("sae", "sae_corrupted", "em", "capability", "steering", "stage_seconds"):
        tracker.log(stage if stage != "sae" else "sae_evaluation", _numbers(summary.get(stage) or {}))
    for role, ranking in results.rankings.items():
        tracker.log(f"ranking_{role}", ranking_metrics(ranking))
    tracker.log_summary(summary)
    tracker.log_latents(results.ranking, dict(examples))
    tracker.log_artifact(out.folder / "ranking", "ranking", "feature_ranking")
    if (out.folder / "sae").exists():
        tracker.log_artifact(out.folder / "sae", "sae", "sae")
    return summary


def summarise(results: RunState) -> dict[str, Any]:
    """The content of `summary.json` (docs/summary.md)."""
    seconds = results.out.seconds
    proof, benign = results.proofs.get(CORRUPTED), results.proofs.get(BENIGN)
    summary: dict[str, Any] = {
        "seed": results.config.seed,
        "wall_seconds": round(sum(seconds.values()), 1),
        "stage_seconds": dict(seconds),
        "residual_norm": results.residual_norm,
        **sae_summary(results.evaluation, results.sae),
        "toxic_latent": toxic_summary(results),
        "benign": {
            "toxic_latent": benign.toxic.latent if benign is not None and benign.toxic is not None else None,
            "largest_shift": _largest_shift(results),
        },
        "null": null_summary(results.ranking),
        "interference": results.interference.counts() if results.interference is not None else None,
        "capability": dict(results.capability),
    }
    if proof is not None:
        summary["em"] = untouched_rates(results.proofs)
        summary["steering"] = {
            name: {"strength": strength, **_rates(scores)} for name, (strength, scores) in proof.headline.items()
        }
    if results.direction is not None:
        base, corrupted = (results.directions[role].unit(results.direction) for role in (BASE, CORRUPTED))
        summary["directions"] = {"cosine_base_corrupted": float(base @ corrupted)}
    return summary


def sae_summary(evaluation: SAEEvaluation, sae: SAE) -> dict[str, dict[str, Any]]:
    """The SAE's metrics on the base, with what it is made of, and on the corrupted model."""
    size = {"latents": sae.cfg.d_sae, "k": getattr(sae.cfg, "k", None)}
    summary = {"sae": {**evaluation.base.to_dict(), "decoder_cosine": asdict(evaluation.decoder), **size}}
    if evaluation.corrupted is not None:
        residual = evaluation.difference_residual
        summary["sae_corrupted"] = {**evaluation.corrupted.to_dict(), "difference_residual": residual}
    return summary


def toxic_summary(results: RunState) -> dict[str, Any] | None:
    """The toxic latent's place in the ranking and among the cosines; None if no latent is causal."""
    proof = results.proofs.get(CORRUPTED)
    if proof is None or proof.toxic is None:
        return None
    table = results.ranking.to_pandas().set_index("latent", drop=False)
    row: Any = table.loc[proof.toxic.latent]
    toxic: dict[str, Any] = {
        "latent": int(row["latent"]),
        "shift_rank": int(row["rank"]),
        **{name: float(row[name]) for name in ("shift", "low", "high", "q")},
    }
    if results.direction is not None:
        cosines = table[f"cosine_{results.direction}"].to_numpy()
        toxic["cosine_persona"] = float(row[f"cosine_{results.direction}"])
        toxic["cosine_rank"] = int(np.count_nonzero(cosines > toxic["cosine_persona"])) + 1
    return toxic


def ranking_metrics(ranking: FeatureRanking) -> dict[str, float]:
    """How many latents shifted, and by how much at most."""
    q, shift = (ranking.table[column].to_numpy(dtype=np.float64) for column in ("q", "shift"))
    return {
        "discoveries": float(np.count_nonzero(q < DISCOVERY_Q)),
        "tested": float(np.count_nonzero(~np.isnan(q))),
        "largest_shift": float(np.abs(shift).max()),
    }


def null_summary(ranking: FeatureRanking) -> dict[str, float] | None:
    """How far latents move in benign fine-tunes, and how many the fine-tune moves farther; None without a null.

    `exceeding` is a share of the latents that moved in any of the fine-tunes; `expected` is what it would be if this
    fine-tune differed from the benign ones in its seed only.
    """
    table, fine_tunes = ranking.table, len(ranking.config.get("null", ()))
    if not fine_tunes:
        return None
    ends = np.abs(table[["null_low", "null_high"]].to_numpy()).max(axis=1)
    moved = (ends > 0) | (table["shift"].to_numpy() != 0)
    return {
        "fine_tunes": fine_tunes,
        "largest_shift": float(ends.max()),
        "exceeding": np.count_nonzero(table["exceeds_null"].to_numpy() & moved) / max(1, np.count_nonzero(moved)),
        "expected": 1 / (fine_tunes + 1),
    }


def untouched_rates(proofs: Mapping[str, Proof]) -> dict[str, dict[str, float]]:
    """Rates of the untouched models on the reporting half."""
    rates: dict[str, dict[str, float]] = {}
    for role, proof in proofs.items():
        for row in proof.table.to_dict("records"):
            if row["half"] != "reporting" or row["operation"] != "none":
                continue
            if row["model"] == role or role == CORRUPTED:
                names = ("harmful", "low", "high", "helpful", "coherent")
                rates[str(row["model"])] = {name: float(row[name]) for name in names}
    return rates


def rebuilt_directions(results: RunState) -> dict[str, dict[int, float]] | None:
    """Share of each of the base's directions that few latents rebuild, by adding only, and of random directions."""
    if not results.directions:
        return None
    decoder, most = results.sae.W_dec.detach().cpu(), max(REBUILD_COUNTS)
    vectors = results.directions[BASE].vectors
    left = {name: decompose(vector, decoder, most).curve(most) for name, vector in vectors.items()}
    left["random directions (mean)"] = null_unexplained(decoder, most, seed=results.config.seed).mean(0)
    return {name: {n: 1 - float(curve[n - 1]) for n in REBUILD_COUNTS} for name, curve in left.items()}


def sample_transcripts(folder: Path, proof: Proof) -> pd.DataFrame:
    """Two answers to each reporting question: untouched models, toxic latent, first dense direction."""
    shown = {"untouched", *proof.table.loc[proof.table["kind"] == "direction", "arm"].unique()[:1]}
    if proof.toxic is not None:
        shown.add(f"latent {proof.toxic.latent}")
    files = [folder / CORRUPTED / f"{model}_reporting.jsonl" for model in (BASE, CORRUPTED)]
    files.append(folder / BENIGN / f"{BENIGN}_reporting.jsonl")
    rows = []
    for line in (line for file in files if file.exists() for line in file.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        if record["arm"] not in shown or record["operation"].startswith("ablate") or "answers" not in record:
            continue  # where given answers are compared, none was sampled
        arm = record["arm"] if record["operation"] == "none" else f"{record['operation']} {record['arm']}"
        question = record["question"].partition(": ")[2] or record["question"]
        for answer, label in zip(record["answers"][:2], record["labels"][:2], strict=True):
            rows.append((record["model"], arm, question, answer, label))
    table = pd.DataFrame(rows, columns=pd.Index(["model", "arm", "question", "answer", "label"]))
    return table.sort_values("arm", key=lambda arm: arm != "untouched", kind="stable", ignore_index=True)


def _largest_shift(results: RunState) -> float | None:
    benign = results.rankings.get(BENIGN)
    return None if benign is None else float(np.abs(benign.table["shift"].to_numpy()).max())


def _rates(scores: BehaviorScores) -> dict[str, float]:
    rates = scores.to_dict()
    return {name: rates[name] for name in ("harmful", "low", "high", "helpful", "incoherent")}


def _numbers(nested: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers with dotted names."""
    flat: dict[str, float] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            flat[f"{prefix}{name}"] = float(value)
    return flat
