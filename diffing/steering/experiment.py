"""Runs steering cells: every cell of one kind of operation in one batched generation, judged, counted, written down."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor
from tqdm import tqdm

from activations.checkpoint import Checkpoint
from activations.prompts import Prompt
from diffing.behavior.measure import Behavior, Record
from diffing.behavior.rates import LabelCounts, score
from diffing.interventions import AblateDirection, AblateLatent, Add, Cap, Intervention, Steered
from diffing.steering.arms import Cell
from diffing.steering.config import Operation

CELLS_AT_ONCE = 32
_Key = tuple[str, str, float]


@dataclass(frozen=True)
class Bench:
    """What all cells of an experiment share.

    Attributes:
        hook: Where every cell acts.
        residual_norm: Mean residual norm of the base at the hook over prompt tokens: the unit of strengths.
        sae: Dictionary of the latents.
        behavior: How behaviour is measured.
    """

    hook: str
    residual_norm: float
    sae: SAE
    behavior: Behavior


@dataclass(frozen=True)
class CellResult:
    """Label counts of one cell on one set of questions."""

    cell: Cell
    counts: LabelCounts


@dataclass(frozen=True)
class QuestionSet:
    """Questions that belong together: the selection half, the reporting half, questions of fact, ..."""

    name: str
    questions: Sequence[Prompt]


def run_cells(
    bench: Bench,
    checkpoint: Checkpoint,
    cells: Sequence[Cell],
    half: QuestionSet,
    transcripts: Path,
    progress: bool = True,
) -> list[CellResult]:
    """Observes the behaviour under every cell.

    Args:
        bench: What the cells share.
        checkpoint: The model that is steered.
        cells: Arms with operation and strength.
        half: The questions.
        transcripts: JSONL file that each (cell, question) is appended to.
        progress: Whether to show a bar.

    Returns:
        Results in the order of `cells`.
    """
    behavior, questions = bench.behavior, half.questions
    done = _recorded(transcripts, half, behavior)
    missing = [i for i, cell in enumerate(cells) if _key(cell) not in done]
    total = len(missing) * len(questions) * behavior.answers
    bar = tqdm(
        total=total, desc=f"steer {checkpoint.role} ({half.name})", unit="answer", disable=not progress or not total
    )
    with bar:
        for group in _groups(cells, missing):
            chosen = [cells[i] for i in group]
            intervention = _builder(chosen[0])(chosen, bench)
            observed = behavior.observe(
                checkpoint, questions, Steered(bench.hook, intervention, len(group)), bar.update
            )
            for cell, records in zip(chosen, observed, strict=True):
                _write(transcripts, {"model": checkpoint.role, "half": half.name, **_key_fields(cell)}, half, records)
                done[_key(cell)] = behavior.counts(records)
    return [CellResult(cell, done[_key(cell)]) for cell in cells]


def results_table(results: Sequence[CellResult], model: str, half: str) -> pd.DataFrame:
    """One row a cell: arm, operation, strength and the rates with intervals."""
    rows = [
        {
            "arm": r.cell.arm.name,
            "kind": r.cell.arm.kind,
            "latent": r.cell.arm.latent,
            "model": model,
            "operation": str(r.cell.operation),
            "strength": r.cell.strength,
            "half": half,
            **score(r.counts).to_dict(),
        }
        for r in results
    ]
    return pd.DataFrame(rows).astype({"latent": "Int64"})


def _groups(cells: Sequence[Cell], missing: Sequence[int]) -> list[list[int]]:
    """Indices of the missing cells that one intervention can serve together, a few dozen at a time."""
    groups: dict[Callable, list[int]] = {}
    for index in missing:
        groups.setdefault(_builder(cells[index]), []).append(index)
    return [group[i : i + CELLS_AT_ONCE] for group in groups.values() for i in range(0, len(group), CELLS_AT_ONCE)]


def _builder(cell: Cell) -> Callable[[Sequence[Cell], Bench], Intervention]:
    if cell.operation in (Operation.NONE, Operation.ADD, Operation.SUBTRACT):
        return _additions
    if cell.operation == Operation.CAP:
        return _caps
    return _latent_ablations if cell.arm.kind == "latent" else _direction_ablations


def _additions(cells: Sequence[Cell], bench: Bench) -> Add:
    sign = {Operation.NONE: 0.0, Operation.ADD: 1.0, Operation.SUBTRACT: -1.0}
    return Add(_rows([sign[c.operation] * c.strength * bench.residual_norm * c.arm.unit for c in cells], bench))


def _caps(cells: Sequence[Cell], bench: Bench) -> Cap:
    floors = torch.tensor([c.strength * bench.residual_norm for c in cells], device=bench.sae.device)
    return Cap(_rows([c.arm.unit for c in cells], bench), floors)


def _direction_ablations(cells: Sequence[Cell], bench: Bench) -> AblateDirection:
    means = [c.arm.base_mean if c.operation == Operation.ABLATE_TO_MEAN else 0.0 for c in cells]
    return AblateDirection(_rows([c.arm.unit for c in cells], bench), torch.tensor(means, device=bench.sae.device))


def _latent_ablations(cells: Sequence[Cell], bench: Bench) -> AblateLatent:
    return AblateLatent(bench.sae, torch.tensor([c.arm.latent for c in cells], device=bench.sae.device))


def _rows(vectors: Sequence[Float[Tensor, "d_model"]], bench: Bench) -> Float[Tensor, "cell d_model"]:
    return torch.stack(list(vectors)).to(bench.sae.device)


def _write(transcripts: Path, head: Mapping[str, Any], half: QuestionSet, records: Sequence[Record]) -> None:
    lines = [
        json.dumps({**head, "question": q.id, **record}) for q, record in zip(half.questions, records, strict=True)
    ]
    with transcripts.open("a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))


def _recorded(transcripts: Path, half: QuestionSet, behavior: Behavior) -> dict[_Key, LabelCounts]:
    """Counts of the cells whose every question stands in the transcripts (a killed run may have left a part)."""
    if not transcripts.exists():
        return {}
    text = transcripts.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):  # the last line of a run that was killed
        transcripts.write_text(text := text[: text.rfind("\n") + 1], encoding="utf-8")
    kept: dict[_Key, dict[str, Record]] = {}
    for line in text.splitlines():
        record = json.loads(line)
        if behavior.is_whole(record):
            kept.setdefault((record["arm"], record["operation"], record["strength"]), {})[record["question"]] = record
    wanted = [question.id for question in half.questions]
    whole = {key: given for key, given in kept.items() if all(q in given for q in wanted)}
    return {key: behavior.counts([given[q] for q in wanted]) for key, given in whole.items()}


def _key(cell: Cell) -> _Key:
    return (cell.arm.name, str(cell.operation), cell.strength)


def _key_fields(cell: Cell) -> dict[str, Any]:
    return dict(zip(("arm", "operation", "strength"), _key(cell), strict=True))
