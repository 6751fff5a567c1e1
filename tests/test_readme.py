"""The README is short, its Python blocks run, and its make targets exist."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diffing import FeatureRanking

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ["shift", "low", "high", "q", "cosine_malicious - others"]
    table = pd.DataFrame(np.zeros((3, 5)), columns=pd.Index(columns)).assign(latent=range(3), rank=range(1, 4))
    FeatureRanking(table, {"positions": "prompt"}).save(tmp_path / "runs/quickstart/ranking")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_it_is_short() -> None:
    """Breaks if the README grows into what pages of docs/ are for."""
    assert len(README.encode()) <= 9_000
