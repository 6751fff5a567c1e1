"""Measures one model after another: its answers, its directions, and what is kept of them."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from activations.checkpoint import Checkpoint, load_checkpoint, outline_checkpoint, require_same_tokenizer
from activations.config import CheckpointConfig
from diffing.behavior.trait_judge import TraitJudge
from diffing.personality.config import ANSWER, ANSWERS, ExtractionConfig, TraitPositions
from diffing.personality.model_space import save_space
from diffing.personality.trait_means import PairAnswers, judged_answers, prompt_means, trait_means, write_answers
from diffing.traits.prompts import TraitPrompts
from experiments.names import BASE
from experiments.run.finished_run import FinishedRun
from experiments.run.ranking_answers import write_answers
from experiments.trait_directions.trait_prompts import TraitJudge, TraitPrompts, answer_sampling


@dataclass(frozen=True)
class Extractor:
    """Measures models, one loaded at a time.

    Attributes:
        run: Whose base, prompts and settings.
        config: How directions are extracted.
        traits: Whose.
        judge: Who scores answers; None keeps all.
        out: Folder of all models.
        progress: Shows bars.
    """

    run: FinishedRun
    config: ExtractionConfig
    traits: Sequence[TraitPrompts]
    judge: TraitJudge | None
    out: Path
    progress: bool

    def measure(self, name: str, checkpoint: CheckpointConfig) -> None:
        """Loads a model once and writes all that is kept of it."""
        gc.freeze()
        model = load_checkpoint(checkpoint.placed(self.run.config.device, self.run.config.dtype), name)
        if name != BASE:
            self._require_the_bases_tokens(model)
        hooks = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(model.layers))
        harvesting = self.run.harvesting().model_copy(update={"hooks": hooks})
        answers = self._answers(model, name)
        found = {}
        for trait in tqdm(self.traits, desc=f"{name}: traits", disable=not self.progress, leave=False):
            given: dict[TraitPositions, PairAnswers] = {reading: of[trait.name] for reading, of in answers.items()}
            found[trait.name] = trait_means(model, trait, given, self.config.positions, harvesting)
        ranking = prompt_means(model, self.run.ranking_tokens(model), ("prompt",), harvesting)
        own = {trait: dict(given.counts) for trait, given in answers.get(ANSWER, {}).items()}
        made = {
            "checkpoint": checkpoint.model_dump(),
            "fingerprint": model.fingerprint,
            "positions": list(self.config.positions),
            "hooks": list(hooks),
            "kept": own,
        }
        # A bridge refers to itself, and the next checkpoint needs its memory.
        del model
        gc.collect()
        gc.unfreeze()
        ranked = {hook: rows for (_, hook), rows in ranking.items()}
        save_space(self.out, name, found, ranked, made, self.config, self.run.config.seed)

    def _answers(self, model: Checkpoint, name: str) -> dict[TraitPositions, dict[str, PairAnswers]]:
        """For each reading of answers, by trait. A model samples only what is read of it."""
        readings: list[TraitPositions] = [reading for reading in self.config.positions if reading in ANSWERS]
        sampling = answer_sampling(self.run, self.config.samples, self.config.max_new_tokens)
        if ANSWER in readings or (readings and name == BASE):
            write_answers(model, self.traits, sampling, self._file(name), self.progress)
        who: dict[TraitPositions, str] = {reading: name if reading == ANSWER else BASE for reading in readings}
        found = {given: judged_answers(self._file(given), self.traits, self.judge) for given in set(who.values())}
        return {reading: found[given] for reading, given in who.items()}

    def _file(self, name: str) -> Path:
        return self.out / "answers" / f"{name}.jsonl"

    def _require_the_bases_tokens(self, model: Checkpoint) -> None:
        """Directions of two models are compared, so both must read the same tokens."""
        base = outline_checkpoint(self.run.checkpoint(BASE), BASE)
        if base is not None:
            require_same_tokenizer(base, model)
