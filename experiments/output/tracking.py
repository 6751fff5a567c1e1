"""Weights & Biases: the only module that knows it.

Everything that W&B writes lies in `<run folder>/wandb`, the staged copies of artifacts too. An offline run names those
copies by paths relative to the run folder, so the folder may move; it is uploaded later from there:

    cd <run folder> && wandb sync wandb/offline-run-*
"""

import contextlib
import functools
import io
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from activations.artefact import read_json
from activations.errors import UserError
from experiments.output.highlight import highlight_all

if TYPE_CHECKING:
    import pandas as pd
    import wandb

    from diffing.ranking.examples import LatentExample
    from diffing.ranking.feature_ranking import FeatureRanking

Mode = Literal["offline", "online", "disabled"]
# Rows of the latent table, and of any other.
TABLE_LATENTS = 100
TABLE_ROWS = 10_000
# Seconds that an online run may take to start.
START_TIMEOUT = 60
_ARTIFACT_SPEC = re.compile(r"wandb:(?P<path>[\w.-]+/[\w.-]+/[\w.-]+:[\w.-]+)")


class Tracker:
    """A W&B run, or nothing at all where W&B is disabled. Made by `start_tracker`; a context manager.

    Once started, no trouble with W&B ends the run that is tracked: it is reported as a warning, and tracking goes on
    with what still works.

    Attributes:
        sync_command: What uploads an offline run; None for other modes.
    """

    def __init__(
        self, run: "wandb.Run | None", run_folder: Path, mode: Mode, environment: contextlib.ExitStack
    ) -> None:
        self._run = run
        self._environment = environment
        self.sync_command: str | None = None
        if run is not None and mode == "offline":
            wandb_folder = Path(run.dir).parent.relative_to(run_folder.resolve())
            self.sync_command = f"cd {shlex.quote(str(run_folder))} && wandb sync {wandb_folder}"

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(exit_code=0 if kind is None else 1)

    def log(self, stage: str, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics as `stage/name`; each stage counts its own steps."""
        with _only_warn(f"metrics of {stage}"):
            if self._run is None:
                return
            position = {} if step is None else {f"{stage}/step": step}
            if position:
                self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._run.log({**{f"{stage}/{name}": value for name, value in metrics.items()}, **position})

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Set the run's summary (nested mappings are kept)."""
        with _only_warn("the summary"):
            if self._run is not None:
                self._run.summary.update(dict(summary))

    def log_latents(self, ranking: "FeatureRanking", examples: Mapping[int, list["LatentExample"]]) -> None:
        """Log the first latents of a ranking as a table, each with its highlighted examples."""
        with _only_warn("the latent table"):
            if self._run is None:
                return
            import wandb

            top = ranking.top(TABLE_LATENTS)
            table = wandb.Table(columns=[*top.columns, "examples"])
            for row in top.to_dict("records"):
                found = examples.get(int(row["latent"]))
                # W&B's own style sheet would be fetched from its server.
                shown = wandb.Html(io.StringIO(highlight_all(found)), inject=False) if found else None
                table.add_data(*row.values(), shown)
            self._run.log({"latents": table})

    def log_table(self, name: str, table: "pd.DataFrame") -> None:
        """Log the first rows of a table."""
        with _only_warn(f"table {name}"):
            if self._run is None:
                return
            import wandb

            shown = table.head(TABLE_ROWS)
            self._run.log({name: wandb.Table(dataframe=shown, allow_mixed_types=True)})

    def log_image(self, path: Path) -> None:
        """Log an image file under its name."""
        with _only_warn(f"image {path.name}"):
            if self._run is None:
                return
            import wandb

            self._run.log({f"figures/{path.stem}": wandb.Image(str(path))})

    def log_artifact(self, folder: Path, name: str, type: str) -> None:
        """Log every file of an artefact folder, e.g. `log_artifact(run / "ranking", "ranking", "feature_ranking")`."""
        with _only_warn(f"artifact {name}"):
            if self._run is None:
                return
            import wandb

            artifact = wandb.Artifact(name, type)
            # `add_dir` would print.
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                artifact.add_file(str(file), name=file.relative_to(folder).as_posix())
            self._run.log_artifact(artifact)

    def finish(self, exit_code: int = 0) -> None:
        """End the W&B run; done by leaving the context."""
        with self._environment, _only_warn("the end of the run"):
            if self._run is not None:
                self._run.finish(exit_code=exit_code)
                self._run = None


def start_tracker(
    run_folder: Path,
    config: Mapping[str, Any],
    mode: Mode = "offline",
    project: str = "sae-model-diffing",
    entity: str | None = None,
) -> Tracker:
    """Start tracking a run.

    Args:
        run_folder: The run's folder; W&B's files go into its `wandb`.
        config: Recorded as the W&B run's config.
        mode: "offline" uses no network, "online" uploads as it goes, "disabled" does nothing.
        project: W&B project.
        entity: W&B user or team; None takes the default one of the account.

    Raises:
        UserError: if an online run cannot start (no key, no network). The other modes never raise.
    """
    environment = contextlib.ExitStack()
    run = None
    if mode != "disabled":
        environment.enter_context(_wandb_environment(run_folder))
        try:
            run = _start_run(run_folder, config, mode, project, entity)
        # W&B's failures have many types; whatever they are, an offline run must go on without it.
        except Exception as error:
            environment.close()
            if mode == "online":
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise UserError(
                    f"W&B could not start a run in project '{project}' ({reason}); run `wandb login` or set "
                    "WANDB_API_KEY, or use --wandb offline and sync later"
                ) from error
            _warn("the run", error)
    return Tracker(run, run_folder, mode, environment)


def track_result(folder: Path, command: str, mode: Mode) -> str | None:
    """Record a finished result folder: its config, summary, tables (parquet) and figures (PNG).

    Args:
        folder: What a command wrote.
        command: Its name, recorded beside the config.
        mode: As for `start_tracker`.

    Returns:
        What uploads an offline run; None for other modes.

    Raises:
        UserError: as `start_tracker`.
    """
    import pandas as pd

    config = {"command": command, **read_json(folder / "config.json")}
    with start_tracker(folder, config, mode) as tracker:
        tracker.log_summary(read_json(folder / "summary.json"))
        for path in sorted(folder.glob("*.parquet")):
            tracker.log_table(path.stem, pd.read_parquet(path))
        for path in sorted((folder / "figures").glob("*.png")):
            tracker.log_image(path)
        return tracker.sync_command


def fetch_ranking(source: str, folder: Path) -> "FeatureRanking":
    """Download a ranking that a run has logged.

    Args:
        source: "wandb:entity/project/name:alias".
        folder: Where its files go.

    Raises:
        UserError: if `source` is not of that form, or cannot be downloaded.
    """
    from diffing.ranking.feature_ranking import FeatureRanking

    match = _ARTIFACT_SPEC.fullmatch(source)
    if match is None:
        raise UserError(f"'{source}' names no W&B artifact; write wandb:entity/project/name:alias")
    import wandb

    try:
        with _no_prompt():
            artifact = wandb.Api().artifact(match["path"])
            artifact.download(root=str(folder), skip_cache=True)
    except (wandb.Error, ValueError, OSError) as error:
        raise UserError(f"{source} could not be downloaded ({error}); check the name and `wandb login`") from error
    return FeatureRanking.load(folder)


def _start_run(
    run_folder: Path, config: Mapping[str, Any], mode: Mode, project: str, entity: str | None
) -> "wandb.Run":
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        init_timeout=START_TIMEOUT,
        # A run is described by its config; the machine's name, user and load are nobody's business.
        x_disable_meta=True,
        x_disable_stats=True,
    )
    with _no_prompt():
        run = wandb.init(
            project=project,
            entity=entity,
            config=dict(config),
            mode=mode,
            dir=str(run_folder.resolve()),
            settings=settings,
            reinit="create_new",
        )
    if mode == "offline":
        # Tables log an artifact of their own through this method, so all artifacts pass here.
        run.log_artifact = _with_relative_paths(run.log_artifact, run_folder.resolve())
    return run


