"""The one atomic write, the one reader of JSON files, and hashes of files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ATTEMPTS = 20  # to replace a file that another process has open, which Windows refuses
_PAUSE_SECONDS = 0.05  # between two of them
_BLOCK = 1024 * 1024  # bytes that are hashed at once


@contextlib.contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Gives a file beside `path` to write to, which takes its place when the block ends without an error.

    A reader, or a crash at any moment, sees the old file or the whole new one. `path` may have one writer at a time:
    what a killed one has left is overwritten by the next.

    Args:
        path: the file to replace, in a folder that exists.
        temporary: where to write meanwhile, in the same folder; default: `path`'s name with a dot and ".part".

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    temporary = temporary or path.with_name(f".{path.name}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                os.replace(temporary, path)
                return
            except PermissionError:
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(_PAUSE_SECONDS)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Replaces a file by `parts`, one behind the other, in one step; any number of processes may do so at once.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    own = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.part")
    with replacing(path, own) as temporary, temporary.open("xb") as file:
        file.writelines(parts)


def write_json(path: Path, value: Any) -> None:
    """Replaces a file by JSON atomically, one space deep. Raises OSError."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1).encode())


def read_json(path: Path, error: Exception) -> dict[str, Any]:
    """The JSON object in a file. Raises `error` where it is missing, broken or holds something else."""
    value = read_json_or_none(path)
    if value is None:
        raise error
    return value


def read_json_or_none(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where it is missing, broken or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's contents, in hexadecimal. Raises OSError."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()
