"""The report of a run: one HTML file that needs nothing else, neither a network nor a server."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from diffing.ranking.agreement import method_agreement
from experiments.output.highlight import highlight, peak_activation
from experiments.output.page import HERE, environment
from experiments.run.report import charts as figures
from sae.evaluation import side_by_side, verdicts

if TYPE_CHECKING:
    from diffing import FeatureRanking
    from diffing.ranking.examples import LatentExample
    from diffing.ranking.interference_table import Interference

# Rows of the latent table and of the interval plot; questions among the sample answers.
TOP_LATENTS = 20
DRAGGED_LATENTS = 10
SAMPLE_QUESTIONS = 6
# Tokens that stand for a latent while its examples are folded away.
PEAK_TOKENS = 8

ARM_NAMES = {
    "latent_induce": "toxic latent, added to the base",
    "direction_induce": "dense direction, added to the base",
    "random_induce": "worst control, added to the base",
    "latent_repair": "toxic latent, taken from the corrupted model",
    "direction_repair": "dense direction, taken from the corrupted model",
    "random_repair": "worst control, taken from the corrupted model",
}
DOSE_PANELS = (
    ("base", "add", "harmful", "Base, added: harmful answers"),
    ("base", "add", "incoherent", "Base, added: incoherent answers"),
    ("corrupted", "subtract", "harmful", "Corrupted, subtracted: harmful answers"),
    ("corrupted", "subtract", "helpful", "Corrupted, subtracted: helpful answers"),
    ("corrupted", "subtract", "incoherent", "Corrupted, subtracted: incoherent answers"),
)
ABLATIONS = ("ablate", "ablate_to_mean")
# Model -> where the summary has its metrics of the SAE.
SAE_KEYS = {"base": "sae", "corrupted": "sae_corrupted"}


@dataclass(frozen=True)
class ReportData:
    """What a report shows.

    Attributes:
        title: Heading of the page.
        summary: The run's `summary.json`; parts that a run without a judge lacks may be missing.
        ranking: Latents by shift.
        examples: Latent -> top activating examples, strongest first.
        steering: Table of steering results, or None.
        transcripts: One row an answer with columns model, arm, question, answer, label, or None.
        direction: Name of the direction on the scatter's axis (the ranking's column `cosine_<direction>`); None takes
            the mean difference of activations.
        rebuild: Direction -> number of latents -> fraction of its squared norm that they rebuild, or None.
        interference: Which latents the toxic one co-activates, or None.
        provenance: Config, versions and hashes; anything that JSON holds.
    """

    title: str
    summary: Mapping[str, Any]
    ranking: "FeatureRanking"
    examples: Mapping[int, list["LatentExample"]]
    steering: pd.DataFrame | None
    transcripts: pd.DataFrame | None
    direction: str | None
    rebuild: Mapping[str, Mapping[int, float]] | None
    interference: "Interference | None"
    provenance: Mapping[str, Any]

    @property
    def toxic(self) -> Mapping[str, Any] | None:
        """The summary's toxic latent, if one was found."""
        return self.summary.get("toxic_latent")

    @property
    def marked(self) -> int:
        """The latent in the accent colour: the toxic one, else the one that shifted most."""
        return int(self.toxic["latent"] if self.toxic else self.ranking.top(1)["latent"].iloc[0])

    @property
    def null(self) -> Mapping[str, Any] | None:
        """The summary's null of benign fine-tunes, if there are several."""
        return self.summary.get("null")

    @property
    def method(self) -> str:
        """The column that the latents are ranked by."""
        return self.ranking.config.get("ranking", {}).get("method", "shift")

    @property
    def cosine_column(self) -> str:
        """The ranking's column on the scatter's axis."""
        return f"cosine_{self.direction}" if self.direction else "cosine_mean_difference"


def write_report(path: Path, report: ReportData) -> Path:
    """Write the page, replacing an earlier one only once the new one is complete.

    Returns:
        `path`.
    """
    templates = environment(Path(__file__).parent)
    templates.filters.update(_FILTERS)
    page = templates.get_template("template.html").render(
        report=report,
        headline=_headline(report),
        latents=_latent_rows(report),
        agreement=method_agreement(report.ranking.table, report.method),
        samples=_samples(report.transcripts),
        steering_rows=_steering_rows(report.summary),
        dragged=_dragged(report.interference),
        ablations=_ablations(report),
        sae_rows=_sae_rows(report.summary),
        sae_verdicts=_sae_verdicts(report.summary),
        charts=_charts(report),
        dark_colours=_json(figures.DARK_COLOURS),
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(page, encoding="utf-8")
    return unfinished.replace(path)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}%"


