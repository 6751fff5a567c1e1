"""The stages of a run: each one step of the method, and what the plan says about it."""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

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
from diffing.behavior.capability import exact_match
from diffing.behavior.config import SamplingConfig
from diffing.directions.extract import extract_directions
from diffing.directions.persona_directions import PersonaDirections
from diffing.geometry import cosines
from diffing.positions import Positions
from diffing.ranking.config import InterferenceConfig
from diffing.ranking.examples import LatentExample, load_examples, save_examples, top_examples
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.ranking.interference_table import Interference, measure_interference
from diffing.ranking.rank import Compared, rank_latents
from diffing.ranking.residual import unexplained_difference
from diffing.steering.proof import Proof
from experiments.names import BASE, BENIGN, CORRUPTED
from experiments.organism.build import build_organism
from experiments.run.config import RunConfig
from experiments.run.ranking_answers import write_answers
from experiments.run.state import RunState, parents, stage
from experiments.run.steering import Steering
from experiments.stories.finetune import finetune_stage
from experiments.stories.sample_text import sample_text
from sae.evaluate import decoder_cosines, evaluate_sae
from sae.evaluation import SAEEvaluation
from sae.fit import check_fit, fit_warning
from sae.storage import load_sae, require_fit, save_sae
from sae.training.checkpoint import remove_state
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData
from sae.training.train import train_sae

if TYPE_CHECKING:
    from sae_lens import SAE


def _plan_organism(config: RunConfig) -> str | None:
    if config.organism is None:
        return None
    null = f" and {config.organism.benign_seeds} further benign" if config.organism.benign_seeds else ""
    return f"organism: make base, corrupted, benign{null} checkpoints and all prompts -> organism/"


@stage(_plan_organism)
def make_organism(run: RunState) -> None:
    """Builds the organism; the config then names its checkpoints and prompts."""
    assert run.config.organism is not None
    organism = run.config.organism.model_copy(update={"seed": run.config.seed})
    folder = run.out.folder / "organism"
    run.out.stage("organism", lambda: build_organism(organism, folder, run.progress), folder, lambda: folder)
    made = {name: CheckpointConfig(model=str(folder / name)) for name in (BASE, CORRUPTED, BENIGN)}
    further = (folder / f"benign-{seed}" for seed in range(1, organism.benign_seeds + 1))
    null = tuple(CheckpointConfig(model=str(path)) for path in further if path.is_dir())
    files = run.config.prompts.within(folder / "prompts")
    run.replace(**made, benign_null=null, organism=None, prompts=files)


@stage(lambda c: None if c.finetune is None else f"fine-tune the base on {c.finetune.text} -> finetune/corrupted")
def make_finetune(run: RunState) -> None:
    """Fine-tunes the base; the config then names the result as corrupted."""
    config = run.config
    assert config.finetune is not None
    assert config.base is not None
    settings, folder = config.finetune.model_copy(update={"seed": config.seed}), run.out.folder / "finetune"
    base = config.base.placed(config.device, "float32")
    made = run.out.stage(
        "fine-tune",
        lambda: finetune_stage(base, settings, folder, run.progress),
        folder,
        lambda: folder / "corrupted",
    )
    run.replace(corrupted=CheckpointConfig(model=str(made)), finetune=None)


@stage(lambda c: f"load the models on {c.device} as {c.dtype}, adapters merged; compare tokenizers")
def load_models(run: RunState) -> None:
    """Loads base, corrupted and, if there is one, benign checkpoint; they must share tokenizer, hook and width."""
    for role in (BASE, CORRUPTED, BENIGN):
        named: CheckpointConfig | None = getattr(run.config, role)
        if named is not None:
            run.models[role] = _load_beside(run.config, role, named, run.models.get(BASE))
    for role, named in run.config.null_checkpoints.items():
        check_checkpoint(named, role)  # loaded later, but what is missing ends the run here


@stage(lambda c: None if c.sample_text is None else "let base and corrupted model write the SAE's text -> text/")
def write_sae_text(run: RunState) -> None:
    """Lets base and corrupted model write the SAE's text; the config then names the files."""
    assert run.config.sample_text is not None
    settings, folder = run.config.sample_text.model_copy(update={"seed": run.config.seed}), run.out.folder / "text"
    writers = [run.models[BASE], run.models[CORRUPTED]]
    run.out.stage("sample text", lambda: sample_text(writers, settings, folder), folder, lambda: folder)
    files = {name: folder / f"{name}.jsonl" for name in ("sae_text", "sae_held_out")}
    run.replace(prompts=run.config.prompts.model_copy(update=files), sample_text=None)


