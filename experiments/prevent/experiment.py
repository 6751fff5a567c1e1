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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from activations.artefact import content_hash, finish_artefact, open_folder, read_config, write_json
from activations.checkpoint import quiet
from experiments.names import BASE
from experiments.organism.training import one_thread
from experiments.output.run_folder import RunFolder
from experiments.prevent.config import FAMILIES, PLAIN, Chosen, Method, PreventionConfig, controls, treatments
from experiments.prevent.fine_tune import KIND as FINE_TUNE
from experiments.prevent.fine_tune import Facts, fine_tune
from experiments.prevent.measure import Measures
from experiments.prevent.outcomes import Outcome, choose_doses, finished_rows
from experiments.prevent.page import write_page
from experiments.prevent.summary import summarise
from experiments.prevent.task import Task

KIND = "prevention"
TABLE, PAGE, SUMMARY = "prevention.parquet", "prevention.html", "summary.json"


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
    base = Base(OrganismRun.load(run))
    task = Task(base, config.patience)
    organism, stop_loss = run / "organism", task.stop_loss
    settings = {"organism": content_hash(organism), "stop_loss": stop_loss, **config.model_dump(mode="json")}
    with RunFolder(out, settings, overwrite, lambda line: None) as folder, quiet(), one_thread():
        open_folder(out, overwrite=True)
        measures = Measures(base, config.samples, out / "transcripts")
        outcomes, chosen = Experiment(task, measures, config, folder, progress).run()
        rows = finished_rows(outcomes, chosen)
        table = write_results(out, rows, summarise(rows, config, stop_loss))
        finish_artefact(out, {"kind": KIND, **settings}, {"organism": organism})
    return table


@dataclass(frozen=True)
class Experiment:
    """Every fine-tune of one run.

    Attributes:
        task: What is learned, and by which base.
        measures: What every model is asked.
        config: Doses and controls.
        folder: Where models are kept.
        progress: Whether to show a bar.
    """

    task: Task
    measures: Measures
    config: PreventionConfig
    folder: RunFolder
    progress: bool

    def run(self) -> tuple[list[Outcome], Chosen]:
        """The base, the plain fine-tune, every dose, and controls of the doses that are chosen."""
        treated = treatments(self.config)
        total = 1 + len(treated) + len(FAMILIES) * self.config.controls
        with tqdm(total=total, desc="prevention", unit="model", disable=not self.progress) as bar:
            outcomes = [self._untrained()]
            bar.update()
            outcomes += self._fine_tuned(treated, bar)
            chosen = choose_doses([one.row() for one in outcomes], self.config, self.task.stop_loss)
            others = controls(chosen, self.config.controls)
            bar.total = bar.n + len(others)
            outcomes += self._fine_tuned(others, bar)
        return outcomes, chosen

    def _untrained(self) -> Outcome:
        """The base."""
        loss = self.task.loss(self.task.base.copy().eval())
        facts = {"step": 0, "answer_loss": loss, "training_loss": loss}
        return self._measured(PLAIN, BASE, self.task.base.folder, facts)

    def _fine_tuned(self, methods: Sequence[Method], bar: tqdm) -> list[Outcome]:
        """Each fine-tune at both ends; those that an earlier call finished are reused."""
        found = []
        for method in methods:
            place = self.folder.folder / "models" / method.name.replace(" ", "-")
            build = partial(fine_tune, self.task, method, self.config, place)
            self.folder.stage(method.name, build, place, lambda: None)
            ends = read_config(place, FINE_TUNE)["ends"]
            found += [self._measured(method, end, place / end, facts) for end, facts in ends.items()]
            bar.update()
        return found

    def _measured(self, method: Method, end: str, folder: Path, facts: Facts) -> Outcome:
        reached = facts["answer_loss"] <= self.task.stop_loss
        counts = self.measures.measure(f"{method.name} {end}", folder)
        return Outcome(method, end, {**facts, "reached": reached}, counts)


def write_results(out: Path, rows: list[dict[str, Any]], summary: dict[str, Any]) -> pd.DataFrame:
    """Table, summary and page, with figures beside it; returns the table."""
    table = pd.DataFrame(rows).astype({"control": "Int64"})
    table.to_parquet(out / TABLE, index=False)
    write_json(out / SUMMARY, summary)
    write_page(out / PAGE, table, summary)
    return table
