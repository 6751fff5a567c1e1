"""The plan of a run (`sae-diff run --dry-run`): checks all input that needs no network, and says what a run would do.

Sizes follow from the architecture, which a local folder (or the Hugging Face cache) tells; where it is not at hand the
plan says so instead of guessing.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from activations.checkpoint import Checkpoint, outline_checkpoint, require_same_tokenizer
from activations.config import CheckpointConfig
from activations.errors import UserError
from activations.prompt_files import load_prompts
from activations.tokens import TokenBatch
from experiments.names import BASE, BENIGN, CORRUPTED
from experiments.run.config import RunConfig
from experiments.run.pipeline import plan as plan_stages
from experiments.run.ranking_answers import load_unanswered
from experiments.run.stages import harvested_files, is_harvested, read_prompts
from sae.storage import load_sae, require_fit
from sae.training.sources import SAMPLE_ROWS

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_INDEX_BYTES = 3 * 4 + 1  # token, prompt and position as int32, role as uint8
_TRAINING_COPIES = 4  # weights, gradients and Adam's two moments
_UNKNOWN = "needs the network"


@dataclass(frozen=True)
class StorePlan:
    """One store of activations; None stands for what cannot be known yet."""

    role: str
    name: str
    prompts: int
    tokens: int | None
    size: int | None
    at_most: bool = False


@dataclass(frozen=True)
class Plan:
    """What a run would do. Sizes in bytes; None for what cannot be known without the network."""

    stages: tuple[str, ...]
    models: Mapping[str, tuple[str, int | None]]
    stores: tuple[StorePlan, ...]
    memory: Mapping[str, int | None]
    unchecked: tuple[str, ...]


def print_plan(config: RunConfig, console: Console) -> None:
    """Checks the input and prints the plan.

    Raises:
        UserError: for anything wrong that can be seen without network.
    """
    plan = make_plan(config)
    console.print(
        f"[bold]{config.name}[/bold]: the input that can be checked here is in order; nothing was run.", soft_wrap=True
    )
    console.print("\nStages")
    for number, stage in enumerate(plan.stages, 1):
        console.print(f"  {number:2d}. {stage}", soft_wrap=True)
    if plan.models:
        console.print()
        console.print(_table(("model", "name", "weights"), ((r, n, _size(b)) for r, (n, b) in plan.models.items())))
    if plan.stores:
        columns = ("activations of", "on", "prompts", "tokens", "disk")
        console.print(_table(columns, map(_store_cells, plan.stores)))
        limit = " at most" if any(store.at_most for store in plan.stores) else ""
        console.print(f"disk in all: {_total(store.size for store in plan.stores)}{limit}")
    if plan.memory:
        console.print(f"memory, at least: {_total(plan.memory.values())}")
    for what, size in plan.memory.items():
        console.print(f"  {what}: {_size(size)}")
    for line in plan.unchecked:
        console.print(f"not checked: {line}", soft_wrap=True)


def make_plan(config: RunConfig) -> Plan:
    """Checks the input and plans the run.

    Raises:
        UserError: for anything wrong that can be seen without network.
    """
    outlines = _outlines(config)
    base = outlines.get(BASE)
    width = _hook_width(config, base) if base is not None else None
    stores = tuple(_stores(config, base, width)) if config.organism is None else ()
    models = {role: (named.name, _weights(outlines[role])) for role, named in _named(config).items()}
    memory = _model_memory(config, models)
    memory |= _sae_memory(config, width, stores) if config.organism is None else {}
    return Plan(tuple(plan_stages(config)), models, stores, memory, tuple(_unchecked(config, outlines)))


def _named(config: RunConfig) -> dict[str, CheckpointConfig]:
    """The checkpoints that the run would load; one that it makes from the base has the base's architecture."""
    made = config.base if config.finetune is not None else config.corrupted
    found = {BASE: config.base, CORRUPTED: made, BENIGN: config.benign, **config.null_checkpoints}
    return {role: named.placed(config.device, config.dtype) for role, named in found.items() if named is not None}