@stage(
    lambda c: (
        None
        if c.ranking_answers is None
        else f"let the {c.ranking_answers} model answer the ranking prompts -> ranking_answers/"
    )
)
def answer_ranking_prompts(run: RunState) -> None:
    """Lets one model answer the ranking prompts; the config's ranking prompts then have the answers.

    All models then read the same answers, so that latents can be compared on the tokens of answers, too.
    """
    config, answered = run.config, run.config.within(run.out.folder).prompts.ranking
    assert config.ranking_answers is not None
    writer, prompts, folder = run.models[config.ranking_answers], config.prompts.ranking, answered.parent
    answers = SamplingConfig(samples=1, max_new_tokens=config.ranking_answer_tokens, seed=config.seed)
    run.out.stage("sample answers", lambda: write_answers(writer, prompts, answers, folder), folder, lambda: folder)
    run.replace(prompts=config.prompts.model_copy(update={"ranking": answered}), ranking_answers=None)


def _plan_harvest(config: RunConfig) -> str:
    kept = "-> activations/" if config.store else "whenever it is read; nothing is kept"
    return f"harvest {config.hook} as {config.store_dtype} {kept}"


@stage(_plan_harvest)
def harvest_activations(run: RunState) -> None:
    """The stores of all models; `is_harvested` says which. Without `config.store` nothing is kept on disk."""
    run.prompts = read_prompts(run.config, run.base)
    settings = harvest_settings(run.config)
    for role, model in run.models.items():
        for name, tokens in run.prompts.items():
            if not is_harvested(run.config, role, name):
                continue
            if not run.config.store:
                run.stores[role, name] = LiveActivations(model, tokens, settings)
                continue
            folder = run.out.folder / "activations" / role / name
            run.stores[role, name] = run.out.stage(
                f"harvest {role} {name}",
                lambda m=model, t=tokens, f=folder: harvest(m, t, settings, f, run.progress),
                folder,
            )


def _plan_benign_null(config: RunConfig) -> str | None:
    count = config.organism.benign_seeds if config.organism else len(config.benign_null)
    return f"harvest {count} further benign fine-tunes on the ranking prompts: how far latents move" if count else None


@stage(_plan_benign_null)
def harvest_benign_null(run: RunState) -> None:
    """The ranking prompts as the further benign fine-tunes read them; one of these models is in memory at a time."""
    settings, tokens = harvest_settings(run.config), run.prompts["ranking"]
    for role, named in run.config.null_checkpoints.items():
        folder = run.out.folder / "activations" / role / "ranking"

        def build(role=role, named=named, folder=folder) -> ActivationSource:
            model = _load_beside(run.config, role, named, run.base)
            if run.config.store:
                return harvest(model, tokens, settings, folder, run.progress)
            return InMemory.copy_of(LiveActivations(model, tokens, settings), progress=run.progress)

        name = f"harvest {role} ranking"
        run.stores[role, "ranking"] = run.out.stage(name, build, folder, lambda f=folder: ActivationStore.load(f))
        gc.collect()  # a bridge refers to itself; the next model needs its memory


def _plan_sae(config: RunConfig) -> str:
    train = config.sae.train
    if train is None:
        return f"load SAE {config.sae.source}"
    return f"train the SAE: {train.latents} latents, k={train.k} -> sae/"


@stage(_plan_sae)
def obtain_sae(run: RunState) -> None:
    """Trains an SAE on the base's activations (or a mixture), or loads the one that the config names."""
    config, folder = run.config, run.out.folder / "sae"
    if config.sae.train is None:
        run.sae = load_sae(str(config.sae.source), config.device)
        require_fit(run.sae, config.hook, run.base.d_model, run.base.config.model)
        if warning := fit_warning(check_fit(run.sae, run.stores[BASE, "sae_held_out"], config.hook)):
            run.out.log(f"warning: {warning}")
        return
    run.sae = run.out.stage("train SAE", lambda: _train(run, folder), folder, lambda: load_sae(folder, config.device))


def _train(run: RunState, folder: Path) -> "SAE":
    config = run.config
    assert config.sae.train is not None
    training, shares = config.sae.train.model_copy(update={"seed": config.seed}), {**config.sae.shares}
    data = TrainingData({role: run.stores[role, "sae_text"] for role in shares}, config.seed, dict(shares))

    def log(name: str, metrics: Mapping[str, float]) -> None:
        run.tracker.log(name, metrics, step=int(metrics["step"]))

    state = run.out.folder / "sae_training"
    sae = train_sae(data, config.hook, training, TrainingSetup(config.device, log, run.progress, checkpoints=state))
    save_sae(sae, folder, config.hook, run.base.config.model, training.model_dump(), parents(**data.sources))
    remove_state(state)
    return load_sae(folder, config.device)


