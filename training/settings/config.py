"""All settings of a training as one flat object, and what of them the concept's kind decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pydantic import ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass, is_pydantic_dataclass

from ..concepts import Kind
from ..errors import ConfigError
from .data import DataSettings
from .field import STRICT, Affects, Setting
from .lora import LoraSettings
from .memory import MemorySettings
from .method import MethodSettings
from .output import OutputSettings

GROUPS: dict[str, type] = {
    "method": MethodSettings,
    "lora": LoraSettings,
    "data": DataSettings,
    "memory": MemorySettings,
    "output": OutputSettings,
}

# Every setting by its name, group by group.
SETTINGS: dict[str, Setting] = {
    name: Setting.of(name, info, group)
    for group, cls in GROUPS.items()
    if is_pydantic_dataclass(cls)
    for name, info in cls.__pydantic_fields__.items()
}

# What settings are for a kind of concept where they have their default, which leaves them to it. A thing is most of its
# picture, and goes with all of it. A style or a relation is not: sent to the empty prompt, what is drawn in it would go
# too; and to paint the same in another way takes more than what the text's q and k can change. More weights follow the
# noise of single samples further: there a step has more of them.
_THING = {"targets": "text_qk", "eta": 0.5, "erase_to": "empty", "batch_erase": 1, "batch_preserve": 1}
_PART = {"targets": "all", "erase_to": "rest", "batch_erase": 4, "batch_preserve": 4}
OF_KIND: dict[Kind, dict[str, Any]] = {
    "entity": _THING,
    "custom": _THING,
    "abstraction": {**_PART, "eta": 3.0},
    "relationship": {**_PART, "eta": 0.0},
}

_OUT_OF_RANGE = ("greater_than_equal", "less_than_equal")


def names_affecting(*what: Affects) -> frozenset[str]:
    """Names of the settings whose `affects` is one of `what`."""
    return frozenset(name for name, setting in SETTINGS.items() if setting.affects in what)


# A dataclass's fields come in the order of its bases from the last one.
@dataclass(frozen=True, config=STRICT)
class ErasureConfig(OutputSettings, MemorySettings, DataSettings, LoraSettings, MethodSettings):
    """The settings of a training. Each is of its type and in its range, or ConfigError is raised, however it is made:
    by name, by `dataclasses.replace`, from JSON."""

    @model_validator(mode="wrap")
    @classmethod
    def _one_sentence(cls, data: Any, handler: ModelWrapValidatorHandler[ErasureConfig]) -> ErasureConfig:
        try:
            return handler(data)
        except ValidationError as error:
            raise ConfigError(_sentence(error)) from None

    def for_kind(self, kind: Kind) -> ErasureConfig:
        """These settings with those decided that are left to the concept's kind: `OF_KIND`.

        The other methods' η is their own, 1 for every kind.
        """
        decided = {**OF_KIND[kind], **({"eta": 1.0} if self.method != "eraseanything" else {})}
        left = {name: value for name, value in decided.items() if getattr(self, name) == SETTINGS[name].default}
        return dataclasses.replace(self, **left)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ErasureConfig:
        """From `to_dict`'s result or a part of it (the rest keeps its default). Raises ConfigError."""
        if not isinstance(data, dict):
            raise ConfigError(_unknown([repr(data)]))
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        config = cls(**values)
        config.validate()
        return config

    def validate(self) -> None:
        """Raises ConfigError where what was asked for contradicts itself."""
        if self.stream_blocks and self.gradient_checkpointing == "off":
            raise ConfigError(
                "The setting stream_blocks needs gradient_checkpointing: leave that on auto, or set it on."
            )


def _sentence(error: ValidationError) -> str:
    """What is wrong: with the names, or with the first of the values that are refused."""
    errors = error.errors(include_url=False)
    unknown = [str(each["loc"][0]) for each in errors if each["type"] == "unexpected_keyword_argument"]
    if unknown:
        return _unknown(unknown)
    (name, *inner), value = errors[0]["loc"], errors[0]["input"]
    setting = SETTINGS[str(name)]
    in_list = bool(inner) and isinstance(inner[0], int)
    if not in_list and isinstance(value, tuple) != setting.several:
        return f"The setting {name} must be {'a list' if setting.several else 'one value, no list'}, not {value!r}."
    return setting.refusal(value, errors[0]["type"] in _OUT_OF_RANGE)


def _unknown(names: Sequence[str]) -> str:
    return f"Unknown training setting {', '.join(sorted(names))}: choose from {', '.join(sorted(SETTINGS))}."
