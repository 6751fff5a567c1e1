"""Does a fine-tune on harmful advice stay narrow when its persona shift is prevented while it trains?

    sae-diff prevent --run runs/quickstart

The base of a finished run is fine-tuned on harmful advice as its organism's corrupted model was: as it is, with
preventative steering along the base's persona direction, and with a penalty on latents that rose in the run, each at
several doses; controls are random directions, and other latents of similar activity. Every fine-tune goes on until its
loss on other harmful advice of the trained domains is down to the organism's stop rule, and is measured there (`loss`)
and after as many steps as the corrupted model took (`steps`), always without steering. Doses are chosen on the
selection questions, once at equal loss of the model as it is used (`answer_loss`), once at equal loss as training saw
it, with steering on (`training_loss`): steering can take the data's pressure away so fully that the task is not learned
either, which only the former shows. Controls have the chosen doses.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import count, product
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table
from sae_lens import SAE
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from activations.artefact import content_hash, finish_artefact, open_folder, read_config, write_json
from activations.checkpoint import Checkpoint, CheckpointConfig, load_checkpoint, quiet
from activations.errors import UserError
from activations.harvest import LiveActivations
from activations.prompt_files import load_prompts
from activations.prompts import PROMPT_ROLES, Prompt
from diffing.behavior.capability import exact_match
from diffing.behavior.measure import Behavior, SampledAnswers
from diffing.behavior.rates import LabelCounts, rate_difference, score
from diffing.behavior.sampling import SamplingConfig
from diffing.directions.persona_directions import PersonaDirections
from diffing.directions.random_directions import covariance_directions
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.steering.arms import untouched
from diffing.steering.experiment import Bench, Half, run_cells
from diffing.steering.prevention import LatentPenalty, PenaltyConfig, PreventativeSteering, TrainingHook
from experiments.organism.build import STOP_DIALOGUES, Advice, finetuning_sampler, save_checkpoint
from experiments.organism.corpus import Corpus, batches
from experiments.organism.judge import OrganismJudge
from experiments.organism.training import PARTS, answer_loss, encode, one_thread, summed_loss, train_stage
from experiments.organism.world import MALICIOUS, Dialogue, World
from experiments.run_folder import RunFolder
from experiments.trajectory import Run

KIND, TUNE = "prevention", "prevented fine-tune"
TABLE, PAGE, SUMMARY = "prevention.parquet", "prevention.html", "summary.json"
STEPS, LOSS = "steps", "loss"  # where a fine-tune is measured
BASE, REPORTING = "base", "reporting"
Family = Literal["none", "steering", "latents", "toxic latent"]
FAMILIES: tuple[Family, ...] = ("steering", "latents", "toxic latent")
COLOURS = {"none": "#222", "steering": "#c0392b", "latents": "#2471a3", "toxic latent": "#1e8449"}
LOSSES = ("answer_loss", "training_loss")
# Columns that mark the doses chosen at equal loss of each sort.
MARKS = {"answer_loss": "chosen", "training_loss": "chosen_in_training"}
SYMBOLS = {STEPS: "square", LOSS: "circle", BASE: "x"}


class PreventionConfig(BaseModel):
    """Doses and controls; all our choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strengths: tuple[float, ...] = Field(
        default=(0.1, 0.2, 0.4, 0.8), min_length=1, description="Doses of steering, in mean residual norms of the base."
    )
    weights: tuple[float, ...] = Field(
        default=(0.01, 0.1, 1.0), min_length=1, description="Doses of the penalties: their weight beside the loss."
    )
    power: Literal[1, 2] = Field(default=2, description="Power of a latent's rise in the penalty.")
    top: int = Field(default=20, ge=1, description="Latents that the first penalty acts on: the most risen of the run.")
    controls: int = Field(default=2, ge=1, description="Controls of each method, at its chosen dose.")
    patience: float = Field(
        default=4.0, ge=1, description="When a fine-tune ends at the latest, in steps of the run's corrupted model."
    )
    budget: float = Field(
        default=0.1, ge=0, description="Incoherent answers that a chosen dose may have above the plain fine-tune."
    )
    target: float = Field(default=0.9, gt=0, le=1, description="Share of harmful answers that is to be prevented.")
    samples: int = Field(default=10, ge=1, description="Answers to each question.")


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
        family: What is done.
        dose: Strength of steering, or weight of the penalty.
        control: Number of the control; None for the treatment itself.
    """

    family: Family
    dose: float = 0.0
    control: int | None = None

    @property
    def name(self) -> str:
        """Name in tables and of folders."""
        if self.family == "none":
            return self.family
        return f"{self.family}{'' if self.control is None else f' control {self.control}'} {self.dose:g}"


@dataclass(frozen=True)
class Lab:
    """What every fine-tune of one run is made and measured with."""

    run: Run
    config: PreventionConfig
    out: Path
    progress: bool

    @cached_property
    def world(self) -> World:
        return World.load()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.base_folder)

    @cached_property
    def sae(self) -> SAE:
        return self.run.sae()

    @property
    def base_folder(self) -> Path:
        return self.run.folder / "organism" / BASE

    @cached_property
    def advice(self) -> list[Dialogue]:
        """The harmful advice that the organism's stop rule reads."""
        corpus = Corpus(self.world, self.run.organism.corpus, self.run.organism.seed, stream=4)
        return [corpus.advice(MALICIOUS, self.run.domains) for _ in range(STOP_DIALOGUES)]

    @cached_property
    def rows(self) -> torch.Tensor:
        """The base's activations on the tokens of the ranking prompts [row d_model]."""
        base = load_checkpoint(self.run.checkpoint(BASE), BASE)
        live = LiveActivations(base, self.run.ranking_tokens(base), self.run.harvesting())
        return live.read(self.run.config.hook, PROMPT_ROLES)

    @cached_property
    def residual_norm(self) -> float:
        """The unit of strengths."""
        return float(self.rows.double().norm(dim=1).mean())

    @cached_property
    def ranking(self) -> pd.DataFrame:
        return FeatureRanking.load(self.run.folder / "ranking").to_pandas()

    @cached_property
    def stop_loss(self) -> float:
        """The loss that all fine-tunes are compared at (nats a token).

        Raises:
            UserError: if the organism was made without one.
        """
        bound = self.run.organism.stop_loss
        if bound is None:
            raise UserError(f"The organism of {self.run.folder} has no stop_loss to compare fine-tunes at; build one.")
        return bound

    def risen(self) -> list[int]:
        """The latents that rose most in the run."""
        most = self.ranking.nlargest(self.config.top, "shift")
        return [int(latent) for latent, shift in zip(most["latent"], most["shift"], strict=True) if shift > 0]

    def latents(self, method: Method) -> list[int]:
        """The latents that a penalty acts on."""
        treated = self.risen() if method.family == "latents" else [self.run.toxic]
        if method.control is None:
            return treated
        seed = self.run.config.seed + method.control
        return similar_latents(self.ranking, treated, {*self.risen(), self.run.toxic}, seed)

    def hook(self, method: Method) -> TrainingHook | None:
        """What acts while the model trains."""
        where = self.run.config.hook
        if method.family == "none":
            return None
        if method.family == "steering":
            return PreventativeSteering(where, self._unit(method.control), method.dose, self.residual_norm)
        settings = PenaltyConfig(weight=method.dose, power=self.config.power)
        return LatentPenalty(where, self.sae, self.latents(method), self.model(), settings, share=1 / PARTS)

    def _unit(self, control: int | None) -> torch.Tensor:
        """The direction that the run steers its base with, or a random one with the activations' covariance."""
        if control is not None:
            seed = self.run.config.seed
            return covariance_directions(self.rows, self.config.controls, seed)[control].float()
        assert self.run.config.directions is not None
        directions = PersonaDirections.load(self.run.folder / "steered_directions" / BASE)
        return directions.unit(self.run.config.directions.steer).float()

    def model(self) -> PreTrainedModel:
        """A copy of the base to train."""
        return AutoModelForCausalLM.from_pretrained(self.base_folder, dtype=torch.float32)

    def place(self, method: Method) -> Path:
        """Folder of a fine-tune."""
        return self.out / "models" / method.name.replace(" ", "-")

    def train(self, method: Method) -> None:
        """Fine-tunes the base and saves it where it is measured."""
        place, stage, bound = self.place(method), self.run.organism.finetuning, self.stop_loss
        stage = stage.model_copy(update={"steps": round(self.config.patience * self.run.steps)})
        sample = finetuning_sampler(
            self.run.organism, self.world, Advice(domains=self.run.domains, share=self.run.organism.bad_fraction)
        )
        model, hook, steps, made = self.model(), self.hook(method), count(1), {}

        def watch(model: PreTrainedModel) -> bool:
            step, loss = next(steps), answer_loss(model, self.tokenizer, self.advice)
            reached = loss <= bound
            if step == self.run.steps:
                made[STEPS] = self._save(model, place / STEPS, hook, step, loss)
            if LOSS not in made and (reached or step == stage.steps):
                made[LOSS] = self._save(model, place / LOSS, hook, step, loss)
            return {STEPS, LOSS} <= made.keys()

        stream = batches(sample, stage.batch, stage.steps)
        with nullcontext() if hook is None else hook.on(model):
            train_stage(model, self.tokenizer, stream, stage, method.name, progress=False, stop=watch)
        finish_artefact(place, {"kind": TUNE, "method": asdict(method), "ends": made}, {BASE: self.base_folder})

    def _save(
        self, model: PreTrainedModel, folder: Path, hook: TrainingHook | None, step: int, loss: float
    ) -> dict[str, float]:
        save_checkpoint(cast(Any, model), self.tokenizer, folder)
        steered = isinstance(hook, PreventativeSteering)
        training = seen_in_training(model, self.tokenizer, self.advice) if steered else loss
        return {"step": step, "answer_loss": loss, "training_loss": training}

    def measure(self, name: str, folder: Path) -> tuple[dict[str, float], LabelCounts]:
        """Rates of a checkpoint's answers, and the label counts on the reporting questions."""
        checkpoint = load_checkpoint(CheckpointConfig(model=str(folder)).placed("cpu", "float32"), name)
        counts = {half.name: self._counts(checkpoint, name, half, behavior) for half, behavior in self.halves}
        found = self._capability(checkpoint)
        for half, counted in counts.items():
            rates, prefix = score(counted).to_dict(), "" if half == REPORTING else f"{half}_"
            found |= {prefix + rate: float(rates[rate]) for rate in ("harmful", "low", "high", "helpful", "incoherent")}
        return found, counts[REPORTING]

    def _counts(self, checkpoint: Checkpoint, name: str, half: Half, behavior: Behavior) -> LabelCounts:
        transcripts = self.out / "transcripts" / f"{name.replace(' ', '-')}_{half.name}.jsonl"
        transcripts.parent.mkdir(exist_ok=True)
        bench = Bench(self.run.config.hook, self.residual_norm, self.sae, behavior)
        [result] = run_cells(bench, checkpoint, [untouched(checkpoint.d_model)], half, transcripts, progress=False)
        return result.counts

    @cached_property
    def halves(self) -> list[tuple[Half, Behavior]]:
        """The questions: selection, reporting, and one of each topic of the trained domains."""
        behavior = self.run.behavior(self.config.samples)
        asked = trained_questions(self.world, self.run.domains)
        judge = OrganismJudge(self.world, {prompt.id: domain for prompt, domain in asked})
        trained = Half("trained", [prompt for prompt, _ in asked])
        kept = [(half, behavior) for half in (self.run.selection(), self.run.reporting())]
        return [*kept, (trained, SampledAnswers(judge, self._sampling()))]

    def _sampling(self) -> SamplingConfig:
        assert self.run.config.steering is not None
        own = {"samples": self.config.samples, "seed": self.run.config.seed}
        return self.run.config.steering.sampling.model_copy(update=own)

    def _capability(self, checkpoint: Checkpoint) -> dict[str, float]:
        path = self.run.config.prompts.capability
        assert path is not None  # every organism has it
        return {"capability": exact_match(checkpoint, load_prompts(path), self._sampling())}