def _number(value: float | None, digits: int = 2) -> str:
    # `z` leaves no minus before a zero; U+2212 is as wide as a digit and cannot break off at the end of a line.
    return "–" if value is None or math.isnan(value) else f"{value:z.{digits}f}".replace("-", "−")


def _q_value(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001" if value >= 1e-6 else "< 1e-6"


_FILTERS: dict[str, Callable[..., str]] = {
    "percent": _percent,
    "number": _number,
    "q_value": _q_value,
    "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str),
}


def _headline(report: ReportData) -> list[str]:
    """What changed, in sentences; each says only what the summary holds."""
    sentences = [_behaviour_sentence(report.summary), _latent_sentence(report), _proof_sentence(report.summary)]
    return [sentence for sentence in (*sentences, _control_sentence(report), _null_sentence(report)) if sentence]


def _behaviour_sentence(summary: Mapping[str, Any]) -> str | None:
    if "em" not in summary:
        return None
    base, corrupted = summary["em"]["base"], summary["em"]["corrupted"]
    return (
        "On questions from domains that the fine-tune never saw, harmful answers went from "
        f"{_percent(base['harmful'])} to {_percent(corrupted['harmful'])} "
        f"(95% interval {_percent(corrupted['low'])} to {_percent(corrupted['high'])})."
    )


def _latent_sentence(report: ReportData) -> str:
    if report.toxic:
        found = report.toxic
        return (
            f"Latent {found['latent']} carries it: rank {found['shift_rank']} of {len(report.ranking.table):,} "
            f"by shift ({_number(found['shift'])}, interval {_number(found['low'])} to {_number(found['high'])}, "
            f"q {_q_value(found['q'])}), cosine {_number(found['cosine_persona'])} with the persona direction "
            f"(rank {found['cosine_rank']})."
        )
    first = report.ranking.top(1).iloc[0]
    verdict = "No latent was shown to carry the change. " if "toxic_latent" in report.summary else ""
    return (
        f"{verdict}The latent that moved most, of {len(report.ranking.table):,}, is {first['latent']:.0f}: "
        f"shift {_number(first['shift'])}, interval {_number(first['low'])} to {_number(first['high'])}, "
        f"q {_q_value(first['q'])}."
    )


def _proof_sentence(summary: Mapping[str, Any]) -> str | None:
    steering = summary.get("steering") or {}
    repair, induce = steering.get("latent_repair"), steering.get("latent_induce")
    if not repair or not induce:
        return None
    return (
        f"Taking that latent away from the corrupted model leaves {_percent(repair['harmful'])} harmful and "
        f"{_percent(repair['helpful'])} helpful answers; adding it to the base makes {_percent(induce['harmful'])} "
        f"harmful, with {_percent(induce['incoherent'])} incoherent."
    )


def _control_sentence(report: ReportData) -> str | None:
    benign = report.summary.get("benign")
    if not benign:
        return None
    verdict = "no latent is declared toxic"
    if benign["toxic_latent"] is not None:
        verdict = "a latent is declared toxic as well, which it should not be"
    return (
        f"In the benign control, fine-tuned as long on helpful answers, {verdict}, and none shifts by more than "
        f"{_number(benign['largest_shift'])}."
    )


def _null_sentence(report: ReportData) -> str | None:
    null, table = report.null, report.ranking.table
    if not null:
        return None
    row = table[table["latent"] == report.marked].iloc[0]
    return (
        f"Over {null['fine_tunes']} benign fine-tunes with different seeds, latent {report.marked} shifts by "
        f"{_number(row['null_low'])} to {_number(row['null_high'])}. Of all latents that moved, "
        f"{_percent(null['exceeding'], 0)} moved farther than in any of them; if this fine-tune were one more of them, "
        f"it would be {_percent(null['expected'], 0)} on average."
    )


def _latent_rows(report: ReportData) -> list[dict[str, Any]]:
    """Rows of the latent table: the ranking's columns, the cosine of the scatter, and highlighted examples."""
    rows = []
    for row in report.ranking.top(TOP_LATENTS).to_dict("records"):
        examples = report.examples.get(int(row["latent"]), [])
        peak = peak_activation(examples)
        shown = [
            {"model": e.model, "peak": max(e.activations, default=0.0), "text": highlight(e, peak)} for e in examples
        ]
        rows.append(
            {**row, "cosine": row[report.cosine_column], "examples": shown, "peak_tokens": _peak_tokens(examples)}
        )
    return rows


def _peak_tokens(examples: Sequence["LatentExample"]) -> list[str]:
    """Distinct tokens by their highest activation in the examples."""
    highest: dict[str, float] = {}
    for example in examples:
        for token, activation in zip(example.tokens, example.activations, strict=True):
            word = token.strip()
            if word and activation > highest.get(word, 0.0):
                highest[word] = activation
    return sorted(highest, key=lambda word: -highest[word])[:PEAK_TOKENS]


def _samples(transcripts: pd.DataFrame | None) -> dict[str, Any] | None:
    """The first answer that each (model, arm) gave to the first questions, question by question."""
    if transcripts is None or transcripts.empty:
        return None
    first = transcripts.drop_duplicates(["model", "arm", "question"])
    columns = list(first[["model", "arm"]].drop_duplicates().itertuples(index=False, name=None))
    answers = {
        (model, arm, question): {"answer": answer, "label": label}
        for model, arm, question, answer, label in first[["model", "arm", "question", "answer", "label"]].itertuples(
            index=False, name=None
        )
    }
    questions = first["question"].drop_duplicates().head(SAMPLE_QUESTIONS)
    rows = [(question, [answers.get((*column, question)) for column in columns]) for question in questions]
    return {"columns": columns, "rows": rows}


def _steering_rows(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    steering = summary.get("steering") or {}
    return [(name, steering[arm]) for arm, name in ARM_NAMES.items() if steering.get(arm)]


def _dragged(found: "Interference | None") -> dict[str, Any] | None:
    """Latents that the toxic one moves although the data never show them together, and how many there are."""
    if found is None:
        return None
    return {**found.counts(), "strength": found.strength, "rows": found.moved.head(DRAGGED_LATENTS).to_dict("records")}


def _ablations(report: ReportData) -> list[dict[str, Any]]:
    """Ablations have no strength, so they stand in a table: of the marked latent and of the dense directions."""
    if report.steering is None:
        return []
    table = report.steering
    treated = (table["kind"] == "direction") | figures.is_arm_of(table, report.marked)
    shown = figures.where(table, treated & table["operation"].isin(ABLATIONS))
    return shown.sort_values(by=["half", "model", "harmful"]).to_dict("records")


def _sae_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Label, the base's number and the corrupted model's."""
    rows = side_by_side(summary.get("sae", {}), summary.get("sae_corrupted"))
    return [tuple(cell.replace("-", "−") if i else cell for i, cell in enumerate(row)) for row in rows]


def _sae_verdicts(summary: Mapping[str, Any]) -> list[str]:
    if "sae_corrupted" not in summary:
        return []
    base, corrupted = summary["sae"], summary["sae_corrupted"]
    return verdicts(base["fvu"], corrupted["fvu"], corrupted["difference_residual"])


def _charts(report: ReportData) -> dict[str, dict[str, Any]]:
    """Chart name -> its title, what it shows as a sentence, and the figure as JSON."""
    axis = report.direction or "the mean difference of activations"
    top = report.ranking.top(TOP_LATENTS)
    found: dict[str, tuple[str, go.Figure | None]] = {
        "scatter": (
            "Shift against cosine",
            figures.shift_scatter(report.ranking.table, report.cosine_column, axis, report.marked),
        ),
        "intervals": ("Shift with intervals", figures.shift_intervals(top)),
    }
    if report.steering is not None:
        for model, operation, rate, title in DOSE_PANELS:
            chart = figures.dose_response(report.steering, model, operation, rate, report.marked)
            found[f"dose-{model}-{rate}"] = (title, chart)
    densities = {m: report.summary[key]["density"] for m, key in SAE_KEYS.items() if key in report.summary}
    if densities:
        found["density"] = ("How often latents are active", figures.density_histogram(densities))
    if report.interference is not None:
        chart = figures.interference_scatter(report.interference.table, report.interference.latent)
        found["interference"] = ("Overlap against co-activation", chart)
    if report.rebuild:
        found["rebuild"] = ("Directions rebuilt", figures.rebuilt_directions(report.rebuild))
    return {
        name: {"title": title, "json": _json(json.loads(chart.to_json() or ""))}
        for name, (title, chart) in found.items()
        if chart is not None
    }


def _json(value: object) -> Markup:
    """JSON for a script element: nothing in it can end the element."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))
