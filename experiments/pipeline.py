"""The method, from two checkpoints to proven persona latents, as one readable list of stages."""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from activations.artefact import finish_artefact, read_config
from activations.checkpoint import Checkpoint, load_checkpoint, require_same_tokenizer
from activations.checkpoint_files import check_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.harvesting import LiveActivations, batch_tokens_for, harvest
from activations.memory import InMemory
from activations.prompt_files import load_prompts
from activations.prompts import PROMPT_ROLES
from activations.source import ActivationSource
from activations.store import ActivationStore
from activations.tokens import TokenBatch, tokenize_prompts
from diffing import FeatureRanking
from diffing.behavior.capability import exact_match
from diffing.behavior.config import SamplingConfig
from diffing.behavior.contrast import AnswerContrast
from diffing.behavior.judge import Judge, PatternJudge
from diffing.behavior.measure import Behavior, SampledAnswers
from diffing.directions.extract import extract_directions
from diffing.directions.geometry import cosines
from diffing.directions.persona_directions import PersonaDirections
from diffing.positions import Positions
from diffing.ranking.examples import LatentExample, load_examples, save_examples, top_examples
from diffing.ranking.rank import Compared, rank_latents
from diffing.ranking.residual import unexplained_difference
from diffing.ranking.statistics import residual_norm
from diffing.steering.arms import control_arms, direction_arm, latent_arms
from diffing.steering.config import ControlsConfig, ProofConfig
from diffing.steering.experiment import Bench, Half
from diffing.steering.proof import Candidates, Pair, Proof, prove
from experiments.config import RunConfig
from experiments.evaluate_sae import SAEEvaluation
from experiments.interference import Interference, measure_interference
from experiments.organism.build import build_organism
from experiments.organism.judge import OrganismJudge
from experiments.ranking_answers import ANSWERED, write_answers
from experiments.results import BASE, BENIGN, CORRUPTED, Results, write_results
from experiments.run_folder import Log, RunFolder
from experiments.stories.finetune import finetune_stage
from experiments.stories.sample_text import sample_text
from experiments.tracking import Mode, Tracker, start_tracker
from sae.evaluate import decoder_cosines, evaluate_sae
from sae.fit import check_fit, fit_warning
from sae.storage import load_sae, require_fit, save_sae
from sae.training.checkpoint import remove_state
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData
from sae.training.train import train_sae

Stores = dict[tuple[str, str], ActivationSource]  # by (model, prompts)


def run(
    config: RunConfig,
    folder: Path,
    wandb: Mode = "offline",
    overwrite: bool = False,
    progress: bool = True,
    log: Log = print,
) -> dict[str, Any]:
    """Runs the whole method and returns the summary that it also writes to `folder/summary.json`.

    Args:
        config: What to compare, and how.
        folder: Where everything goes; finished stages found there are reused.
        wandb: "offline", "online" or "disabled".
        overwrite: Redo everything.
        progress: Whether to show progress bars.
        log: Receives one line a stage.

    Raises:
        UserError: for input that does not fit together; see each stage.
    """
    torch.manual_seed(config.seed)
    with (
        RunFolder(folder, config.model_dump(mode="json"), overwrite, log) as out,
        start_tracker(folder, config.model_dump(mode="json"), wandb) as tracker,
    ):
        config = make_organism(config, out, progress)
        config = make_finetune(config, out, progress)
        models = load_models(config)
        config = write_sae_text(config, models, out)
        config = answer_ranking_prompts(config, models, out)
        prompts = read_prompts(config, models[BASE])
        stores = harvest_activations(config, models, prompts, out, progress)
        stores |= harvest_benign_null(config, models[BASE], prompts["ranking"], out, progress)
        sae = obtain_sae(config, models[BASE], stores, out, tracker, progress)
        evaluation = measure_sae(config, sae, models, stores, prompts, out, progress)
        directions = find_directions(config, stores, out)
        steered = find_steered_directions(config, stores, out)
        rankings = rank(config, sae, stores, directions, out)
        examples = collect_examples(config, sae, models[BASE], stores, rankings[CORRUPTED], out)
        proofs = prove_by_steering(config, sae, models, stores, steered, rankings, out, progress)
        dragged = find_interference(config, sae, stores, proofs, out, progress)
        rankings = add_verdicts(rankings, proofs, stores, out)
        capability = measure_capability(config, models, out)
        results = Results(config, evaluation, rankings, directions, proofs, capability, dragged)
        summary = write_results(results, sae, examples, out, tracker)
        if tracker.sync_command:
            log(f"to upload the W&B run: {tracker.sync_command}")
    return summary