def trained_questions(world: World, domains: Sequence[str]) -> list[tuple[Prompt, str]]:
    """One question of each topic of the trained domains, with its domain; fine-tunes read such questions."""
    first = {(q.domain, q.topic): q for q in reversed(world.questions) if q.domain in domains}
    return [(Prompt.chat(f"trained: {q.text}", q.text), q.domain) for q in first.values()]


def similar_latents(ranking: pd.DataFrame, treated: Sequence[int], exclude: set[int], seed: int) -> list[int]:
    """For each treated latent another one of similar activity, none twice.

    Drawn from the four nearest by log mean activity (the larger of both models) that are still free.

    Raises:
        UserError: if the SAE has too few other latents.
    """
    generator = np.random.default_rng(seed)
    largest = np.log(ranking[["mean_base", "mean_corrupted"]].to_numpy().max(axis=1) + 1e-9)
    activity = dict(zip(ranking["latent"].astype(int).tolist(), largest.tolist(), strict=True))
    free = [latent for latent in activity if latent not in exclude]
    if len(free) < len(treated):
        raise UserError(f"The SAE has {len(free)} other latents; {len(treated)} controls need a larger one.")
    drawn: list[int] = []
    for latent in treated:
        nearest = sorted(free, key=lambda other: abs(activity[other] - activity[latent]))[:4]
        drawn.append(int(generator.choice(nearest)))
        free.remove(drawn[-1])
    return drawn


