"""The atomic write and the reader of JSON: old or new, never a part, whatever fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from training import files
from training.errors import JobError
from training.files import read_json, read_json_or_none, replacing, sha256_of, write_atomically, write_json


def test_parts_are_written_one_behind_the_other(tmp_path: Path) -> None:
    path = tmp_path / "car.bin"
    path.write_bytes(b"old")
    write_atomically(path, b"header", memoryview(b"data"))
    assert path.read_bytes() == b"headerdata"
    assert sha256_of(path) == "1c23b1556b94e51a7a13fb54847ccb1053a9bf8829b302de301a2e0f816d9c77"
    assert os.listdir(tmp_path) == ["car.bin"]


def test_everybody_may_read_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "atomic", b"x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    with pytest.raises(TypeError):
        write_atomically(path, b"half", 3)  # type: ignore[arg-type]
    assert read_json_or_none(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize("refusals", [1, 19, 20])
def test_a_file_that_another_process_has_open_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    path, replace, asked = tmp_path / "state.json", os.replace, []

    def as_windows(source: Path, target: Path) -> None:
        asked.append(target)
        if len(asked) <= refusals:
            raise PermissionError(13, "Access is denied")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", as_windows)
    monkeypatch.setattr(files, "_PAUSE_SECONDS", 0)
    if refusals < 20:
        write_atomically(path, b"new")
        assert path.read_bytes() == b"new"
    else:
        with pytest.raises(PermissionError):
            write_atomically(path, b"new")
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [None, b"", b'{"half": ', b"[1]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_one_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "job.json"
    if content is not None:
        path.write_bytes(content)
    assert read_json_or_none(path) is None
    with pytest.raises(JobError, match="delete it"):
        read_json(path, JobError("The job cannot be read: delete it."))