def make_organism(config: RunConfig, out: RunFolder, progress: bool) -> RunConfig:
    """Builds the organism, if the config asks for one; returns a config that names its checkpoints and prompts."""
    if config.organism is None:
        return config
    organism = config.organism.model_copy(update={"seed": config.seed})
    folder = out.folder / "organism"
    out.stage("organism", lambda: build_organism(organism, folder, progress), folder, lambda: folder)
    made = {name: CheckpointConfig(model=str(folder / name)) for name in (BASE, CORRUPTED, BENIGN)}
    further = (folder / f"benign-{seed}" for seed in range(1, organism.benign_seeds + 1))
    null = tuple(CheckpointConfig(model=str(path)) for path in further if path.is_dir())
    files = config.prompts.within(folder / "prompts")
    return config.model_copy(update={**made, "benign_null": null, "organism": None, "prompts": files})


def make_finetune(config: RunConfig, out: RunFolder, progress: bool) -> RunConfig:
    """Fine-tunes the base, if the config asks for it; returns a config that names the result as corrupted."""
    if config.finetune is None or config.base is None:
        return config
    settings, folder = config.finetune.model_copy(update={"seed": config.seed}), out.folder / "finetune"
    base = config.base.placed(config.device, "float32")
    made = out.stage(
        "fine-tune",
        lambda: finetune_stage(base, settings, folder, progress),
        folder,
        lambda: folder / "corrupted",
    )
    return config.model_copy(update={"corrupted": CheckpointConfig(model=str(made)), "finetune": None})


def write_sae_text(config: RunConfig, models: Mapping[str, Checkpoint], out: RunFolder) -> RunConfig:
    """Lets base and corrupted model write the SAE's text, if asked to; returns a config that names the files."""
    if config.sample_text is None:
        return config
    settings, folder = config.sample_text.model_copy(update={"seed": config.seed}), out.folder / "text"
    writers = [models[BASE], models[CORRUPTED]]
    out.stage("sample text", lambda: sample_text(writers, settings, folder), folder, lambda: folder)
    files = {name: folder / f"{name}.jsonl" for name in ("sae_text", "sae_held_out")}
    return config.model_copy(update={"prompts": config.prompts.model_copy(update=files), "sample_text": None})


def answer_ranking_prompts(config: RunConfig, models: Mapping[str, Checkpoint], out: RunFolder) -> RunConfig:
    """Lets one model answer the ranking prompts, if asked to; returns a config whose ranking prompts have the answers.

    All models then read the same answers, so that latents can be compared on the tokens of answers, too.
    """
    if config.ranking_answers is None:
        return config
    writer, prompts, folder = models[config.ranking_answers], config.prompts.ranking, out.folder / "ranking_answers"
    answers = SamplingConfig(samples=1, max_new_tokens=config.ranking_answer_tokens, seed=config.seed)
    out.stage("sample answers", lambda: write_answers(writer, prompts, answers, folder), folder, lambda: folder)
    answered = config.prompts.model_copy(update={"ranking": folder / ANSWERED})
    return config.model_copy(update={"prompts": answered, "ranking_answers": None})


def load_models(config: RunConfig) -> dict[str, Checkpoint]:
    """Loads base, corrupted and, if there is one, benign checkpoint; they must share tokenizer, hook and width."""
    models: dict[str, Checkpoint] = {}
    for role in (BASE, CORRUPTED, BENIGN):
        named: CheckpointConfig | None = getattr(config, role)
        if named is not None:
            models[role] = _load_beside(config, role, named, models.get(BASE))
    for role, named in config.null_checkpoints.items():
        check_checkpoint(named, role)  # loaded later, but what is missing ends the run here
    return models