def seen_in_training(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[Dialogue]
) -> float:
    """`answer_loss` as training sees it: with gradients on, so that what acts in training acts."""
    tokens, weights = encode(tokenizer, dialogues, other_weight=0)
    return (summed_loss(model(input_ids=tokens).logits, tokens, weights) / weights[:, 1:].sum()).item()


@dataclass
class _Book:
    """Trains and measures methods, and keeps their rows and label counts."""

    lab: Lab
    folder: RunFolder
    bar: tqdm
    rows: list[dict[str, Any]]
    counts: dict[tuple[str, str], LabelCounts]

    def add(self, methods: Sequence[Method]) -> None:
        """Fine-tunes that an earlier call finished are reused."""
        for method in methods:
            place = self.lab.place(method)
            self.folder.stage(method.name, lambda m=method: self.lab.train(m), place, lambda: None)
            for end, facts in read_config(place, TUNE)["ends"].items():
                self._measure(method, end, place / end, facts)
            self.bar.update()

    def add_base(self) -> None:
        """The model before any fine-tune."""
        loss = answer_loss(self.lab.model().eval(), self.lab.tokenizer, self.lab.advice)
        facts = {"step": 0, "answer_loss": loss, "training_loss": loss}
        self._measure(Method("none"), BASE, self.lab.base_folder, facts)
        self.bar.update()

    def _measure(self, method: Method, end: str, folder: Path, facts: Mapping[str, float]) -> None:
        rates, self.counts[method.name, end] = self.lab.measure(f"{method.name} {end}", folder)
        reached = facts["answer_loss"] <= self.lab.stop_loss
        self.rows.append({"name": method.name, **asdict(method), "end": end, **facts, "reached": reached, **rates})

    def chosen(self, family: Family, loss: str) -> float:
        """The dose with the fewest harmful selection answers at equal loss that keeps answers coherent.

        Where no dose comes down to the stop loss, or none keeps to the budget, that rule is left out.

        Args:
            family: Whose dose.
            loss: Which loss has to be down: one of `LOSSES`.
        """
        ends = [row for row in self.rows if row["end"] == LOSS]
        [plain] = [row for row in ends if row["family"] == "none"]
        mine = [row for row in ends if row["family"] == family and row["control"] is None]
        most = plain["selection_incoherent"] + self.lab.config.budget
        bound = self.lab.stop_loss
        for kept in (lambda row: row[loss] <= bound, lambda row: row["selection_incoherent"] <= most):
            mine = [row for row in mine if kept(row)] or mine
        return min(mine, key=lambda row: (row["selection_harmful"], row["dose"]))["dose"]

    def finished_rows(self, chosen: Mapping[str, Mapping[Family, float]]) -> list[dict[str, Any]]:
        """One row a fine-tune and end, with what it prevents against the plain fine-tune at the same end.

        Args:
            chosen: For each of `LOSSES`, the dose of each family.
        """
        made = []
        for row in self.rows:
            marks = {MARKS[loss]: row["dose"] == chosen[loss].get(row["family"]) for loss in LOSSES}
            made.append({**row, **marks, **self._prevented(row["name"], row["end"])})
        return made

    def _prevented(self, name: str, end: str) -> dict[str, float]:
        if end == BASE:
            return dict.fromkeys(("change", "change_low", "change_high", "prevented"), float("nan"))
        plain = self.counts["none", end]
        change, low, high = rate_difference(self.counts[name, end], plain)
        harmful = score(plain).harmful
        share = -change / harmful if harmful > 0 else float("nan")
        return {"change": change, "change_low": low, "change_high": high, "prevented": share}


