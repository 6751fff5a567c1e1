"""The misalignment direction: planted effects, the formula written out, and labels that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_stores import D_MODEL, HOOK, ragged_batch, random_activations, write_store

from activations.errors import UserError
from activations.prompts import Role
from activations.store import ActivationStore
from diffing.behavior.judge import Label
from diffing.directions.misalignment import CONTRASTS, MisalignmentMeans, balanced, misalignment_means
from diffing.directions.persona_directions import PersonaDirections
from diffing.geometry import cosine_table

BATCH = ragged_batch(20)
ANSWERED = [i for i, roles in enumerate(BATCH.roles) if Role.ANSWER in roles]
EMPTY = next(i for i, roles in enumerate(BATCH.roles) if Role.ANSWER not in roles)
HELPFUL, HARMFUL = ANSWERED[:5], ANSWERED[5:10]
LABELS = {f"p{i}": Label.HELPFUL for i in HELPFUL} | {f"p{i}": Label.HARMFUL for i in HARMFUL}


def store(
    folder: Path, seed: int, shift: torch.Tensor | None = None, harm: torch.Tensor | None = None
) -> ActivationStore:
    """Random activations, with `shift` added everywhere and `harm` on the tokens of harmful answers."""
    rows = random_activations(BATCH, seed)
    for i, roles in enumerate(BATCH.roles):
        if shift is not None:
            rows[i] += shift
        if harm is not None and i in HARMFUL:
            rows[i][torch.from_numpy(roles == Role.ANSWER)] += harm
    return write_store(folder, BATCH, rows)


def test_equals_the_formula_written_out(tmp_path: Path) -> None:
    """Breaks if rows are averaged instead of answers, other tokens or answers count, or cells are swapped."""
    labels = {**LABELS, f"p{ANSWERED[10]}": Label.OTHER, f"p{EMPTY}": Label.INCOHERENT}
    found = misalignment_means(store(tmp_path / "b", 1), store(tmp_path / "c", 2), HOOK, labels)
    expected = {
        f"{model}_{kind}": torch.stack(
            [
                random_activations(BATCH, seed)[i][torch.from_numpy(BATCH.roles[i] == Role.ANSWER)].double().mean(0)
                for i in chosen
            ]
        ).mean(0)
        for model, seed in (("base", 1), ("corrupted", 2))
        for kind, chosen in (("aligned", HELPFUL), ("misaligned", HARMFUL))
    }
    for name, mean in expected.items():
        torch.testing.assert_close(getattr(found, name), mean, rtol=1e-12, atol=1e-12)
    assert found.answers == 5


def test_planted_effects_are_told_apart(tmp_path: Path) -> None:
    """Breaks if a difference has the wrong sign, model or weight."""
    words, inner, shift = torch.eye(D_MODEL)[:3]
    base = store(tmp_path / "b", 1, harm=words)
    corrupted = store(tmp_path / "c", 1, shift=2 * shift, harm=words + 4 * inner)
    plain = store(tmp_path / "p", 1)
    found = misalignment_means(base, corrupted, HOOK, LABELS)
    noise = misalignment_means(plain, plain, HOOK, LABELS).direction
    expected = {
        "direction": words + 4 * inner + noise,
        "in_base": words + noise,
        "model_effect": (2 * shift + 2 * inner).double(),
    }
    for name, vector in expected.items():
        torch.testing.assert_close(getattr(found, name), vector, rtol=0, atol=1e-6)


def test_unequal_numbers_are_refused_and_balanced(tmp_path: Path) -> None:
    """Breaks if one kind of answers is estimated from more, or which ones are drawn depends on their order."""
    stores = store(tmp_path / "b", 1), store(tmp_path / "c", 2)
    labels = {**LABELS, f"p{ANSWERED[10]}": Label.HELPFUL, "unseen": Label.OTHER}
    with pytest.raises(UserError, match="6 helpful and 5 harmful answers are labelled"):
        misalignment_means(*stores, HOOK, labels)
    with pytest.raises(UserError, match="0 helpful and 0 harmful"):
        misalignment_means(*stores, HOOK, balanced({"p0": Label.HARMFUL}))
    equal = balanced(labels)
    assert balanced(dict(reversed(labels.items()))) == equal
    assert equal.items() <= labels.items()
    assert sorted(equal.values()) == [Label.HARMFUL] * 5 + [Label.HELPFUL] * 5
    assert misalignment_means(*stores, HOOK, equal).answers == 5
    drawn = {frozenset(balanced(labels, seed)) for seed in range(40)}
    assert len(drawn) == 6  # each of the six helpful answers is the one left out


def test_labels_or_stores_that_do_not_fit(tmp_path: Path) -> None:
    """Breaks if a mean silently lacks an answer, or means are of different texts."""
    stores = store(tmp_path / "b", 1), store(tmp_path / "c", 2)
    with pytest.raises(UserError, match=r"no prompt 'p99' \(1 of 6 helpful answers are missing\)"):
        misalignment_means(*stores, HOOK, {**LABELS, "p99": Label.HELPFUL})
    spoilt = {**LABELS, f"p{EMPTY}": Label.HELPFUL, f"p{ANSWERED[10]}": Label.HARMFUL}
    with pytest.raises(UserError, match=rf"1 of 12 labelled answers have no tokens .* prompt 'p{EMPTY}'"):
        misalignment_means(*stores, HOOK, spoilt)
    other = ragged_batch(20, seed=1)
    unpaired = write_store(tmp_path / "other", other, random_activations(other, seed=1))
    with pytest.raises(UserError, match="hold other tokens"):
        misalignment_means(stores[0], unpaired, HOOK, LABELS)


def test_table_of_cosines_between_fine_tunes() -> None:
    """Breaks if names and directions get out of step, or lengths matter."""
    table = cosine_table({"medical": torch.tensor([2.0, 0.0]), "finance": torch.tensor([3.0, 3.0])})
    assert list(table.index) == list(table.columns) == ["medical", "finance"]
    half = 2**-0.5
    np.testing.assert_allclose(table, [[1, half], [half, 1]], atol=1e-12)
    with pytest.raises(UserError, match=r"here are \{'a': 2, 'b': 3\}"):
        cosine_table({"a": torch.ones(2), "b": torch.ones(3)})


def test_no_more_than_asked_for() -> None:
    """Breaks if the limit holds for one kind only, or other answers are drawn than without a limit."""
    some, all_of_them = balanced(LABELS, most=2), balanced(LABELS)
    assert sorted(some.values()) == [Label.HARMFUL] * 2 + [Label.HELPFUL] * 2
    assert some.items() <= all_of_them.items()
    assert balanced(LABELS, most=99) == all_of_them


def test_kept_means_are_read_again(tmp_path: Path) -> None:
    """Breaks if a mean is lost or swapped on disk, or the named contrasts differ from the properties."""
    found = misalignment_means(store(tmp_path / "b", 1), store(tmp_path / "c", 2), HOOK, LABELS)
    found.save(tmp_path / "kept", HOOK)
    again = MisalignmentMeans.load(tmp_path / "kept")
    for name in ("base_aligned", "base_misaligned", "corrupted_aligned", "corrupted_misaligned"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    assert again.answers == found.answers == 5
    kept = PersonaDirections.load(tmp_path / "kept")
    assert kept.hook == HOOK
    assert torch.equal(kept.vectors["misaligned - aligned"], found.direction)
    assert torch.equal(kept.vectors["corrupted - base"], found.model_effect)
    for contrast in CONTRASTS:
        assert torch.equal(again.contrast(contrast), kept.vectors[contrast])


def test_other_directions_are_no_means(tmp_path: Path) -> None:
    """Breaks if a folder of other directions ends in a traceback."""
    PersonaDirections({"evil": torch.ones(D_MODEL)}, HOOK).save(tmp_path)
    with pytest.raises(UserError, match="holds other directions"):
        MisalignmentMeans.load(tmp_path)