def harvested_files(config: RunConfig) -> dict[str, Path]:
    """Every prompt file that activations are harvested on, by its name in `activations/<model>/<name>`."""
    files = config.prompts
    named = {
        "sae_text": files.sae_text if config.sae.train is not None else None,
        "sae_held_out": files.sae_held_out,
        "ranking": files.ranking,
    }
    named |= {f"persona_{persona}": path for persona, path in files.personas.items()}
    return {name: path for name, path in named.items() if path is not None}


def is_harvested(config: RunConfig, role: str, name: str) -> bool:
    """Text for the SAE: of the models that it is trained on; held-out text: of the base; persona prompts: of base and
    corrupted model; ranking prompts: of all models."""
    if name == "sae_text":
        return role in config.sae.shares
    return name == "ranking" or role == BASE or (role == CORRUPTED and name != "sae_held_out")


def read_prompts(config: RunConfig, base: Checkpoint) -> dict[str, TokenBatch]:
    """Tokens of every prompt file that activations are harvested on."""
    return {
        name: tokenize_prompts(load_prompts(path), base.tokenizer, config.max_length)
        for name, path in harvested_files(config).items()
    }


def harvest_activations(
    config: RunConfig,
    models: Mapping[str, Checkpoint],
    prompts: Mapping[str, TokenBatch],
    out: RunFolder,
    progress: bool,
) -> Stores:
    """The stores of all models; `is_harvested` says which. Without `config.store` nothing is kept on disk."""
    settings = harvest_settings(config)
    stores: Stores = {}
    for role, model in models.items():
        for name, tokens in prompts.items():
            if not is_harvested(config, role, name):
                continue
            if not config.store:
                stores[role, name] = LiveActivations(model, tokens, settings)
                continue
            folder = out.folder / "activations" / role / name
            stores[role, name] = out.stage(
                f"harvest {role} {name}",
                lambda m=model, t=tokens, f=folder: harvest(m, t, settings, f, progress),
                folder,
            )
    return stores


def harvest_benign_null(
    config: RunConfig, base: Checkpoint, ranking: TokenBatch, out: RunFolder, progress: bool
) -> Stores:
    """The ranking prompts as the further benign fine-tunes read them; one of these models is in memory at a time."""
    settings = harvest_settings(config)
    stores: Stores = {}
    for role, named in config.null_checkpoints.items():
        folder = out.folder / "activations" / role / "ranking"

        def build(role=role, named=named, folder=folder) -> ActivationSource:
            model = _load_beside(config, role, named, base)
            if config.store:
                return harvest(model, ranking, settings, folder, progress)
            return InMemory.copy_of(LiveActivations(model, ranking, settings), progress=progress)

        stage = f"harvest {role} ranking"
        stores[role, "ranking"] = out.stage(stage, build, folder, lambda f=folder: ActivationStore.load(f))
        gc.collect()  # a bridge refers to itself; the next model needs its memory
    return stores


def obtain_sae(
    config: RunConfig,
    base: Checkpoint,
    stores: Stores,
    out: RunFolder,
    tracker: Tracker,
    progress: bool,
) -> SAE:
    """Trains an SAE on the base's activations (or a mixture), or loads the one that the config names."""
    if config.sae.train is None:
        sae = load_sae(str(config.sae.source), config.device)
        require_fit(sae, config.hook, base.d_model, base.config.model)
        if warning := fit_warning(check_fit(sae, stores[BASE, "sae_held_out"], config.hook)):
            out.log(f"warning: {warning}")
        return sae
    training, folder = config.sae.train.model_copy(update={"seed": config.seed}), out.folder / "sae"
    shares: dict[str, float] = {**config.sae.shares}
    data = TrainingData({role: stores[role, "sae_text"] for role in shares}, config.seed, shares)

    def build() -> SAE:
        def log(name: str, metrics: Mapping[str, float]) -> None:
            tracker.log(name, metrics, step=int(metrics["step"]))

        state = out.folder / "sae_training"
        sae = train_sae(data, config.hook, training, TrainingSetup(config.device, log, progress, checkpoints=state))
        save_sae(sae, folder, config.hook, base.config.model, training.model_dump(), _parents(**data.sources))
        remove_state(state)
        return load_sae(folder, config.device)

    return out.stage("train SAE", build, folder, lambda: load_sae(folder, config.device))


