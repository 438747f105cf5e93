"""Results on disk: one row per thing measured, kept as soon as it exists, so that a rerun does only what is missing.

`<folder>/<name>.json` holds {"name", "date", "command", "machine", "summary", "rows"}, one row a line. A row's key is a
hash of all that decides it; its slot is its place in the table. Several processes may write one file.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def key_of(settings: Mapping[str, Any]) -> str:
    """A hash of `settings` (JSON values), whatever the order of its names."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def files_digest(paths: Iterable[Path]) -> str:
    """A hash of the files' bytes, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def machine() -> dict[str, object]:
    """What a timing depends on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": os.cpu_count(), "machine": platform.machine(), "gpu": gpu, "torch": torch.__version__}


def command(arguments: Sequence[str], script: str = "scripts/bench.py") -> str:
    """How a result is made again: without the folder that it was written to, and as no one process of several."""
    kept, rest = [script], iter(arguments)
    for argument in rest:
        if argument == "--out":
            next(rest, None)
        elif argument != "--worker" and not argument.startswith("--out="):
            kept.append(argument)
    return shlex.join(kept)


def read_result(path: Path) -> dict[str, Any] | None:
    """The result file's content; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


class Rows:
    """The rows of one result file, made by `script`; `locks` is a folder for lock files."""

    def __init__(self, path: Path, locks: Path, script: str = "scripts/bench.py") -> None:
        self.path, self.locks, self.script = path, locks, script

    def all(self) -> list[Row]:
        """The rows that there are now."""
        result = read_result(self.path)
        return result["rows"] if result else []

    def put(self, key: str, slot: Mapping[str, Any], row: Mapping[str, Any]) -> Row:
        """Adds a row in the place of an older one with the same slot. → it, with key, slot and date."""
        where = machine()
        made_on = where["gpu"] or f"{where['machine']}, {where['cores']} cores"
        whole = {"key": key, **slot, "date": datetime.date.today().isoformat(), "machine": made_on, **row}
        with self._lock(f"file-{self.path.stem}"):
            rows = [old for old in self.all() if any(old.get(name) != value for name, value in slot.items())]
            self._write([*rows, whole], None)
        return whole

    def summarise(self, summary: Any) -> None:
        """Writes the summary of all rows beside them."""
        with self._lock(f"file-{self.path.stem}"):
            self._write(self.all(), summary)

    @contextmanager
    def claim(self, what: str) -> Iterator[bool]:
        """Whether this process alone works on `what` while the context lasts; False: another does.

        The claim of a process that was killed is free again.
        """
        from filelock import Timeout

        lock = self._lock(f"claim-{self.path.stem}-{key_of({'claim': what})}", wait=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _lock(self, name: str, wait: float = -1):
        from filelock import FileLock

        self.locks.mkdir(parents=True, exist_ok=True)
        return FileLock(self.locks / f"{name}.lock", timeout=wait)

    def _write(self, rows: list[Row], summary: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "name": self.path.stem,
            "date": datetime.date.today().isoformat(),
            "command": command(sys.argv[1:], self.script),
            "machine": machine(),
            "summary": summary,
        }
        head = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items())
        body = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        temporary = self.path.with_name(f".{self.path.name}.part")
        temporary.write_text(f'{{\n{head},\n"rows": [\n{body}\n]\n}}\n', encoding="utf-8")
        os.replace(temporary, self.path)
