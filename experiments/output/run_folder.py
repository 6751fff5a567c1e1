"""The folder of a run: one config, one process at a time, finished stages reused and timed."""

import fcntl
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from activations.artefact import CONFIG, read_json, write_json
from activations.errors import UserError

T = TypeVar("T")
Log = Callable[[str], None]
_RUN = "run.json"
_LOCK = ".lock"


class RunFolder:
    """Opens a run's folder for one process.

    Args:
        folder: Where the run writes; new, or that of an earlier run with the same config.
        config: The run's config; kept in `run.json`.
        overwrite: Whether to delete what an earlier run wrote.
        log: Receives a line for each stage.

    Raises:
        UserError: if the folder is in use by another process, holds something else, or a run with another config.
    """

    def __init__(self, folder: Path, config: dict[str, Any], overwrite: bool, log: Log):
        self.folder, self.log = folder, log
        self.seconds: dict[str, float] = {}
        self._config, self._overwrite = config, overwrite

    def __enter__(self) -> Self:
        _require_ours(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / _LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"Output folder {self.folder} is in use by another run; wait for it or choose another --out."
            ) from None
        if self._overwrite:
            _clear(self.folder)
        self._require_same_config()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def stage(
        self, name: str, build: Callable[[], T], artefact: Path | None = None, load: Callable[[], T] | None = None
    ) -> T:
        """The result of a stage: loaded if its artefact is finished, else built; its seconds are kept either way.

        Without `load` the stage is one that reuses what it finds, so `build` loads too.
        """
        if artefact is not None and (artefact / CONFIG).exists():
            self.log(f"{name}: reused from {artefact}")
            return (load or build)()
        self.log(f"{name} ...")
        started = time.perf_counter()
        result = build()
        self.seconds[name] = round(time.perf_counter() - started, 2)
        write_json(self.folder / _RUN, {"config": self._config, "stage_seconds": self.seconds})
        return result

    def _require_same_config(self) -> None:
        path = self.folder / _RUN
        if not path.exists():
            write_json(path, {"config": self._config, "stage_seconds": {}})
            return
        earlier = read_json(path)
        self.seconds = earlier["stage_seconds"]
        different = [key for key in self._config if earlier["config"].get(key) != self._config[key]]
        if different:
            raise UserError(
                f"Output folder {self.folder} is in use: it holds a run with another {', '.join(different)}; "
                "choose another --out, or --overwrite to redo it."
            )


def _require_ours(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"Output folder {folder} is a file; choose another --out.")
    if folder.exists() and any(folder.iterdir()) and not (folder / _RUN).exists() and not (folder / _LOCK).exists():
        raise UserError(f"Output folder {folder} is in use: it holds files that no run wrote; choose another --out.")


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == _LOCK:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