@stage(lambda c: "evaluate the SAE on held-out text, read by base and corrupted model -> sae_metrics/")
def measure_sae(run: RunState) -> None:
    """Metrics of the SAE on text that it was not trained on, read by the base and by the corrupted model.

    The latents' residual is that of the difference which the ranking shows: on its prompts, at its positions.
    """
    folder, hook, tokens = run.out.folder / "sae_metrics", run.config.hook, run.prompts["sae_held_out"]
    text = run.stores[BASE, "sae_held_out"]
    before, after = run.stores[BASE, "ranking"], run.stores[CORRUPTED, "ranking"]

    def build() -> SAEEvaluation:
        # Read this once only, so not worth a store.
        corrupted = LiveActivations(run.models[CORRUPTED], tokens, harvest_settings(run.config))
        found = SAEEvaluation(
            base=evaluate_sae(run.sae, run.base, text, tokens, hook, run.progress),
            corrupted=evaluate_sae(run.sae, run.models[CORRUPTED], corrupted, tokens, hook, run.progress),
            decoder=decoder_cosines(run.sae),
            difference_residual=unexplained_difference(run.sae, before, after, hook, run.config.ranking.positions),
        )
        found.save(folder, {"hook": hook}, parents(activations=text, ranking_base=before, ranking_corrupted=after))
        return found

    run.evaluation = run.out.stage("evaluate SAE", build, folder, lambda: SAEEvaluation.load(folder))


@stage(
    lambda c: (
        f"persona directions, led by {c.directions.direction} -> directions/, steered_directions/"
        if c.directions
        else None
    )
)
def find_directions(run: RunState) -> None:
    """Dense persona directions of base and corrupted model: those that latents are compared with, and those that are
    steered with, read where the model is steered best."""
    settings = run.config.directions
    assert settings is not None
    run.directions = _extract(run, settings.positions, settings.direction, "directions")
    if run.config.steering is not None:
        run.steered = _extract(run, settings.steer_positions, settings.steer, "steered_directions")


def _extract(run: RunState, positions: Positions, named: str, kind: str) -> dict[str, PersonaDirections]:
    """Directions of base and corrupted model at `positions`; `named` must be among them."""
    assert run.config.directions is not None
    reference, found = run.config.directions.reference, {}
    for role in (BASE, CORRUPTED):
        personas = {p: run.stores[role, f"persona_{p}"] for p in run.config.prompts.personas}
        folder = run.out.folder / kind / role

        def build(personas=personas, folder=folder) -> PersonaDirections:
            made = extract_directions(personas, run.config.hook, reference, positions)
            made.save(folder, parents(**personas), overwrite=True)
            return made

        title = f"{kind.replace('_', ' ')} {role}"
        found[role] = run.out.stage(title, build, folder, lambda f=folder: PersonaDirections.load(f))
        found[role].unit(named)  # an unknown name ends the run here, not after an hour of steering
    return found


def _plan_ranking(config: RunConfig) -> str:
    return f"rank latents by shift over {config.ranking.positions} positions, with top examples -> ranking/"


@stage(_plan_ranking)
def rank(run: RunState) -> None:
    """Latents by shift from the base, for the corrupted model (beside the benign one) and for the benign model.

    Both beside the null: how far the latents move in further benign fine-tunes, which differ in their seed only.
    """
    settings = run.config.ranking.model_copy(update={"seed": run.config.seed})
    null = {role: run.stores[role, "ranking"] for role in run.config.null_checkpoints}
    roles = (BASE, CORRUPTED, BENIGN)
    at = {role: run.stores[role, "ranking"] for role in roles if (role, "ranking") in run.stores}
    columns = _cosine_columns(run)
    for role in at:
        if role == BASE:
            continue
        folder = ranking_folder(run, role)

        def build(role=role, folder=folder) -> FeatureRanking:
            benign = at.get(BENIGN) if role == CORRUPTED else None
            made = rank_latents(run.sae, Compared(at[BASE], at[role], benign, null), run.config.hook, settings)
            made = made.with_columns(columns)
            made.save(folder, parents(**at, **null), overwrite=True)
            return made

        name = f"rank latents {role}"
        run.rankings[role] = run.out.stage(name, build, folder, lambda f=folder: FeatureRanking.load(f))
    run.examples = _examples(run)


def _cosine_columns(run: RunState) -> dict:
    """Cosine of every latent's decoder row with every direction, as columns of the ranking."""
    return {
        f"cosine_{name}" + ("" if role == BASE else f" ({role})"): cosines(
            run.sae.W_dec, made.unit(name)[None].to(run.sae.device)
        )[:, 0]
        .cpu()
        .numpy()
        for role, made in run.directions.items()
        for name in made.vectors
    }


