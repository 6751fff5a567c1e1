"""Stores of activations: what they hold, whether they are sound, joining them (`sae-diff store`)."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Stores of activations: what they hold, whether they are sound, joining them.")
console = Console(highlight=False)


@app.command()
def info(folder: Annotated[Path, typer.Argument(help="Folder of a store.")]) -> None:
    """Show what a store holds and where it comes from."""
    from activations.store import ActivationStore

    found = ActivationStore.load(folder)
    table = Table(show_header=False, box=None)
    for name, value in found.config.items():
        table.add_row(name, str(value))
    table.add_row("prompts", f"{len(found.prompt_ids):,}")
    table.add_row("shards, bytes", f"{found.shards:,}, {found.bytes:,}")
    console.print(table)


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="Folder of a store.")]) -> None:
    """Compare every shard with its checksum."""
    from activations.store import ActivationStore

    found = ActivationStore.load(folder)
    found.verify()
    console.print(f"{folder}: {found.shards} shards, {found.rows:,} rows, all sound")


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Stores, or shares of one harvest from several machines.")],
    out: Annotated[Path, typer.Option(help="Folder of the joined store.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo what the output folder already holds.")] = False,
) -> None:
    """Join stores without copying activations: the new store lists the shards where they are."""
    from activations.store import merge_stores

    merged = merge_stores(folders, out, overwrite)
    console.print(f"{out}: {merged.shards} shards, {merged.rows:,} rows")