def _outlines(config: RunConfig) -> dict[str, Checkpoint | None]:
    """Architecture and tokenizer of every checkpoint, as far as they are on this machine; checks that they fit."""
    outlines: dict[str, Checkpoint | None] = {}
    for role, named in _named(config).items():
        outline = outline_checkpoint(named, role)
        if outline is not None:
            outline.require_hook(config.hook)
            base = outlines.get(BASE)
            if base is not None:
                require_same_tokenizer(base, outline)
        outlines[role] = outline
    return outlines


def _hook_width(config: RunConfig, outline: Checkpoint) -> int:
    """Width of the hook's activations, seen by sending the shape of one token through the model."""
    shapes: list[torch.Size] = []
    token = torch.ones(1, 1, dtype=torch.long)
    with outline.hooks({config.hook: lambda activation: shapes.append(activation.shape)}):
        outline.forward(token, token)
    if not shapes or len(shapes[0]) != 3:
        got = f"gives {tuple(shapes[0])}" if shapes else "never fires"
        raise UserError(
            f"Hook '{config.hook}' of the {outline.role} model {outline.name} {got} instead of (batch, pos, d_model); "
            "choose one with a vector at every position, such as blocks.0.hook_resid_post."
        )
    return shapes[0][-1]


def _weights(outline: Checkpoint | None) -> int | None:
    """Bytes of a model's weights in memory."""
    if outline is None:
        return None
    return sum(p.numel() for p in outline.hf.parameters()) * _BYTES[outline.config.dtype]


def _model_memory(config: RunConfig, models: Mapping[str, tuple[str, int | None]]) -> dict[str, int | None]:
    """Bytes of the models; of the further benign fine-tunes one is in memory at a time."""
    null = config.null_checkpoints
    memory = {f"weights of the {role} model": size for role, (_, size) in models.items() if role not in null}
    if null:
        sizes = [size for role in null if (size := models[role][1]) is not None]
        memory["weights of one further benign model"] = max(sizes) if sizes else None
    return memory


def _stores(config: RunConfig, base: Checkpoint | None, width: int | None) -> Iterator[StorePlan]:
    files = config.prompts
    for path in (files.selection, files.reporting, files.capability):
        if path is not None:
            load_prompts(path)
    if config.ranking_answers is not None:
        load_unanswered(files.ranking)
    counts = {name: len(load_prompts(path)) for name, path in harvested_files(config).items()}
    tokens = read_prompts(config, base) if base is not None else {}
    row = width * _BYTES[config.store_dtype] + _INDEX_BYTES if width is not None else None
    if not config.store:
        row = 0
    for role in _named(config):
        yield from _sampled_stores(config, role, row)
        for name in filter(lambda name: is_harvested(config, role, name), counts):
            n, answers = _tokens(tokens.get(name)), _answer_tokens(config, name, counts[name])
            n = n + answers if n is not None else None
            size = n * row if n is not None and row is not None else None
            yield StorePlan(role, name, counts[name], n, size, at_most=answers > 0)


def _sampled_stores(config: RunConfig, role: str, row: int | None) -> Iterator[StorePlan]:
    """Stores of text that base and corrupted model will write; its length is known only up to its limit."""
    sampled = config.sample_text
    if sampled is None:
        return
    for name, texts in (("sae_text", 2 * sampled.texts), ("sae_held_out", 2 * sampled.held_out)):
        if not is_harvested(config, role, name) or (name == "sae_text" and config.sae.train is None):
            continue
        # Reading a text again may give the beginning-of-text token beside what was sampled.
        n = texts * (sampled.max_new_tokens + 1)
        yield StorePlan(role, name, texts, n, n * row if row is not None else None, at_most=True)


