"""Speed and quality of SAE training beside sae-lens, dictionary_learning and sparsify, relative to the dense products.

    make bench-peers && python -m benchmarks.sae_training

Every method trains on the same batches in a process of its own, and the processes take turns. The bound is the time of
the five matrix products of a dense autoencoder's step; a sparse engine can be faster than it (about 3.6 times, if
nothing but the encode product cost time).
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.measure import Target, print_result, print_table
from benchmarks.sae_worker import METHODS, Size

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
ELSEWHERE = ("dictionary_learning", "sparsify")
BOUND = "bound: five dense products"


class Worker:
    """A process that trains with one library."""

    def __init__(self, method: str, size: Size) -> None:
        python = str(PEERS) if method in ELSEWHERE else sys.executable
        command = [python, "-m", "benchmarks.sae_worker", method, json.dumps(asdict(size))]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, steps: int) -> dict[str, float]:
        """Trains `steps` steps; 0: reports error and memory."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{' '.join(self._process.args)} ended; run it by hand to see why.")  # pyright: ignore[reportArgumentType]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(size: Size, methods: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds a step, error on fresh rows after all steps, and peak memory of training, by method."""
    workers = {method: Worker(method, size) for method in methods}
    each = max(1, size.steps // rounds)
    rounds_of: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for _ in range(rounds):
        for method, worker in workers.items():
            rounds_of[method].append(worker.ask(each))
    found = {}
    for method, worker in workers.items():
        seconds = statistics.median(answer["seconds"] for answer in rounds_of[method]) / each
        found[method] = {"seconds": seconds, "peak_mb": rounds_of[method][-1]["peak_mb"], **worker.ask(0)}
        worker.close()
    return found


def report(size: Size, found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Prints the table of one size; the figures of each method."""
    print(f"\nd_model {size.d_model}, {size.latents} latents, k {size.k}, batch {size.batch}, {size.steps} steps\n")
    bound = found[BOUND]["seconds"]
    figures = {
        name: {
            "tokens_per_second": size.batch / each["seconds"],
            "of_bound": bound / each["seconds"],
            "fvu": each["fvu"],
            "peak_mb": each["peak_mb"],
        }
        for name, each in found.items()
    }
    print_table(("", "tokens/s", "of the bound", "FVU", "memory (MB)"), [(n, *f.values()) for n, f in figures.items()])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--latents", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wide", type=int, default=65536, help="Latents of the second size; 0 leaves it out.")
    parser.add_argument("--wide-steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="Some of them (the bound always).")
    arguments = parser.parse_args()
    methods = [method for method in METHODS if method == BOUND or method in arguments.methods]
    if not PEERS.exists():
        print(f"without {', '.join(ELSEWHERE)}: their environment is made by `make bench-peers`")
        methods = [method for method in methods if method not in ELSEWHERE]
    size = Size(arguments.d_model, arguments.latents, arguments.k, arguments.batch, arguments.steps, arguments.device)
    results = {"first": report(size, measure(size, methods, arguments.rounds))}
    if arguments.wide:
        wide = Size(**{**asdict(size), "latents": arguments.wide, "steps": arguments.wide_steps})
        some = [m for m in methods if m in (BOUND, "ours", "sparsify")]
        results["wide"] = report(wide, measure(wide, some, min(arguments.rounds, arguments.wide_steps)))
    print_result("sae_training", results, targets(results))


def targets(results: dict[str, dict[str, dict[str, float]]]) -> dict[str, Target]:
    """Those of the figures that were measured."""
    first, wide = results["first"], results.get("wide", {})
    found: dict[str, Target] = {}
    if "ours" in first:
        found["ours / dense bound"] = Target(first["ours"]["of_bound"], 1.7)
        peers = [f["fvu"] for name, f in first.items() if not name.startswith(("ours", "bound"))]
        if peers:
            found["best peer's FVU / ours"] = Target(min(peers) / first["ours"]["fvu"], 0.99)
        if "sparsify" in first:
            found["sparsify's memory / ours"] = Target(first["sparsify"]["peak_mb"] / first["ours"]["peak_mb"], 1)
        if "ours" in wide:
            found["ratio to the bound, wide / first"] = Target(wide["ours"]["of_bound"] / first["ours"]["of_bound"], 1)
    if "ours, bf16 encode" in first:
        found["ours with bf16 encode / dense bound"] = Target(first["ours, bf16 encode"]["of_bound"], 2.4)
    return found


if __name__ == "__main__":
    main()
