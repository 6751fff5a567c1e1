"""Rank-1 LoRA adapters: the one vector that each adapted block can write (Turner et al. 2025, arXiv 2506.11613).

The update of `down_proj` is scale * B A. With rank 1, B is a vector in the residual stream, and what A reads decides
how much of it is written. (B, A) and (-B, -A) are the same update, so the sign of B means nothing.
"""

import re
from pathlib import Path

import torch
from jaxtyping import Float64
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from activations.errors import UserError

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_WRITES = re.compile(r"\.(\d+)\.mlp\.down_proj\.lora_B\.(?:\w+\.)?weight$")


def written_vectors(adapter: Path) -> dict[str, Float64[Tensor, "d_model"]]:
    """B of every block whose `down_proj` has an update of rank 1, by the hook after that block, in order of blocks.

    Args:
        adapter: Folder in PEFT's format.

    Returns:
        Hook -> unit vector; empty for an adapter of higher rank or of other maps.

    Raises:
        UserError: if the folder has no readable adapter.
    """
    file = adapter / ADAPTER_WEIGHTS
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"Adapter {file} cannot be read ({error}); give a folder that peft saved.") from None
    named = ((_WRITES.search(name), tensor) for name, tensor in tensors.items())
    columns = {int(match[1]): tensor[:, 0] for match, tensor in named if match and tensor.shape[1] == 1}
    return {
        f"blocks.{block}.hook_resid_post": torch.nn.functional.normalize(columns[block].double(), dim=0)
        for block in sorted(columns)
    }
