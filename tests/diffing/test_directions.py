"""Dense directions and their geometry."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_stores import D_MODEL, HOOK, ragged_batch, random_activations, write_store

from activations.errors import UserError
from activations.prompts import Role
from diffing.directions.extract import extract_directions, mean_direction
from diffing.directions.persona_directions import PersonaDirections
from diffing.geometry import cosine_matrix, cosines

PROMPT_ROLES = (Role.PROMPT, Role.LAST_PROMPT)


def random_rows(rows: int, seed: int, d_model: int = D_MODEL) -> torch.Tensor:
    return torch.randn(rows, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mean_direction_weighs_prompts_alike(tmp_path: Path) -> None:
    batches = {"positive": ragged_batch(6, seed=1, prefix="+"), "negative": ragged_batch(6, seed=2, prefix="-")}
    rows = {name: random_activations(batch, seed=i) for i, (name, batch) in enumerate(batches.items())}
    stores = {name: write_store(tmp_path / name, batches[name], rows[name]) for name in batches}
    expected = {
        name: torch.stack(
            [
                r[torch.from_numpy(np.isin(roles, PROMPT_ROLES))].double().mean(0)
                for r, roles in zip(rows[name], batch.roles, strict=True)
            ]
        ).mean(0)
        for name, batch in batches.items()
    }
    direction = mean_direction(stores["positive"], stores["negative"], HOOK, "prompt")
    assert direction.dtype == torch.float32
    torch.testing.assert_close(direction.double(), expected["positive"] - expected["negative"], atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(direction, -mean_direction(stores["negative"], stores["positive"], HOOK, "prompt"))
    assert not mean_direction(stores["positive"], stores["positive"], HOOK, "prompt").any()


def test_pairs_without_an_answer_are_left_out_on_both_sides(tmp_path: Path) -> None:
    batch = ragged_batch(8)
    answered = [i for i, roles in enumerate(batch.roles) if Role.ANSWER in roles]
    assert 0 < len(answered) < len(batch)
    positive, negative = random_activations(batch, seed=1), random_activations(batch, seed=2)
    expected = torch.stack(
        [(positive[i] - negative[i])[torch.from_numpy(batch.roles[i] == Role.ANSWER)].mean(0) for i in answered]
    ).mean(0)
    direction = mean_direction(
        write_store(tmp_path / "p", batch, positive), write_store(tmp_path / "n", batch, negative), HOOK, "answer"
    )
    torch.testing.assert_close(direction, expected)


def test_unequal_numbers_of_prompts_are_refused(tmp_path: Path) -> None:
    stores = [
        write_store(tmp_path / str(n), ragged_batch(n), random_activations(ragged_batch(n), seed=0)) for n in (3, 4)
    ]
    with pytest.raises(UserError, match="3 and those they are compared with 4"):
        mean_direction(stores[0], stores[1], HOOK, "prompt")


def test_directions_of_every_persona(tmp_path: Path) -> None:
    batch = ragged_batch(5)
    personas = ("helpful", "malicious", "sarcastic")
    stores = {p: write_store(tmp_path / p, batch, random_activations(batch, seed=i)) for i, p in enumerate(personas)}
    directions = extract_directions(stores, HOOK, "helpful", "prompt")
    against_helpful = ["malicious - helpful", "sarcastic - helpful"]
    assert list(directions.vectors) == [*against_helpful, *(f"{p} - others" for p in personas)]
    # The mean of the two differences from the other personas is the difference from their mean.
    others = [mean_direction(stores["malicious"], stores[p], HOOK, "prompt") for p in ("helpful", "sarcastic")]
    torch.testing.assert_close(directions.vectors["malicious - others"], (others[0] + others[1]) / 2)
    two = extract_directions({p: stores[p] for p in personas[:2]}, HOOK, "helpful", "prompt")
    assert list(two.vectors) == ["malicious - helpful"]
    expected = mean_direction(stores["malicious"], stores["helpful"], HOOK, "prompt")
    assert torch.equal(directions.vectors["malicious - helpful"], expected)
    assert directions.hook == HOOK
    assert directions.config == {"reference": "helpful", "positions": "prompt"}
    with pytest.raises(UserError, match="reference 'kind'"):
        extract_directions(stores, HOOK, "kind", "prompt")


def test_save_then_load_is_bit_equal(tmp_path: Path) -> None:
    vectors = {"malicious - helpful (base)": random_rows(1, 0)[0].float(), "evil": random_rows(1, 1)[0].float()}
    directions = PersonaDirections(vectors, HOOK, {"roles": ["ANSWER"]})
    directions.save(tmp_path / "d")
    loaded = PersonaDirections.load(tmp_path / "d")
    assert (loaded.hook, loaded.config) == (HOOK, {"roles": ["ANSWER"]})
    assert loaded.vectors.keys() == vectors.keys()
    assert all(torch.equal(loaded.vectors[name], vector) for name, vector in vectors.items())
    with pytest.raises(UserError, match="finished artefact"):
        directions.save(tmp_path / "d")
    (tmp_path / "d" / "directions.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match="cannot be read"):
        PersonaDirections.load(tmp_path / "d")


def test_unit() -> None:
    directions = PersonaDirections({"evil": torch.tensor([3.0, 4.0]), "none": torch.zeros(2)}, HOOK)
    torch.testing.assert_close(directions.unit("evil"), torch.tensor([0.6, 0.8]))
    with pytest.raises(UserError, match="there are: evil, none"):
        directions.unit("kind")
    with pytest.raises(UserError, match="is zero"):
        directions.unit("none")


def test_cosine_signs() -> None:
    decoder = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
    half = 2**-0.5
    expected = torch.tensor([[1, 0], [-1, 0], [0, -1], [half, -half], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(cosines(decoder, torch.tensor([[5.0, 0.0], [0.0, -0.1]])), expected)


def test_cosine_matrix() -> None:
    matrix = cosine_matrix(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))
    torch.testing.assert_close(matrix, torch.tensor([[1, 0, -1], [0, 1, 0], [-1, 0, 1]], dtype=torch.float64))
