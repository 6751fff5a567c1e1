"""Prevention while training: where it acts, what it adds, that evaluation is free of it, and a real Trainer."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import HOOK, WORDS, random_llama, random_sae
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments

from activations.errors import UserError
from diffing.steering.config import PenaltyConfig
from diffing.steering.prevention import LatentPenalty, PreventativeSteering, TrainingHook, find_block

TOKENS = torch.tensor([[1, 5, 6, 7, 8, 9], [1, 9, 8, 7, 0, 0]])
LATENTS = [3, 17, 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prevention") / "base"
    random_llama(folder)
    return folder


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def moved(folder: Path) -> PreTrainedModel:
    """The model after some training: latents have risen."""
    model: Any = load(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.3 * torch.randn(len(WORDS), 32, generator=torch.manual_seed(3))
    return model


def steering(strength: float = 0.5) -> PreventativeSteering:
    return PreventativeSteering(HOOK, torch.eye(32)[2], strength, residual_norm=4.0)


def loss_of(model: Any, **inputs: Tensor) -> Tensor:
    return model(input_ids=TOKENS, labels=TOKENS, **inputs).loss


def outputs(model: Any, block: Any) -> Tensor:
    """What the block gives, after whatever acts on it."""
    seen: list[Tensor] = []
    handle = block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(input_ids=TOKENS)
    handle.remove()
    return seen[0]


class TestBlock:
    def test_it_is_the_block_of_the_hook(self, folder: Path):
        """Breaks if blocks are counted from 1: `hidden_states[L+1]` is what block L gives."""
        model: Any = load(folder)
        states = model(input_ids=TOKENS, output_hidden_states=True).hidden_states
        torch.testing.assert_close(outputs(model, find_block(model, HOOK)), states[2])

    def test_it_is_found_under_an_adapter(self, folder: Path):
        """Breaks if only plain models are searched."""
        model: Any = load(folder)
        block = find_block(model, HOOK)
        adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["down_proj"]))
        assert find_block(adapted, HOOK) is block

    @pytest.mark.parametrize(
        ("hook", "message"), [("blocks.1.hook_mlp_out", "after a block only"), ("blocks.3.hook_resid_post", "3 blocks")]
    )
    def test_other_hooks_are_refused(self, folder: Path, hook: str, message: str):
        with pytest.raises(UserError, match=message):
            find_block(load(folder), hook)


class TestSteering:
    def test_it_adds_while_gradients_are_computed_only(self, folder: Path):
        """Breaks if strength, norm or sign is lost, if a model in evaluation is steered, or if the hook stays."""
        model: Any = load(folder)
        block = find_block(model, HOOK)
        before = outputs(model, block)
        with steering().on(model):
            torch.testing.assert_close(outputs(model, block), before + 2.0 * torch.eye(32)[2])
            with torch.no_grad():
                torch.testing.assert_close(outputs(model, block), before)
        torch.testing.assert_close(outputs(model, block), before)

    def test_it_is_taken_off_when_training_fails(self, folder: Path):
        """Breaks if an error leaves the hook on the model."""
        model: Any = load(folder)
        hook = steering()
        with pytest.raises(RuntimeError), hook.on(model):
            raise RuntimeError
        assert not find_block(model, HOOK)._forward_hooks


class TestPenalty:
    @pytest.mark.parametrize("power", [1, 2])
    def test_gradients_are_those_of_loss_and_penalty(self, folder: Path, power: int):
        """Breaks if weight, power, side, padding, base or the mean is wrong, or the gradient does not reach weights."""
        model, base, sae = moved(folder), load(folder), random_sae()
        config = PenaltyConfig(weight=0.7, power=power)  # pyright: ignore[reportArgumentType]
        hook = LatentPenalty(HOOK, sae, LATENTS, copy.deepcopy(base), config)
        mask = (TOKENS != 0).long()
        with hook.on(model):
            loss = loss_of(model, attention_mask=mask)
            loss.backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        plain = loss_of(model, attention_mask=mask)
        torch.testing.assert_close(loss, plain)  # what is reported is the data's loss
        (plain + 0.7 * self.by_hand(model, base, sae, mask, power)).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                # Sums of large terms in float32.
                torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-3)

    def by_hand(self, model: Any, base: Any, sae: Any, mask: Tensor, power: int) -> Tensor:
        """The penalty from hidden states and the whole encoder."""

        def activity(of: Any) -> Tensor:
            h = of(input_ids=TOKENS, attention_mask=mask, output_hidden_states=True).hidden_states[2]
            return ((h - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()[..., LATENTS]

        rises = (activity(model) - activity(base).detach()).relu()
        return (rises[mask.bool()] ** power).mean()

    def test_padding_is_known_without_a_mask(self, folder: Path):
        """Breaks if padding is counted where a loop gives no mask: its activity would then be pushed too."""
        model = moved(folder)
        hook = LatentPenalty(HOOK, random_sae(), LATENTS, load(folder), PenaltyConfig())
        with hook.on(model):
            model(input_ids=TOKENS)
            assert torch.equal(hook._now.real, TOKENS != 0)

    def test_nothing_is_asked_of_the_base_itself(self, folder: Path):
        """Breaks if the base is read at another place or with another input than the model."""
        model, hook = load(folder), LatentPenalty(HOOK, random_sae(), LATENTS, load(folder), PenaltyConfig(weight=1e3))
        with hook.on(model):
            loss_of(model).backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        loss_of(model).backward()
        assert all(torch.equal(found[n], p.grad) for n, p in model.named_parameters() if p.grad is not None)

    @pytest.mark.parametrize("latents", [[], [64], [-1]])
    def test_latents_that_are_not_there_are_refused(self, folder: Path, latents: list[int]):
        with pytest.raises(UserError, match="can't be penalised"):
            LatentPenalty(HOOK, random_sae(), latents, load(folder), PenaltyConfig())


def arguments(folder: Path, **values: Any) -> TrainingArguments:
    settings = {"max_steps": 4, "learning_rate": 1e-3, "report_to": [], "use_cpu": True, "save_strategy": "no"}
    shown = {"disable_tqdm": True, "per_device_train_batch_size": 2, "seed": 0}
    return TrainingArguments(output_dir=str(folder), **settings, **shown, **values)


def trained(folder: Path, out: Path, hook: TrainingHook | None, **values: Any) -> Any:
    """A real Trainer on the tiny checkpoint."""
    model = moved(folder)
    rows: Any = [{"input_ids": row, "attention_mask": (row != 0).long(), "labels": row} for row in TOKENS]
    Trainer(model, arguments(out, **values), train_dataset=rows, callbacks=[hook] if hook else []).train()
    return model.eval()


def risen(model: Any, hook: LatentPenalty) -> float:
    """The penalty of a trained model."""
    hook.attach(model)
    model(input_ids=TOKENS)
    hook.remove()
    with torch.no_grad():
        h = outputs(model, find_block(model, HOOK))
        return float(hook.penalty(h, hook._now.base, hook._now.real))


class TestTrainer:
    def test_the_penalty_keeps_latents_down(self, folder: Path, tmp_path: Path):
        """Breaks if the callback is never attached, or the penalty does not reach the Trainer's backward pass."""
        hook = LatentPenalty(HOOK, random_sae(), LATENTS, load(folder), PenaltyConfig(weight=10.0))
        with_penalty, without = trained(folder, tmp_path, hook), trained(folder, tmp_path, None)
        assert not hook._handles
        assert risen(with_penalty, hook) < 0.9 * risen(without, hook)

    def test_steering_changes_what_is_learned_and_is_gone_after(self, folder: Path, tmp_path: Path):
        """Breaks if the callback does nothing, or stays on the trained model."""
        hook = steering(2.0)
        steered, plain = trained(folder, tmp_path, hook), trained(folder, tmp_path, None)
        assert not find_block(steered, HOOK)._forward_hooks
        assert not torch.equal(steered.get_input_embeddings().weight, plain.get_input_embeddings().weight)

    def test_what_does_not_go_together_is_refused(self, folder: Path, tmp_path: Path):
        """Breaks if training goes on although it would be unsteered, or the penalty would vanish."""
        with pytest.raises(UserError, match="gradient checkpointing"):
            trained(folder, tmp_path, steering(), gradient_checkpointing=True)
        hook = LatentPenalty(HOOK, random_sae(), LATENTS, load(folder), PenaltyConfig())
        half = arguments(tmp_path)
        half.fp16 = True  # asked for without a GPU it would be refused before
        with pytest.raises(UserError, match="fp16"):
            hook.on_train_begin(half, TrainerState(), TrainerControl(), model=load(folder))
