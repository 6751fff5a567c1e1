"""The processes of a data-parallel training: each holds one part of every batch."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from activations.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among `size` equal ones; alone, everything below is the identity."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def part(self, batch: int) -> slice:
        """This process's rows of a batch.

        Raises:
            UserError: if the batch cannot be divided evenly.
        """
        if batch % self.size:
            raise UserError(f"A batch of {batch} rows cannot be divided among {self.size} processes; change `batch`.")
        rows = batch // self.size
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def total(self, rows: int) -> int:
        """Rows of all parts, where this one has `rows`."""
        return rows * self.size

    def sum(self, *tensors: Tensor) -> None:
        """Replaces each tensor by its sum over all processes."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def any(self, flags: Shaped[Tensor, "flag"]) -> Shaped[Tensor, "flag"]:
        """Flags that are set in any process."""
        if self.size == 1:
            return flags
        counts = flags.to(torch.int32)
        dist.all_reduce(counts, dist.ReduceOp.MAX)
        return counts.bool()

    def gather(self, values: Shaped[Tensor, "value"]) -> Shaped[Tensor, "all_values"]:
        """The values of all processes, in the order of the ranks; each may have another number of them."""
        if self.size == 1:
            return values
        sizes = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(values)], device=values.device))
        padded = values.new_zeros(max(int(size) for size in sizes))
        padded[: len(values)] = values
        found = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded)
        return torch.cat([part[: int(size)] for part, size in zip(found, sizes, strict=True)])

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            dist.barrier()


ALONE = Ranks()


def join_ranks(device: str) -> tuple[Ranks, str]:
    """Joins the processes that torchrun started; alone without it.

    Args:
        device: The device that was asked for; under torchrun each process gets a GPU of its own.

    Returns:
        The ranks, and this process's device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE, device
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        device = f"cuda:{int(os.environ['LOCAL_RANK'])}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size()), device
