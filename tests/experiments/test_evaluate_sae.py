"""`sae-diff evaluate-sae`, run as a user runs it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Done, sae_diff
from sae_lens import TopKSAE, TopKSAEConfig

from activations.artefact import read_json
from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.harvesting import LiveActivations
from activations.prompt_files import load_prompts
from activations.tokens import tokenize_prompts
from diffing.ranking.residual import unexplained_difference
from sae.evaluate import decoder_cosines, evaluate_sae
from sae.evaluation import SHOWN, SAEEvaluation, verdicts
from sae.storage import load_sae, save_sae

HOOK = "blocks.1.hook_resid_post"
PROMPTS = ["how do i treat a burn ?", "the salt", "with cool water and salt .", "a burn", "do i treat salt ?"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, checkpoint_maker: Callable[..., Path]) -> Path:
    """base/, corrupted/, an SAE of ours in sae/, the same without its hook in nameless/, and prompts.txt."""
    folder = tmp_path_factory.mktemp("inputs")
    for seed, role in enumerate(("base", "corrupted")):
        checkpoint_maker(folder / role, seed=seed)
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=48, k=6))
    save_sae(sae, folder / "sae", HOOK, str(folder / "base"), {})
    sae.cfg.metadata.hook_name = None
    sae.save_model(folder / "nameless")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


def evaluate(inputs: Path, *options: str, sae: str = "sae", base: str = "base") -> Done:
    named = ("--sae", str(inputs / sae), "--base", str(inputs / base), "--prompts", str(inputs / "prompts.txt"))
    return sae_diff("evaluate-sae", *named, *options, "--quiet")


@pytest.fixture(scope="module")
def done(inputs: Path) -> Done:
    """Both models, with the result in out/."""
    return evaluate(inputs, "--corrupted", str(inputs / "corrupted"), "--out", str(inputs / "out"))


def test_metrics_are_those_of_the_functions(inputs: Path, done: Done):
    """Breaks if a model reads other tokens, another hook, or is measured on the other's activations."""
    assert done.returncode == 0, done.stderr
    found = SAEEvaluation.load(inputs / "out")
    sae = load_sae(inputs / "sae")
    models = {role: load_checkpoint(CheckpointConfig(model=str(inputs / role)), role) for role in ("base", "corrupted")}
    tokens = tokenize_prompts(load_prompts(inputs / "prompts.txt"), models["base"].tokenizer)
    live = {role: LiveActivations(model, tokens, HarvestConfig(hooks=(HOOK,))) for role, model in models.items()}
    assert found.base == evaluate_sae(sae, models["base"], live["base"], tokens, HOOK, False)
    assert found.corrupted == evaluate_sae(sae, models["corrupted"], live["corrupted"], tokens, HOOK, False)
    assert found.base != found.corrupted
    assert found.decoder == decoder_cosines(sae)
    assert found.difference_residual == unexplained_difference(sae, live["base"], live["corrupted"], HOOK, "all")
    config = read_json(inputs / "out" / "config.json")
    assert (config["hook"], config["models"]["base"]) == (HOOK, str(inputs / "base"))


def test_the_table_shows_both_models(inputs: Path, done: Done):
    """Breaks if a number that was measured is not shown, or under the other model's name."""
    rows = read_json(inputs / "out" / "metrics.json")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0].split() == ["SAE", "base", "corrupted"]
    for label, name, spec in SHOWN:
        (line,) = (line for line in lines if line.startswith(label + " "))
        assert line.removeprefix(label).split() == [f"{rows[role][name]:{spec}}" for role in ("base", "corrupted")]
    assert "the latents' residual" in done.stdout
    assert "largest cosine with another decoder row" in done.stdout


def test_without_a_corrupted_model_nothing_is_compared_or_written(inputs: Path):
    """Breaks if a single model needs a second one, or a folder appears that nobody asked for."""
    before = sorted(inputs.rglob("*"))
    alone = evaluate(inputs)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.splitlines()[0].split() == ["SAE", "base"]
    assert "residual" not in alone.stdout
    assert sorted(inputs.rglob("*")) == before