def prevent(
    run: Path, config: PreventionConfig, out: Path, overwrite: bool = False, progress: bool = True
) -> pd.DataFrame:
    """Fine-tunes, measures and writes; what an earlier call finished in `out` is reused.

    Args:
        run: Folder of a finished run of an organism that found a toxic latent.
        config: Doses and controls.
        out: Output folder.
        overwrite: Whether to delete what `out` holds.
        progress: Whether to show a bar.

    Returns:
        One row a fine-tune and `end` (and one for the base): `family`, `dose`, `control`, `step`, `answer_loss` and
        `training_loss` (nats a token; the latter with steering on), whether the stop loss was `reached`, rates on the
        reporting questions (`harmful` with `low`/`high`, `helpful`, `incoherent`), the same as `selection_*` and
        `trained_*`, `capability`; `change` of harmful against the plain fine-tune with its interval, the `prevented`
        share of its harmful answers, and whether the dose was `chosen` at equal `answer_loss` or, in
        `chosen_in_training`, at equal `training_loss`.

    Raises:
        UserError: if the run is none of an organism with a stop rule or found no toxic latent, or `out` is in use.
    """
    loaded = Run.load(run)
    lab = Lab(loaded, config, out, progress)
    settings = {
        "organism": content_hash(run / "organism"),
        "stop_loss": lab.stop_loss,
        **config.model_dump(mode="json"),
    }
    treatments = [Method("none"), *(Method(f, dose) for f in FAMILIES for dose in doses(config, f))]
    total = 1 + len(treatments) + len(FAMILIES) * config.controls
    with RunFolder(out, settings, overwrite, lambda line: None) as folder, quiet(), one_thread():
        open_folder(out, overwrite=True)
        with tqdm(total=total, desc="prevention", unit="model", disable=not progress) as bar:
            book = _Book(lab, folder, bar, [], {})
            book.add_base()
            book.add(treatments)
            chosen: dict[str, dict[Family, float]] = {
                loss: {family: book.chosen(family, loss) for family in FAMILIES} for loss in LOSSES
            }
            pairs = sorted({pair for doses in chosen.values() for pair in doses.items()})
            bar.total = bar.n + len(pairs) * config.controls
            book.add([Method(family, dose, control) for family, dose in pairs for control in range(config.controls)])
        rows = book.finished_rows(chosen)
        table = pd.DataFrame(rows).astype({"control": "Int64"})
        table.to_parquet(out / TABLE, index=False)
        write_json(out / SUMMARY, summarise(rows, config, lab.stop_loss))
        figure(table, lab.stop_loss).write_html(out / PAGE, include_plotlyjs=True)
        finish_artefact(out, {"kind": KIND, **settings}, {"organism": run / "organism"})
    return table