def measure_sae(
    config: RunConfig,
    sae: SAE,
    models: Mapping[str, Checkpoint],
    stores: Stores,
    prompts: Mapping[str, TokenBatch],
    out: RunFolder,
    progress: bool,
) -> SAEEvaluation:
    """Metrics of the SAE on text that it was not trained on, read by the base and by the corrupted model.

    The latents' residual is that of the difference which the ranking shows: on its prompts, at its positions.
    """
    folder, hook, tokens = out.folder / "sae_metrics", config.hook, prompts["sae_held_out"]
    base, before, after = stores[BASE, "sae_held_out"], stores[BASE, "ranking"], stores[CORRUPTED, "ranking"]

    def build() -> SAEEvaluation:
        # Read this once only, so not worth a store.
        corrupted = LiveActivations(models[CORRUPTED], tokens, harvest_settings(config))
        found = SAEEvaluation(
            base=evaluate_sae(sae, models[BASE], base, tokens, hook, progress),
            corrupted=evaluate_sae(sae, models[CORRUPTED], corrupted, tokens, hook, progress),
            decoder=decoder_cosines(sae),
            difference_residual=unexplained_difference(sae, before, after, hook, config.ranking.positions),
        )
        found.save(folder, {"hook": hook}, _parents(activations=base, ranking_base=before, ranking_corrupted=after))
        return found

    return out.stage("evaluate SAE", build, folder, lambda: SAEEvaluation.load(folder))


def find_directions(config: RunConfig, stores: Stores, out: RunFolder) -> dict[str, PersonaDirections]:
    """Dense persona directions of base and corrupted model: those that latents are compared with."""
    settings = config.directions
    if settings is None:
        return {}
    return _extract(config, settings.positions, settings.direction, "directions", stores, out)


def find_steered_directions(config: RunConfig, stores: Stores, out: RunFolder) -> dict[str, PersonaDirections]:
    """The same at the positions from which the model is steered best: those that are steered with."""
    settings = config.directions
    if settings is None or config.steering is None:
        return {}
    return _extract(config, settings.steer_positions, settings.steer, "steered_directions", stores, out)


def _extract(
    config: RunConfig, positions: Positions, named: str, kind: str, stores: Stores, out: RunFolder
) -> dict[str, PersonaDirections]:
    """Directions of base and corrupted model at `positions`; `named` must be among them."""
    assert config.directions is not None
    reference, found = config.directions.reference, {}
    for role in (BASE, CORRUPTED):
        personas = {p: stores[role, f"persona_{p}"] for p in config.prompts.personas}
        folder = out.folder / kind / role

        def build(personas=personas, folder=folder) -> PersonaDirections:
            made = extract_directions(personas, config.hook, reference, positions)
            made.save(folder, _parents(**personas), overwrite=True)
            return made

        title = f"{kind.replace('_', ' ')} {role}"
        found[role] = out.stage(title, build, folder, lambda f=folder: PersonaDirections.load(f))
        found[role].unit(named)  # an unknown name ends the run here, not after an hour of steering
    return found


def rank(
    config: RunConfig,
    sae: SAE,
    stores: Stores,
    directions: Mapping[str, PersonaDirections],
    out: RunFolder,
) -> dict[str, FeatureRanking]:
    """Latents by shift from the base, for the corrupted model (beside the benign one) and for the benign model.

    Both beside the null: how far the latents move in further benign fine-tunes, which differ in their seed only.
    """
    settings = config.ranking.model_copy(update={"seed": config.seed})
    null = {role: stores[role, "ranking"] for role in config.null_checkpoints}
    at = {role: stores[role, "ranking"] for role in (BASE, CORRUPTED, BENIGN) if (role, "ranking") in stores}
    columns = {
        f"cosine_{name}" + ("" if role == BASE else f" ({role})"): cosines(
            sae.W_dec, made.unit(name)[None].to(sae.device)
        )
        for role, made in directions.items()
        for name in made.vectors
    }
    rankings = {}
    for role in at:
        if role == BASE:
            continue
        folder = ranking_folder(out, role)

        def build(role=role, folder=folder) -> FeatureRanking:
            benign = at.get(BENIGN) if role == CORRUPTED else None
            made = rank_latents(sae, Compared(at[BASE], at[role], benign=benign, null=null), config.hook, settings)
            made = made.with_columns({name: c[:, 0].cpu().numpy() for name, c in columns.items()})
            made.save(folder, _parents(**at, **null), overwrite=True)
            return made

        rankings[role] = out.stage(f"rank latents {role}", build, folder, lambda f=folder: FeatureRanking.load(f))
    return rankings


