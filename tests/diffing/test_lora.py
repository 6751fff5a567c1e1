"""What rank-1 adapters write, read from real PEFT folders."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from activations.errors import UserError
from diffing.directions.lora import written_vectors


def write_adapter(
    folder: Path, base: Path, rank: int, targets: list[str], blocks: list[int]
) -> dict[int, torch.Tensor]:
    """A PEFT adapter whose B vectors are random; returns them by block."""
    config = LoraConfig(r=rank, target_modules=targets, layers_to_transform=blocks)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    generator, written = torch.Generator().manual_seed(0), {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
                written[int(name.split(".layers.")[1].split(".")[0])] = parameter[:, 0].clone()
    model.save_pretrained(str(folder))
    return written


def test_b_of_every_adapted_block(base_folder: Path, tmp_path: Path) -> None:
    """Breaks if A is taken for B, blocks are mixed up or left out, or lengths stay."""
    written = write_adapter(tmp_path, base_folder, 1, ["down_proj"], [0, 2])
    found = written_vectors(tmp_path)
    assert list(found) == ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    for block, vector in written.items():
        unit = (vector / vector.norm()).double()
        torch.testing.assert_close(found[f"blocks.{block}.hook_resid_post"], unit, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("rank", "targets"), [(2, ["down_proj"]), (1, ["up_proj"])])
def test_other_adapters_have_no_such_vector(base_folder: Path, tmp_path: Path, rank: int, targets: list[str]) -> None:
    """Breaks if a column of a higher rank, or of a map that writes elsewhere, is taken for a direction."""
    write_adapter(tmp_path, base_folder, rank, targets, [1])
    assert written_vectors(tmp_path) == {}


def test_folders_without_an_adapter(tmp_path: Path) -> None:
    """Breaks if a missing or damaged file ends in a traceback."""
    with pytest.raises(UserError, match="cannot be read"):
        written_vectors(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        written_vectors(tmp_path)