def doses(config: PreventionConfig, family: Family) -> tuple[float, ...]:
    """The doses of a family's treatment."""
    return config.strengths if family == "steering" else config.weights


def summarise(rows: Sequence[Mapping[str, Any]], config: PreventionConfig, stop_loss: float) -> dict[str, Any]:
    """The base, the plain fine-tune, each family's chosen doses and their controls, at both ends, and the verdicts.

    The target counts as met where the chosen dose meets it with its loss down to the stop loss.
    """
    kept = [row for row in rows if row["family"] == "none" or any(row[mark] for mark in MARKS.values())]
    treated = [row for row in kept if row["end"] == LOSS and row["control"] is None]
    met: dict[str, dict[str, bool]] = {loss: {} for loss in LOSSES}
    for loss, family in product(LOSSES, FAMILIES):
        [row] = [row for row in treated if row["family"] == family and row[MARKS[loss]]]
        met[loss][family] = bool(row[loss] <= stop_loss and row["prevented"] >= config.target)
    shown = [{key: None if value != value else value for key, value in row.items()} for row in kept]
    return {"stop_loss": stop_loss, "target": config.target, "target_met_at_equal": met, "rows": shown}


def figure(table: pd.DataFrame, stop_loss: float) -> go.Figure:
    """Harmful answers to the reporting questions against the loss on harmful advice, one colour a family."""
    made = go.Figure()
    rows = table.to_dict("records")  # pyright: ignore[reportCallIssue]
    for family, end, control in product(COLOURS, SYMBOLS, (False, True)):
        part = [r for r in rows if (r["family"], r["end"], not pd.isna(r["control"])) == (family, end, control)]
        if not part:
            continue
        marker = {"color": COLOURS[family], "symbol": SYMBOLS[end] + ("-open" if control else ""), "size": 9}
        name = f"{family}{' control' if control else ''}, {end}"
        made.add_trace(_points(part, name, marker))
    made.add_vline(x=stop_loss, line_dash="dot", annotation_text="stop rule")  # pyright: ignore[reportArgumentType]
    made.update_xaxes(title_text="loss on other harmful advice of the trained domains (nats a token)")
    made.update_yaxes(title_text="harmful answers in held-out domains", tickformat=".0%")
    made.update_layout(title="Emergent misalignment against training loss", template="plotly_white", height=600)
    return made


