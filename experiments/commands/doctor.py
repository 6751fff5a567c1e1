"""What this machine has (`sae-diff doctor`)."""

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

PACKAGES = ("sae-model-diffing", "torch", "transformers", "transformer-lens", "sae-lens", "peft", "h5py", "wandb")
console = Console(highlight=False)


def doctor() -> None:
    """Show versions, device, disk and threads, and say what is missing."""
    import torch

    table = Table(show_header=False, box=None)
    for package in PACKAGES:
        table.add_row(package, _version(package))
    table.add_row("python", sys.version.split()[0])
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    table.add_row("device", ", ".join(gpus) or "cpu only")
    table.add_row("cores, threads", f"{os.cpu_count()}, {torch.get_num_threads()} (OMP_NUM_THREADS sets the latter)")
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    table.add_row("disk free here", f"{free:.1f} GB")
    console.print(table)
    missing = [package for package in PACKAGES if _version(package) == "missing"]
    for package in missing:
        console.print(f"missing: {package}; run `make setup`")
    if free < 2:
        console.print("low disk: the quickstart writes about 1 GB")
    raise typer.Exit(1 if missing else 0)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