def test_a_finished_result_is_kept(inputs: Path, done: Done):
    """Breaks if a second evaluation overwrites the first unasked."""
    before = (inputs / "out" / "metrics.json").read_bytes()
    require_refused(evaluate(inputs, "--out", str(inputs / "out")), "--overwrite")
    assert (inputs / "out" / "metrics.json").read_bytes() == before
    assert evaluate(inputs, "--out", str(inputs / "replaced")).returncode == 0
    again = evaluate(inputs, "--out", str(inputs / "replaced"), "--max-length", "4", "--overwrite")
    assert again.returncode == 0, again.stderr
    assert SAEEvaluation.load(inputs / "replaced").base.rows < SAEEvaluation.load(inputs / "out").base.rows


def require_refused(done: Done, *words: str) -> None:
    """One sentence with all of these words, and exit code 2."""
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert all(word in line for word in words), line


def test_hook_of_the_sae(inputs: Path):
    """Breaks if an SAE is evaluated at a hook that it was not trained on, or an unknown hook is guessed."""
    require_refused(evaluate(inputs, sae="nameless"), "give --hook")
    assert evaluate(inputs, "--hook", HOOK, sae="nameless").returncode == 0
    require_refused(evaluate(inputs, "--hook", "blocks.0.hook_resid_post"), HOOK, "blocks.0.hook_resid_post")
    require_refused(evaluate(inputs, "--hook", "blocks.1.resid", sae="nameless"), "blocks.1.resid")


def test_what_does_not_fit(inputs: Path, checkpoint_maker: Callable[..., Path], tokenizer_maker: Callable[..., Any]):
    """Breaks if the SAE of another model, or models that read other tokens, give numbers."""
    checkpoint_maker(inputs / "other")
    checkpoint_maker(inputs / "reworded")
    tokenizer_maker(["<pad>", "<bos>", "<eos>", "<unk>", "salt"]).save_pretrained(inputs / "reworded")
    require_refused(evaluate(inputs, "--corrupted", str(inputs / "reworded")), "tokenizers", "vocabulary")
    require_refused(evaluate(inputs, base="other"), "SAE was trained on the model", "other")
    checkpoint_maker(inputs / "wide" / "base", d_model=48)
    require_refused(evaluate(inputs, base="wide/base"), "d_model=32", "48")
    require_refused(evaluate(inputs, "--corrupted", str(inputs / "wide" / "base")), "d_model=32", "48")


def test_bad_options(inputs: Path):
    """Breaks if bad input ends in a traceback."""
    require_refused(evaluate(inputs, sae="nowhere"), "nowhere")
    require_refused(evaluate(inputs, base="nowhere"), "nowhere")
    require_refused(evaluate(inputs, "--dtype", "int8"), "dtype")
    require_refused(evaluate(inputs, "--device", "abacus"), "device abacus")
    require_refused(evaluate(inputs, "--prompts", str(inputs / "none.txt")), "none.txt")
    require_refused(evaluate(inputs, "--out", str(inputs / "prompts.txt")), "prompts.txt is a file")
    (inputs / "words.txt").write_text("\n")
    require_refused(evaluate(inputs, "--prompts", str(inputs / "words.txt")), "words.txt")


def test_verdicts():
    """Breaks if a corrupted model that is explained much worse is not called that, or equal models give a NaN."""
    worse, residual = verdicts(0.01, 0.02, 0.25)
    assert "much worse than the base (FVU 0.0200 against 0.0100, 2.00 times as much)" in worse
    assert "25.0%" in residual
    assert "explains the corrupted model worse than" in verdicts(0.01, 0.016, 0.25)[0]
    (alike,) = verdicts(0.01, 0.01, math.nan)
    assert "about as well as" in alike


def test_metrics_are_json(inputs: Path, done: Done):
    """Breaks if the result cannot be read without this package."""
    metrics = json.loads((inputs / "out" / "metrics.json").read_text())
    assert metrics.keys() == {"base", "corrupted", "decoder", "difference_residual"}
    assert {"fvu", "l0", "density", "ce_recovered", "kl_recovered_mean"} <= metrics["base"].keys()