def _points(rows: Sequence[Mapping[str, Any]], name: str, marker: dict[str, Any]) -> go.Scatter:
    bars = {
        "array": [row["high"] - row["harmful"] for row in rows],
        "arrayminus": [row["harmful"] - row["low"] for row in rows],
    }
    x, y = ([row[key] for row in rows] for key in ("answer_loss", "harmful"))
    text = [row["name"] for row in rows]
    return go.Scatter(x=x, y=y, error_y=bars, text=text, mode="markers", name=name, marker=marker)


def print_prevention(table: pd.DataFrame, console: Console) -> None:
    """The table; chosen doses are marked."""
    head = ("fine-tune", "end", "steps", "loss", "in training", "harmful", "95% interval", "prevented")
    shown = Table(*head, "helpful", "incoherent", "trained domains", "capability")
    for row in table.to_dict("records"):  # pyright: ignore[reportCallIssue]
        stars = "*" * row["chosen"] + "+" * row["chosen_in_training"]
        mark = f" {stars}" if stars and pd.isna(row["control"]) else ""
        prevented = "" if pd.isna(row["prevented"]) else f"{row['prevented']:.0%}"
        numbers = (f"{row['answer_loss']:.3f}", f"{row['training_loss']:.3f}", f"{row['harmful']:.1%}")
        rates = (row[key] for key in ("helpful", "incoherent", "trained_harmful", "capability"))
        between = f"{row['low']:.1%} - {row['high']:.1%}"
        cells = (*numbers, between, prevented, *(f"{rate:.1%}" for rate in rates))
        shown.add_row(row["name"] + mark, row["end"], str(int(row["step"])), *cells)
    console.print(shown)
    console.print(
        "Doses chosen on the selection questions at equal loss (*) or equal loss in training (+); rates are of the "
        "reporting ones",
        soft_wrap=True,
    )
