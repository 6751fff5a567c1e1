"""Writing and reading activations: our store, the raw floor, and what people use instead.

All write the same bytes durably (fsync) and read them from a warm page cache. Our figures include the xxh3_128 checksum
of every shard on writing (computed while fsync waits for the disk); on reading it is checked when a shard is first
opened, which happens before the clock starts. The shuffled reader runs on through all rounds, as in training.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from activations.prompts import Role
from activations.shuffle import Shuffle
from activations.store import ActivationStore, StoreWriter
from activations.store import reader as store_reader
from activations.tokens import add_hashes
from benchmarks.measure import Target, interleave, print_result, print_table

HOOK = "blocks.0.hook_resid_post"
FANCY_ROWS = 2000
BATCH = 4096


class Shards:
    """The same activations for every method: float32 shards in memory."""

    def __init__(self, shards: int, rows: int, d_model: int) -> None:
        generator = np.random.default_rng(0)
        self.arrays = [generator.standard_normal((rows, d_model), dtype=np.float32) for _ in range(shards)]
        self.rows, self.d_model = rows, d_model
        self.bytes = sum(array.nbytes for array in self.arrays)
        self.index = {
            "token": np.zeros(rows, np.int32),
            "prompt": np.repeat(np.arange(rows // 64, dtype=np.int32), 64),
            "position": np.tile(np.arange(64, dtype=np.int32), rows // 64),
            "role": np.full(rows, Role.PROMPT, np.uint8),
        }


def write_ours(data: Shards, folder: Path) -> None:
    with StoreWriter(folder, {HOOK: data.d_model}, "float32", {"model": "random"}) as writer:
        for number, array in enumerate(data.arrays):
            per = data.rows // 64
            ids = {number * per + i: f"{number}:{i}" for i in range(per)}
            index = {**data.index, "prompt": data.index["prompt"] + number * per}
            writer.write(number, {HOOK: torch.from_numpy(array)}, index, ids, f"{number:032x}")
        writer.close(len(data.arrays), add_hashes(f"{n:032x}" for n in range(len(data.arrays))))


def write_raw(data: Shards, folder: Path) -> None:
    for number, array in enumerate(data.arrays):
        with (folder / f"{number}.bin").open("wb", buffering=0) as file:
            view = array.reshape(-1).view(np.uint8).data
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())


def write_h5py(data: Shards, folder: Path) -> None:
    for number, array in enumerate(data.arrays):
        with h5py.File(folder / f"{number}.h5", "w") as file:
            file.create_dataset("x", data=array, chunks=(4096, data.d_model))
        sync(folder / f"{number}.h5")


def write_memmap(data: Shards, folder: Path) -> None:
    for number, array in enumerate(data.arrays):
        mapped = np.lib.format.open_memmap(folder / f"{number}.npy", "w+", np.float32, array.shape)
        mapped[:] = array
        mapped.flush()
        sync(folder / f"{number}.npy")


def write_safetensors(data: Shards, folder: Path) -> None:
    for number, array in enumerate(data.arrays):
        save_file({"x": array}, folder / f"{number}.safetensors")
        sync(folder / f"{number}.safetensors")


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_raw(folder: Path, buffer: bytearray) -> None:
    for path in sorted(folder.glob("*.bin")):
        descriptor, at, size = os.open(path, os.O_RDONLY), 0, path.stat().st_size
        while at < size:
            at += os.preadv(descriptor, [memoryview(buffer)[at:size]], at)
        os.close(descriptor)


def read_shuffled(batches: Iterator[torch.Tensor], count: int) -> None:
    for _ in range(count):
        next(batches)


def read_in_order(store: ActivationStore) -> None:
    for _ in store.chunks(HOOK):
        pass


def read_h5py_slices(folder: Path) -> None:
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            dataset = file["x"]
            assert isinstance(dataset, h5py.Dataset)
            for start in range(0, len(dataset), 4096):
                dataset[start : start + 4096]


def read_h5py_rows(folder: Path) -> None:
    """A few thousand random rows of the first file, as row-wise fancy indexing reads them."""
    with h5py.File(folder / "0.h5") as file:
        dataset = file["x"]
        assert isinstance(dataset, h5py.Dataset)
        rows = np.sort(np.random.default_rng(0).choice(len(dataset), FANCY_ROWS, replace=False))
        dataset[rows]


def read_memmap_shuffled(data: Shards, folder: Path) -> None:
    """Random rows across all files, gathered batch by batch."""
    maps = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))]
    order = np.random.default_rng(0).permutation(data.rows * len(maps))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        out = np.empty((len(chosen), data.d_model), np.float32)
        for number, mapped in enumerate(maps):
            here = chosen // data.rows == number
            out[here] = mapped[chosen[here] % data.rows]


def read_safetensors(folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        load_file(path)


@contextmanager
def fresh(parent: Path) -> Iterator[Callable[[Callable[[Path], None]], Callable[[], None]]]:
    """Makes writers write to an empty folder each time."""
    folder = parent / "scratch"

    def into(write: Callable[[Path], None]) -> Callable[[], None]:
        def run() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write(folder)

        return run

    yield into
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None, help="On the disk to measure (default: a temporary one).")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rows", type=int, default=65536, help="Rows of a shard.")
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    data = Shards(arguments.shards, arguments.rows, arguments.d_model)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as made, fresh(Path(made)) as into:
        writers = {
            "raw write + fsync": write_raw,
            "ours (with checksum)": write_ours,
            "h5py": write_h5py,
            "np.memmap": write_memmap,
            "safetensors": write_safetensors,
        }
        timed = {name: into(lambda folder, write=write: write(data, folder)) for name, write in writers.items()}
        writing = interleave(timed, arguments.rounds)

        folder = Path(made) / "read"
        folder.mkdir()
        for write in (write_raw, write_h5py, write_memmap, write_safetensors):
            write(data, folder)
        write_ours(data, folder / "ours")
        store = ActivationStore.load(folder / "ours")
        store.verify()
        store_reader.READ_AHEAD_BYTES = 0
        # Training reads for hours: the reader's start, once, stays outside the clock.
        endless = store.batches(HOOK, BATCH, Shuffle(0, roles=None), reuse=True)
        read_shuffled(endless, 4 * store.rows // BATCH)
        buffer = bytearray(max(array.nbytes for array in data.arrays))
        reading = interleave(
            {
                "raw preadv": lambda: read_raw(folder, buffer),
                "ours, shuffled": lambda: read_shuffled(endless, store.rows // BATCH),
                "ours, in order": lambda: read_in_order(store),
                "h5py, slices in order": lambda: read_h5py_slices(folder),
                "h5py, random rows": lambda: read_h5py_rows(folder),
                "np.memmap, shuffled": lambda: read_memmap_shuffled(data, folder),
                "safetensors, in order": lambda: read_safetensors(folder),
            },
            arguments.rounds,
        )
    size = dict.fromkeys(reading, data.bytes) | {"h5py, random rows": FANCY_ROWS * data.d_model * 4}
    write_speed = {name: data.bytes / 1e9 / seconds for name, seconds in writing.items()}
    read_speed = {name: size[name] / 1e9 / seconds for name, seconds in reading.items()}
    print_table(
        ("", "GB/s", "of raw"),
        [(f"write: {n}", s, s / write_speed["raw write + fsync"]) for n, s in write_speed.items()]
        + [(f"read: {n}", s, s / read_speed["raw preadv"]) for n, s in read_speed.items()],
    )
    ours, shuffled = write_speed["ours (with checksum)"], read_speed["ours, shuffled"]
    targets = {
        "write / raw write + fsync": Target(ours / write_speed["raw write + fsync"], 0.65),
        "shuffled read / raw preadv": Target(shuffled / read_speed["raw preadv"], 0.9),
        "shuffled read / row-wise fancy indexing": Target(shuffled / read_speed["h5py, random rows"], 100),
    }
    print_result("store", {"write_GB_s": write_speed, "read_GB_s": read_speed}, targets)


if __name__ == "__main__":
    main()