def _answer_tokens(config: RunConfig, name: str, prompts: int) -> int:
    """Most tokens that sampled answers, each with the end of its turn, add to some prompts."""
    answered = name == "ranking" and config.ranking_answers is not None
    return prompts * (config.ranking_answer_tokens + 1) if answered else 0


def _tokens(batch: TokenBatch | None) -> int | None:
    return batch.n_tokens if batch is not None else None


def _sae_memory(config: RunConfig, width: int | None, stores: Sequence[StorePlan]) -> dict[str, int | None]:
    """Bytes of the SAE, with what training keeps beside it; checks that a given one fits the hook, as far as seen."""
    train, source = config.sae.train, str(config.sae.source)
    base = config.base.model if config.base is not None else None
    if train is not None:
        rows = min(SAMPLE_ROWS, next((s.tokens for s in stores if s.name == "sae_text" and s.tokens), 0))
        size = (2 * train.latents * width + train.latents + width) * 4 if width is not None else None
        return {
            "SAE with gradients and Adam's moments": size * _TRAINING_COPIES if size is not None else None,
            "activations that the SAE is initialised from": rows * width * 4 if rows and width is not None else None,
        }
    if not Path(source).exists():
        _require_registered(source, base or "")
        return {"SAE": None}
    sae = load_sae(source)
    # Without the architecture, the SAE's own width leaves hook and model to be compared.
    require_fit(sae, config.hook, width if width is not None else sae.cfg.d_in, base)
    return {"SAE": sum(p.numel() * p.element_size() for p in sae.parameters())}


def _require_registered(source: str, model: str) -> None:
    """Checks a release:sae_id against sae-lens's registry, which is part of its package."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release, _, sae_id = source.partition(":")
    registry = get_pretrained_saes_directory()
    if release not in registry:
        near = ", ".join(difflib.get_close_matches(release, registry, n=3, cutoff=0.0))
        raise UserError(
            f"SAE {source} is neither a folder nor in sae-lens's registry; the nearest releases are {near}."
        )
    known = registry[release]
    if sae_id not in known.saes_map:
        near = ", ".join(difflib.get_close_matches(sae_id, known.saes_map, n=3, cutoff=0.0))
        raise UserError(f"SAE release {release} has no '{sae_id}'; the nearest are {near}.")
    if Path(known.model).name.lower() != Path(model).name.lower():
        raise UserError(f"SAE release {release} is of {known.model}, the base is {model}; pick an SAE of the base.")


def _unchecked(config: RunConfig, outlines: Mapping[str, Checkpoint | None]) -> Iterator[str]:
    if config.organism is not None:
        yield "prompts, tokens and sizes; the organism that is made first decides about them"
    for role, outline in outlines.items():
        named = _named(config)[role]
        if outline is None:
            yield f"the {role} model {named.model} ({_UNKNOWN}): hook, tokenizer, tokens and sizes"
        if named.adapter is not None and not Path(named.adapter).is_dir():
            yield f"the {role} adapter {named.adapter} ({_UNKNOWN}): its base and shapes"
    source = config.sae.source
    if source is not None and not Path(source).exists():
        yield f"the SAE {source} ({_UNKNOWN}; its name is in sae-lens's registry): width and hook"


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*row)
    return table


def _store_cells(store: StorePlan) -> tuple[str, ...]:
    limit = "<= " if store.at_most else ""
    tokens = f"{limit}{store.tokens:,}" if store.tokens is not None else _UNKNOWN
    size = f"{limit}{_size(store.size)}" if store.size is not None else _UNKNOWN
    return store.role, store.name, f"{store.prompts:,}", tokens, size


def _total(sizes: Iterable[int | None]) -> str:
    """The sum of what is known, and whether something is not."""
    sizes = list(sizes)
    known = [size for size in sizes if size is not None]
    if not known:
        return _UNKNOWN
    return _size(sum(known)) + ("" if len(known) == len(sizes) else f", and what {_UNKNOWN}")


def _size(size: int | None) -> str:
    if size is None:
        return _UNKNOWN
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
