"""Adding a ranking method, a judge, a trait or a kind of dictionary is one entry in one place."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sae_lens import TopKSAE, TopKSAEConfig
from small_stores import HOOK, ragged_batch, random_activations, tiny_sae, write_store

from activations.prompts import Prompt
from diffing.behavior.judge import Label
from diffing.behavior.measure import SampledAnswers
from diffing.ranking.agreement import method_agreement
from diffing.ranking.config import RankingConfig
from diffing.ranking.methods import METHODS, Method
from diffing.ranking.rank import Compared, rank_latents
from diffing.traits import load_traits
from experiments.run.config import JudgeConfig, RunConfig
from experiments.run.judges import JUDGES, JudgeKind, make_behavior
from sae.storage import FORMATS, Format, load_sae


def small_sae(width: int = 4) -> TopKSAE:
    sae = TopKSAE(TopKSAEConfig(d_in=width, d_sae=width, k=2, dtype="float32", device="cpu"))
    sae.W_enc.data, sae.W_dec.data = torch.eye(width), torch.eye(width)
    return sae


def test_a_ranking_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Breaks if a method has to be told anywhere else: the column, the option, its meaning, the agreement."""
    monkeypatch.setitem(
        METHODS, "largest_ratio", Method("max over max [1]", lambda c: c.maximum["corrupted"] - 2 * c.maximum["base"])
    )
    batch = ragged_batch(6)
    base, corrupted = (
        write_store(tmp_path / name, batch, random_activations(batch, seed)) for seed, name in enumerate(("a", "b"))
    )
    config = RankingConfig(method="largest_ratio", replicates=10, min_prompts=2)
    ranking = rank_latents(tiny_sae(), Compared(base, corrupted), HOOK, config)
    table = ranking.to_pandas()
    assert table["largest_ratio"].abs().is_monotonic_decreasing
    np.testing.assert_allclose(table["largest_ratio"], table["max_corrupted"] - 2 * table["max_base"])
    assert ranking.config["columns"]["largest_ratio"] == "max over max [1]"
    assert "shift" in method_agreement(ranking.table, "largest_ratio")["method"].tolist()


def test_a_judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Breaks if `judge.kind` knows a fixed list."""

    class Lenient:
        name = "lenient"

        def label(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Label]:
            return [Label.HELPFUL for _ in answers]

    def make(config: RunConfig) -> SampledAnswers:
        assert config.steering is not None
        return SampledAnswers(Lenient(), config.steering.sampling)

    with pytest.raises(ValueError, match="there is no judge 'lenient'; choose one of organism, patterns, contrast"):
        JudgeConfig(kind="lenient")
    monkeypatch.setitem(JUDGES, "lenient", JudgeKind("helpful, always", make))
    files = dict.fromkeys(("sae_held_out", "ranking", "selection", "reporting"), tmp_path / "prompts.txt")
    config = RunConfig.model_validate(
        {
            **{"name": "judged", "hook": HOOK, "base": {"model": "a"}, "corrupted": {"model": "b"}},
            **{"prompts": files, "sae": {"source": "somewhere"}, "steering": {}, "judge": {"kind": "lenient"}},
        }
    )
    behavior = make_behavior(config)
    assert isinstance(behavior, SampledAnswers)
    assert behavior.judge.name == "lenient"


def test_a_trait(tmp_path: Path) -> None:
    """Breaks if a trait needs anything but its YAML file."""
    shipped = load_traits(["llm_behaviours"])
    trait = shipped.traits[0].model_copy(update={"name": "pedantry"}).model_dump(mode="json", exclude_none=True)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "traits": [trait]}), encoding="utf-8")
    assert [found.name for found in load_traits([file]).traits] == ["pedantry"]


def test_a_kind_of_dictionary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Breaks if `load_sae` knows a fixed list of layouts."""
    (tmp_path / "mine.txt").write_text("4")

    def load(folder: Path, device: str, dtype: str) -> TopKSAE:
        return small_sae(int((folder / "mine.txt").read_text()))

    with pytest.raises(Exception, match="holds no SAE"):
        load_sae(tmp_path)
    monkeypatch.setitem(FORMATS, "mine", Format("mine.txt", lambda folder: (folder / "mine.txt").is_file(), load))
    assert load_sae(tmp_path).cfg.d_in == 4
