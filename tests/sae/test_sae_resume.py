"""A training that is killed, and one that several processes share, end where an undisturbed one ends."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from activations.errors import UserError
from activations.memory import InMemory
from sae.training.checkpoint import FILE
from sae.training.config import TrainConfig
from sae.training.ranks import Ranks
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData
from sae.training.train import train_sae

SCRIPT = Path(__file__).with_name("train_in_process.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
HOOK = "blocks.0.hook_resid_post"


def start(out: Path, steps: int, *launcher: str) -> "subprocess.Popen[bytes]":
    out.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, *launcher, str(SCRIPT), str(out), str(steps)], env=ENVIRONMENT)


def weights_of(out: Path) -> dict[str, Tensor]:
    return load_file(out / "weights.safetensors")


def test_killed_at_random_and_restarted_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Breaks if weights, moments, dead counts or the data's position are not in the state, or not of one step."""
    steps, draw = 400, random.Random(0)
    undisturbed = start(tmp_path / "whole", steps)
    seen: list[int] = []
    state = tmp_path / "killed" / "state" / FILE
    for _ in range(3):
        process = start(tmp_path / "killed", steps)
        before = steps_in(state)
        while process.poll() is None and steps_in(state) == before:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(steps_in(state))
    assert 0 < seen[0] < seen[1] < seen[2] < steps
    assert start(tmp_path / "killed", steps).wait() == 0
    assert undisturbed.wait() == 0
    assert not state.parent.exists()
    expected, found = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


def steps_in(state: Path) -> int:
    if not state.exists():
        return 0
    with safe_open(state, "pt") as file:
        return int(file.metadata()["steps"])


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    """Breaks if a gradient is averaged instead of summed, or a threshold or dead count is of one part alone."""
    alone = start(tmp_path / "alone", 30)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert start(tmp_path / "pair", 30, *command).wait() == 0
    assert alone.wait() == 0
    expected, found = weights_of(tmp_path / "alone"), weights_of(tmp_path / "pair")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=2e-4, msg=name)


def test_a_batch_that_cannot_be_divided() -> None:
    with pytest.raises(UserError, match="9 rows cannot be divided among 2"):
        Ranks(0, 2).part(9)


def test_state_of_another_training_is_refused_and_a_damaged_one_named(tmp_path: Path) -> None:
    data = TrainingData({"base": InMemory.of_rows({HOOK: torch.randn(200, 8)})})
    config = TrainConfig(latents=16, k=2, batch=20, steps=4)

    def interrupted(_: str, metrics: dict[str, float]) -> None:
        if metrics["step"] == 3:
            raise KeyboardInterrupt

    setup = TrainingSetup(progress=False, checkpoints=tmp_path, checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        train_sae(data, HOOK, config, replace(setup, log=interrupted))
    with pytest.raises(UserError, match="state of another training"):
        train_sae(data, HOOK, config.model_copy(update={"lr": 0.1}), setup)
    state = tmp_path / FILE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"is damaged .* remove it to train from the beginning"):
        train_sae(data, HOOK, config, setup)
