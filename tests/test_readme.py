"""The README's Python blocks run, and its tree names what exists."""

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


def test_tree_names_what_exists() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    folders = [ROOT]
    for line in tree.strip().splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        path = folders[depth] / name
        assert path.exists(), path
        folders[depth + 1 :] = [path]


def test_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
