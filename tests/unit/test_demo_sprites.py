"""The emoji that the demo model and the attention benchmarks are made of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from demo_model import sprites
from training.errors import ErasureError


def test_the_package_that_draws_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    monkeypatch.setattr(sprites, "_fetch", lambda package, cache: cache)
    with pytest.raises(ErasureError, match="pip install resvg_py"):
        sprites.load_sprites(tmp_path / "new")
    assert not (tmp_path / "new" / "sprites.npy").exists()