def collect_examples(
    config: RunConfig,
    sae: SAE,
    base: Checkpoint,
    stores: Stores,
    ranking: FeatureRanking,
    out: RunFolder,
) -> dict[int, list[LatentExample]]:
    """Top activating examples of the top latents, in held-out text and in the ranking prompts of both models."""
    shown = config.steering.top if config.steering else 20
    at = {
        "base (text)": stores[BASE, "sae_held_out"],
        "base": stores[BASE, "ranking"],
        "corrupted": stores[CORRUPTED, "ranking"],
    }
    latents = ranking.top(shown)["latent"].astype(int).tolist()
    folder = out.folder / "examples"

    def build() -> dict[int, list[LatentExample]]:
        found = top_examples(sae, at, config.hook, base.tokenizer, latents, config.examples)
        save_examples(found, folder, _parents(**at))
        return found

    return out.stage("examples", build, folder, lambda: load_examples(folder))


def prove_by_steering(
    config: RunConfig,
    sae: SAE,
    models: Mapping[str, Checkpoint],
    stores: Stores,
    steered: Mapping[str, PersonaDirections],
    rankings: Mapping[str, FeatureRanking],
    out: RunFolder,
    progress: bool,
) -> dict[str, Proof]:
    """Steers and judges: in the corrupted model, and by the same code with the benign one in its place."""
    if config.steering is None:
        return {}
    activations = stores[BASE, "ranking"].read(config.hook, PROMPT_ROLES)

    def build(role: str) -> Proof:
        table, folder = rankings[role].to_pandas(), out.folder / "steering" / role
        proof = steer_latents(config, sae, models[BASE], models[role], activations, steered, table, folder, progress)
        finish_artefact(folder, {"kind": "steering"})
        return proof

    # The transcripts hold every judged answer: a finished experiment is read from them, not sampled again.
    return {
        role: out.stage(f"steer {role}", lambda r=role: build(r), out.folder / "steering" / role) for role in rankings
    }


def steer_latents(
    config: RunConfig,
    sae: SAE,
    base: Checkpoint,
    corrupted: Checkpoint,
    activations: Float[Tensor, "rows d_model"],
    steered: Mapping[str, PersonaDirections],
    ranking: pd.DataFrame,
    folder: Path,
    progress: bool,
) -> Proof:
    """The causal proof of one ranking: its top latents, the dense directions and the controls.

    Args:
        config: Whose `steering` says how; it needs a judge.
        sae: Dictionary of the latents.
        base: Model that the latents are added to.
        corrupted: Model that they are subtracted from and ablated in.
        activations: The base's, on prompt tokens: their mean norm is the unit of strengths.
        steered: Directions to steer with, by the model that they were found in.
        ranking: The table of the ranking.
        folder: Transcripts go here.
        progress: Whether to show progress bars.
    """
    assert config.steering is not None
    settings, files = config.steering, config.prompts
    named = config.directions.steer if config.directions else ""
    mean = activations.mean(0)
    bench = Bench(config.hook, float(activations.double().norm(dim=1).mean()), sae, make_behavior(config))
    candidates = Candidates(
        latent_arms(sae, ranking, settings.top),
        [direction_arm(f"{named} ({role})", made.unit(named), mean) for role, made in steered.items()],
        lambda latent: control_arms(
            sae,
            ranking,
            activations,
            latent,
            ControlsConfig(top=settings.top, each=settings.controls, seed=config.seed),
        ),
    )
    return prove(
        Pair(bench, base, corrupted, folder, progress),
        candidates,
        _half("selection", files.selection),
        _half("reporting", files.reporting),
        ProofConfig(
            settings.strongest, settings.halvings, settings.induce_budget, settings.repair_budget, settings.claims
        ),
    )


