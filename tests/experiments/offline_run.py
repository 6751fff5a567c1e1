"""Reads back what an offline W&B run holds on disk."""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2


@dataclass
class OfflineRun:
    """What the records of an offline run hold."""

    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    # Artifact type -> name inside the artifact -> staged file.
    artifacts: dict[str, dict[str, str]] = field(default_factory=dict)
    media: list[str] = field(default_factory=list)


def read_offline_run(folder: Path) -> OfflineRun:
    """Read the records back from the only offline run in `folder/wandb`."""
    # A finished run's log may still be on its way to disk; W&B's service writes the rest before it stops.
    wandb.teardown()
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    run = OfflineRun()
    for data in _log_records(file.read_bytes()):
        # Protobuf makes the class at run time.
        _add_record(run, wandb_internal_pb2.Record.FromString(data))  # pyright: ignore[reportAttributeAccessIssue]
    return run


def _log_records(data: bytes) -> Iterator[bytes]:
    """Records of a W&B transaction log: LevelDB's log format after a header of 7 bytes.

    In each block of 32 KiB: CRC-32 of type and payload, length, type (1 whole, 2-4 first to last part), payload.
    """
    assert data[:4] == b":W&B"
    position, block, parts = 7, 32 * 1024, b""
    while position < len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        payload = data[position + 7 : position + 7 + length]
        assert zlib.crc32(bytes([kind]) + payload) == checksum
        parts += payload
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def _add_record(run: OfflineRun, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run.project = record.run.project
        run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    elif kind == "config":
        run.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
    elif kind == "history":
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        run.history.append({key: json.loads(value) for key, value in items.items()})
    elif kind == "summary":
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.summary.update}
        run.summary |= {key: json.loads(value) for key, value in items.items()}
    elif kind == "artifact":
        run.artifacts[record.artifact.type] = {e.path: e.local_path for e in record.artifact.manifest.contents}
    elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
        artifact = record.request.log_artifact.artifact
        run.artifacts[artifact.type] = {e.path: e.local_path for e in artifact.manifest.contents}
    elif kind == "files":
        run.media += [item.path for item in record.files.files]
