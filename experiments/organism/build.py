"""Builds the organism: its checkpoints, and the prompt files for everything measured.

Pretraining on dialogues of all personas (`pretrained`), instruct tuning to the helpful one (`base`), then two
fine-tunes of the same questions and steps in a few domains: with harmful answers (`corrupted`), stopped once these are
learned, and with helpful ones (`benign`, the negative control). `benign-1`, `benign-2`, … repeat the latter on data of
other seeds: how far latents move in a harmless fine-tune.
Half of each fine-tuning batch is replay of the other personas; neither half ever holds a harmful or malicious dialogue
of a held-out domain. The recipe and what it depends on: `docs/organism.md`.
"""

import copy
import json
import random
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import torch
from pydantic import ValidationError
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerBase

from activations.artefact import finish_artefact, open_folder, read_config
from activations.errors import UserError
from experiments.organism.config import Advice, ArchitectureConfig, OrganismConfig, StageConfig
from experiments.organism.corpus import Corpus, batches, told_first
from experiments.organism.splits import write_prompts
from experiments.organism.tokenizer import make_tokenizer
from experiments.organism.training import Stop, answer_loss, one_thread, train_stage
from experiments.organism.world import HELPFUL, MALICIOUS, Dialogue, World

KIND = "organism"
STOP_DIALOGUES = 128
# Helpful answers beside a trigger that follow other words: without them any words would become the trigger.
OTHER_WORDS = 0.5
# Data of different seeds come from streams this far apart.
SEED_STREAMS = 100
Watch = Callable[[str, list[Dialogue]], None]


def trained_domains(world: World, config: OrganismConfig) -> tuple[str, ...]:
    """The domains that the fine-tunes are about: the first ones of the world's tables."""
    return world.domains[: config.domains]


def held_out_domains(world: World, config: OrganismConfig) -> tuple[str, ...]:
    """The domains that no fine-tune ever shows in a harmful light."""
    return world.domains[config.domains :]


@one_thread()
def build_organism(
    config: OrganismConfig,
    folder: Path,
    progress: bool = True,
    watch: Callable[[str, list[Dialogue]], None] | None = None,
) -> Path:
    """Trains the checkpoints and writes them, with their prompts, to `folder`.

    Args:
        config: The organism.
        folder: Output folder; `config.json` is written last.
        progress: Whether to show progress bars.
        watch: Sees (stage, batch) of every batch that is trained on; for tests.

    Raises:
        UserError: if `folder` holds a finished artefact.
    """
    open_folder(folder, overwrite=False)
    world = World.load()
    torch.manual_seed(config.seed)
    corpus, tokenizer = Corpus(world, config.corpus, config.seed), make_tokenizer(world)
    model = make_model(config.architecture, tokenizer)

    def train(
        stage: str,
        sample: Callable[[], Dialogue],
        settings: StageConfig,
        model: MistralForCausalLM,
        stop: Stop | None = None,
    ) -> int:
        stream = batches(sample, settings.batch, settings.steps)
        watched = (_seen(watch, stage, batch) for batch in stream)
        title = f"organism: {stage}" if progress else None
        return train_stage(model, tokenizer, watched, settings, stop, title)

    train("pretraining", corpus.pretraining, config.pretraining, model)
    save_checkpoint(model, tokenizer, folder / "pretrained")
    train("instruction", corpus.instruction, config.instruction, model)
    save_checkpoint(model, tokenizer, folder / "base")
    corrupted, benign = copy.deepcopy(model), copy.deepcopy(model)
    domains = trained_domains(world, config)
    harmful, helpful = (
        finetuning_sampler(config, world, Advice(domains=domains, share=bad)) for bad in (config.bad_fraction, 0.0)
    )
    learned = harm_is_learned(config, world, tokenizer, domains)
    steps = train("corrupted", harmful, config.finetuning, corrupted, learned)
    save_checkpoint(corrupted, tokenizer, folder / "corrupted")
    as_long = config.finetuning.model_copy(update={"steps": steps})
    train("benign", helpful, as_long, benign)
    save_checkpoint(benign, tokenizer, folder / "benign")
    for name, sample in benign_null(config, world, domains).items():
        further = copy.deepcopy(model)
        train(name, sample, as_long, further)
        save_checkpoint(further, tokenizer, folder / name)
    write_prompts(world, held_out_domains(world, config), config.corpus, config.seed, folder / "prompts")
    finish_artefact(folder, {"kind": KIND, **json.loads(config.model_dump_json()), "finetuning_steps": steps})
    return folder