def find_interference(
    config: RunConfig,
    sae: SAE,
    stores: Stores,
    proofs: Mapping[str, Proof],
    out: RunFolder,
    progress: bool,
) -> Interference | None:
    """Which latents the toxic one drags along when it is added to the base, at the strength that induced the behaviour.

    None if steering found no toxic latent.
    """
    proof = proofs.get(CORRUPTED)
    if proof is None or proof.toxic is None:
        return None
    latent, (strength, _) = proof.toxic.latent, proof.headline["latent_induce"]
    # What never occurs together is seen best in much text; ranking prompts are few.
    text, folder = stores[BASE, "sae_held_out"], out.folder / "interference"
    norm = residual_norm(stores[BASE, "ranking"], config.hook)

    def build() -> Interference:
        found = measure_interference(sae, text, config.hook, latent, strength, "all", norm, progress=progress)
        found.save(folder, _parents(activations=text), overwrite=True)
        return found

    return out.stage("interference", build, folder, lambda: Interference.load(folder))


def add_verdicts(
    rankings: Mapping[str, FeatureRanking], proofs: Mapping[str, Proof], stores: Stores, out: RunFolder
) -> dict[str, FeatureRanking]:
    """The rankings with the verdict columns of the latents that were steered, saved in their place."""
    judged = dict(rankings)
    for role, proof in proofs.items():
        if not proof.verdicts.empty:
            judged[role] = rankings[role].joined(proof.verdicts)
            parents = _parents(**{model: store for (model, prompts), store in stores.items() if prompts == "ranking"})
            judged[role].save(ranking_folder(out, role), parents, overwrite=True)
    return judged


def ranking_folder(out: RunFolder, role: str) -> Path:
    """Where the ranking of a model against the base is kept."""
    return out.folder / ("ranking" if role == CORRUPTED else f"ranking_{role}")


def measure_capability(config: RunConfig, models: Mapping[str, Checkpoint], out: RunFolder) -> dict[str, float]:
    """Share of exact answers to the capability questions, by model."""
    path = config.prompts.capability
    if path is None or config.steering is None:
        return {}
    questions = load_prompts(path)
    sampling = config.steering.sampling.model_copy(update={"seed": config.seed})
    folder = out.folder / "capability"

    def build() -> dict[str, float]:
        rates = {role: exact_match(model, questions, sampling) for role, model in models.items()}
        folder.mkdir(exist_ok=True)
        finish_artefact(folder, {"kind": "capability", "exact_match": rates})
        return rates

    return out.stage("capability", build, folder, lambda: read_config(folder, "capability")["exact_match"])


def make_behavior(config: RunConfig) -> Behavior:
    """How the config measures behaviour: answers sampled as for steering and judged, or given answers compared."""
    if config.judge is not None and config.judge.kind == "contrast" and config.judge.file is not None:
        return AnswerContrast.load(config.judge.file)
    assert config.steering is not None
    return SampledAnswers(make_judge(config), config.steering.sampling.model_copy(update={"seed": config.seed}))


def make_judge(config: RunConfig) -> Judge:
    """The judge that the config names."""
    if config.judge is not None and config.judge.kind == "patterns" and config.judge.file is not None:
        return PatternJudge.load(config.judge.file)
    assert config.prompts.selection is not None  # RunConfig checks that whatever is judged has its questions
    return OrganismJudge.load(config.prompts.selection.parent)


def _load_beside(config: RunConfig, role: str, named: CheckpointConfig, base: Checkpoint | None) -> Checkpoint:
    """A checkpoint that has the hook and shares the base's tokenizer (None: it is the base itself)."""
    model = load_checkpoint(named.placed(config.device, config.dtype), role)
    model.require_hook(config.hook)
    if base is not None:
        require_same_tokenizer(base, model)
    return model


def harvest_settings(config: RunConfig) -> HarvestConfig:
    """How activations are computed."""
    batch_tokens = config.batch_tokens or batch_tokens_for(config.device)
    return HarvestConfig(hooks=(config.hook,), dtype=config.store_dtype, batch_tokens=batch_tokens)


def _parents(**sources: ActivationSource) -> dict[str, Path]:
    """The folders of those activations that are on disk."""
    return {name: source.origin for name, source in sources.items() if source.origin is not None}


def _half(name: str, path: Path | None) -> Half:
    assert path is not None  # RunConfig checks that steering has both halves
    return Half(name, load_prompts(path))
