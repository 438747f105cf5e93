"""alpha where a file's tensors do not hold it: PEFT's settings of an adapter, inside the file or beside it.

diffusers' `save_lora_weights` writes them into the metadata of the safetensors file, PEFT's `save_pretrained` into
adapter_config.json beside adapter_model.safetensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

KEY_ADAPTER = "lora_adapter_metadata"  # diffusers' name of the metadata entry
CONFIG_FILE = "adapter_config.json"
_PEFT_FILE = "adapter_model"
_MAX_BYTES = 1 << 20  # a larger one is no adapter_config.json
_MAX_QUANTIFIERS = 3  # in a pattern from a file: more could take forever to match


@dataclass(frozen=True)
class AdapterConfig:
    """PEFT's settings of one adapter. where: the metadata entry or the file they are from."""

    where: str
    rank: int
    alpha: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    rslora: bool

    def rank_of(self, module: str) -> int:
        """The rank that a layer should have."""
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """The factor of a layer's B A: alpha / rank; with rsLoRA alpha / √rank (Kalajdzievski, 2023, Eq. 8)."""
        rank = self.rank_of(module)
        return _by_pattern(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


def read_config(path: Path, metadata: Mapping[str, str]) -> AdapterConfig | None:
    """The settings that belong to the LoRA file at `path` with this metadata; None if there are none to be read.

    adapter_config.json counts for the file that PEFT writes beside it, and for a file that is alone in its folder: in a
    folder of many LoRAs nobody could tell whose it is.
    """
    values = _object(metadata.get(KEY_ADAPTER, ""))
    start = "transformer."  # beside those of text encoders; a model's own `save_lora_adapter` has no such start
    own = {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
    if values:
        return _config(KEY_ADAPTER, own or values)
    beside = path.with_name(CONFIG_FILE)
    try:
        if not beside.is_file() or beside.stat().st_size > _MAX_BYTES:
            return None
        others = [each for each in path.parent.iterdir() if each.suffix.lower() == path.suffix.lower()]
        if path.stem != _PEFT_FILE and len(others) > 1:
            return None
        return _config(CONFIG_FILE, _object(beside.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError):
        return None


def _object(text: str) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _config(where: str, values: Mapping[str, Any]) -> AdapterConfig | None:
    """The settings, if they are numbers as PEFT writes them (LoHa's and LoKr's call lora_alpha alpha)."""
    rank, alpha = values.get("r"), values.get("lora_alpha", values.get("alpha"))
    patterns = [values.get(name) or {} for name in ("rank_pattern", "alpha_pattern")]
    if not (_is_positive(rank) and _is_number(alpha) and all(isinstance(each, dict) for each in patterns)):
        return None
    ranks, alphas = patterns
    if not all(map(_is_positive, ranks.values())) or not all(map(_is_number, alphas.values())):
        return None
    return AdapterConfig(where, int(rank), float(alpha), ranks, alphas, values.get("use_rslora") is True)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: object) -> TypeGuard[float]:
    return _is_number(value) and value >= 1


def _by_pattern(patterns: Mapping[str, float], module: str, otherwise: float) -> float:
    """The value of the first pattern that a layer's name ends in: regular expressions, as PEFT takes them."""
    for pattern, value in patterns.items():
        if len(re.findall(r"[*+?{]", pattern)) > _MAX_QUANTIFIERS or re.search(r"\)[*+?{]", pattern):
            continue
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
        except re.error:
            continue
    return otherwise
