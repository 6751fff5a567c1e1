"""The base of an organism's run, which fine-tunes start from and are compared with."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from sae_lens import SAE
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from activations.checkpoint import load_checkpoint
from activations.harvest import LiveActivations
from activations.memory import InMemory
from diffing.behavior.measure import Behavior
from diffing.ranking.activation_means import residual_norm
from diffing.steering.experiment import Bench
from experiments.organism.run import OrganismRun
from experiments.results import BASE


@dataclass(frozen=True)
class Base:
    """The base of a run, its SAE, and its activations on the ranking prompts."""

    run: OrganismRun

    @property
    def folder(self) -> Path:
        return self.run.folder / "organism" / BASE

    @property
    def hook(self) -> str:
        """Where models are steered, and what the SAE reads."""
        return self.run.config.hook

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def sae(self) -> SAE:
        return self.run.sae()

    @cached_property
    def activations(self) -> InMemory:
        """On the ranking prompts."""
        base = load_checkpoint(self.run.checkpoint(BASE), BASE)
        live = LiveActivations(base, self.run.ranking_tokens(base), self.run.harvesting())
        return InMemory.copy_of(live, progress=False)

    @cached_property
    def residual_norm(self) -> float:
        """The unit of strengths."""
        return residual_norm(self.activations, self.hook)

    def bench(self, behavior: Behavior) -> Bench:
        """What models are steered and asked with."""
        return Bench(self.hook, self.residual_norm, self.sae, behavior)

    def copy(self) -> PreTrainedModel:
        """A copy of the model to train."""
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