def _examples(run: RunState) -> dict[int, list[LatentExample]]:
    """Top activating examples of the top latents, in held-out text and in the ranking prompts of both models."""
    shown = run.config.steering.top if run.config.steering else 20
    at = {
        "base (text)": run.stores[BASE, "sae_held_out"],
        "base": run.stores[BASE, "ranking"],
        "corrupted": run.stores[CORRUPTED, "ranking"],
    }
    latents = run.ranking.top(shown)["latent"].astype(int).tolist()
    folder = run.out.folder / "examples"

    def build() -> dict[int, list[LatentExample]]:
        found = top_examples(run.sae, at, run.config.hook, run.base.tokenizer, latents, run.config.examples)
        save_examples(found, folder, parents(**at))
        return found

    return run.out.stage("examples", build, folder, lambda: load_examples(folder))


@stage(
    lambda c: f"steer the top {c.steering.top} latents, directions and controls -> steering/" if c.steering else None
)
def prove_by_steering(run: RunState) -> None:
    """Steers and judges: in the corrupted model, and by the same code with the benign one in its place."""
    activations = run.stores[BASE, "ranking"].read(run.config.hook, PROMPT_ROLES)
    steering = Steering(run.config, run.sae, run.base, activations, run.residual_norm, run.steered)

    def build(role: str) -> Proof:
        folder = run.out.folder / "steering" / role
        proof = steering.prove(run.models[role], run.rankings[role], folder, run.progress)
        finish_artefact(folder, {"kind": "steering"})
        return proof

    # The transcripts hold every judged answer: a finished experiment is read from them, not sampled again.
    run.proofs = {
        role: run.out.stage(f"steer {role}", lambda r=role: build(r), run.out.folder / "steering" / role)
        for role in run.rankings
    }
    add_verdicts(run)


def add_verdicts(run: RunState) -> None:
    """The rankings with the verdict columns of the latents that were steered, saved in their place."""
    for role, proof in run.proofs.items():
        if not proof.verdicts.empty:
            run.rankings[role] = run.rankings[role].joined(proof.verdicts)
            read = {model: store for (model, prompts), store in run.stores.items() if prompts == "ranking"}
            run.rankings[role].save(ranking_folder(run, role), parents(**read), overwrite=True)


@stage(
    lambda c: (
        "measure which latents the toxic one co-activates, if one is found -> interference/" if c.steering else None
    )
)
def find_interference(run: RunState) -> None:
    """Which latents the toxic one co-activates when it is added to the base, as strongly as it induced the behaviour.

    None if steering found no toxic latent.
    """
    proof = run.proofs.get(CORRUPTED)
    if proof is None or proof.toxic is None:
        return
    latent, (strength, _) = proof.toxic.latent, proof.headline["latent_induce"]
    # What never occurs together is seen best in much text; ranking prompts are few.
    text, folder = run.stores[BASE, "sae_held_out"], run.out.folder / "interference"

    def build() -> Interference:
        added = InterferenceConfig(latent=latent, strength=strength, positions="all")
        found = measure_interference(run.sae, text, run.config.hook, run.residual_norm, added, run.progress)
        found.save(folder, parents(activations=text), overwrite=True)
        return found

    run.interference = run.out.stage("interference", build, folder, lambda: Interference.load(folder))


@stage(lambda c: "answer the capability questions -> capability/" if c.prompts.capability and c.steering else None)
def measure_capability(run: RunState) -> None:
    """Share of exact answers to the capability questions, by model."""
    path, steering = run.config.prompts.capability, run.config.steering
    assert path is not None
    assert steering is not None
    questions = load_prompts(path)
    sampling = steering.sampling.model_copy(update={"seed": run.config.seed})
    folder = run.out.folder / "capability"

    def build() -> dict[str, float]:
        rates = {role: exact_match(model, questions, sampling) for role, model in run.models.items()}
        folder.mkdir(exist_ok=True)
        finish_artefact(folder, {"kind": "capability", "exact_match": rates})
        return rates

    run.capability = run.out.stage(
        "capability", build, folder, lambda: read_config(folder, "capability")["exact_match"]
    )


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


def harvest_settings(config: RunConfig) -> HarvestConfig:
    """How activations are computed."""
    batch_tokens = config.batch_tokens or batch_tokens_for(config.device)
    return HarvestConfig(hooks=(config.hook,), dtype=config.store_dtype, batch_tokens=batch_tokens)


def ranking_folder(run: RunState, role: str) -> Path:
    """Where the ranking of a model against the base is kept."""
    return run.out.folder / ("ranking" if role == CORRUPTED else f"ranking_{role}")


def _load_beside(config: RunConfig, role: str, named: CheckpointConfig, base: Checkpoint | None) -> Checkpoint:
    """A checkpoint that has the hook and shares the base's tokenizer (None: it is the base itself)."""
    model = load_checkpoint(named.placed(config.device, config.dtype), role)
    model.require_hook(config.hook)
    if base is not None:
        require_same_tokenizer(base, model)
    return model