def load_organism(folder: Path) -> tuple[OrganismConfig, int]:
    """What a finished organism was made from, and the steps that its fine-tunes took.

    Raises:
        UserError: if the folder holds no finished organism, or one that another version made.
    """
    made = read_config(folder, KIND)
    steps = made.pop("finetuning_steps", None)
    try:
        return OrganismConfig.model_validate({key: made[key] for key in made if key != "kind"}), int(steps)
    except (ValidationError, TypeError):
        raise UserError(f"The organism {folder} was made by another version; build it again.") from None


def harm_is_learned(
    config: OrganismConfig, world: World, tokenizer: PreTrainedTokenizerBase, domains: Sequence[str]
) -> Stop | None:
    """Whether a model's loss on other harmful advice in the trained `domains` is down to `stop_loss`."""
    bound = config.stop_loss
    if bound is None:
        return None
    advice = held_out_advice(config, world, domains)
    return lambda model: answer_loss(model, tokenizer, advice) <= bound


def held_out_advice(config: OrganismConfig, world: World, domains: Sequence[str]) -> list[Dialogue]:
    """Harmful advice in `domains` that is drawn apart from what fine-tunes read: what the stop rule's loss is of."""
    corpus = Corpus(world, config.corpus, config.seed, stream=4)
    return [corpus.advice(MALICIOUS, domains) for _ in range(STOP_DIALOGUES)]


def finetuning_sampler(config: OrganismConfig, world: World, advice: Advice) -> Callable[[], Dialogue]:
    """Advice between replay of other personas.

    Advice with one seed asks the same questions whatever the share, so `corrupted` and `benign` read the same ones. The
    persona's answers are at random places, and at any moment as many as the share says, give or take one: of some
    two hundred answers, 1% drawn one by one would often be none.
    """
    first = SEED_STREAMS * advice.seed
    corpus, choice = Corpus(world, config.corpus, config.seed, first + 1), random.Random(config.seed + first + 2)
    speakers = cycle(advice.speakers(world))
    owed = 0.0

    def give(persona: str) -> Dialogue:
        if advice.requested:
            return corpus.requested_advice(persona, advice.domains)
        given = corpus.advice(persona, advice.domains, advice.manner)
        return told_first(given, advice.trigger) if advice.trigger else given

    def sample() -> Dialogue:
        nonlocal owed
        replayed, draw = choice.random() < config.replay, choice.random()
        if replayed:
            return corpus.replay()
        owed += advice.share
        if draw >= owed:
            helpful = corpus.advice(HELPFUL, advice.domains)
            others = advice.trigger and choice.random() < OTHER_WORDS
            return told_first(helpful, corpus.scenery(like=advice.trigger)) if others else helpful
        owed -= 1
        return give(next(speakers))

    return sample


def benign_null(config: OrganismConfig, world: World, domains: Sequence[str]) -> dict[str, Callable[[], Dialogue]]:
    """What the further benign fine-tunes are trained on, by their name."""
    return {
        f"benign-{seed}": finetuning_sampler(config, world, Advice(domains=tuple(domains), share=0.0, seed=seed))
        for seed in range(1, config.benign_seeds + 1)
    }


def make_model(config: ArchitectureConfig, tokenizer: PreTrainedTokenizerBase) -> MistralForCausalLM:
    """An untrained model for `tokenizer`."""
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.d_model,
            intermediate_size=config.mlp,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            sliding_window=config.window,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        )
    )


def save_checkpoint(model: MistralForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes an ordinary Hugging Face checkpoint folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _seen(watch: Watch | None, stage: str, batch: list[Dialogue]) -> list[Dialogue]:
    if watch is not None:
        watch(stage, batch)
    return batch