def _with_relative_paths(log_artifact: Callable[..., Any], run_folder: Path) -> Callable[..., Any]:
    """W&B writes absolute paths of staged files into an offline run's records; make them relative to the run folder."""

    @functools.wraps(log_artifact)
    def relative(artifact: "wandb.Artifact", *args: Any, **kwargs: Any) -> Any:
        for entry in artifact.manifest.entries.values():
            if entry.local_path:
                entry.local_path = str(Path(entry.local_path).relative_to(run_folder))
        return log_artifact(artifact, *args, **kwargs)

    return relative


@contextlib.contextmanager
def _wandb_environment(run_folder: Path) -> Iterator[None]:
    """W&B's folders inside the run's folder; the home folder may be read-only, and may not be the run's machine's."""
    home = run_folder.resolve() / "wandb"
    folders = {
        "WANDB_DIR": home.parent,
        "WANDB_DATA_DIR": home / "data",
        "WANDB_CACHE_DIR": home / "cache",
        "WANDB_CONFIG_DIR": home / "config",
        "WANDB_ARTIFACT_DIR": home / "artifacts",
    }
    values = {**{name: str(folder) for name, folder in folders.items()}, "WANDB_SILENT": "true"}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_prompt() -> Iterator[None]:
    """With nothing to read from, W&B asks for no API key: it uses the one it finds, or raises."""
    before = sys.stdin
    with Path(os.devnull).open(encoding="utf-8") as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = before


@contextlib.contextmanager
def _only_warn(what: str) -> Iterator[None]:
    """Tracking is a by-product: whatever goes wrong in it, hours of computing must not be lost over it."""
    try:
        yield
    except Exception as error:
        _warn(what, error)


def _warn(what: str, error: Exception) -> None:
    warnings.warn(f"W&B did not record {what}: {type(error).__name__}: {error}", stacklevel=3)
