"""What a setting knows of itself, and how it is declared in a group."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, cast, get_args

from pydantic import ConfigDict, Field
from pydantic.fields import FieldInfo

# What a setting reaches. bank: the recorded trajectories, and so the weights too; a changed one needs a new bank.
# weights: what is learned from the bank. output: only what a training takes and leaves behind (compile: the same
# weights to rounding); a paused training may go on with another value.
Affects = Literal["bank", "weights", "output"]

# A number that may have a fraction. An int stays an int: digests of requests are made of the text of their JSON.
Number = int | float

STRICT = ConfigDict(strict=True, extra="forbid")


def setting(
    default: Any,
    help: str,
    affects: Affects,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A field of a group of settings. help: one or more sentences; they say when to change it. low, high: inclusive."""
    return Field(default, ge=low, le=high, description=help, json_schema_extra={"affects": affects})


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting as node widgets, the command line, resume rules and documentation need it.

    type: of the value, or of each item where the value is a list. several: whether it is a list. choices: all values
    there are, of a text; () where any will do. low, high: the inclusive range of a number. group: "method", "lora",
    "data", "memory" or "output".
    """

    name: str
    default: Any
    help: str
    affects: Affects
    type: type
    several: bool
    choices: tuple[str, ...]
    low: float
    high: float
    group: str

    @classmethod
    def of(cls, name: str, info: FieldInfo, group: str) -> Setting:
        """From the field's declaration."""
        several = isinstance(info.default, tuple)
        annotation, limits, extra = info.annotation, info.metadata, info.json_schema_extra
        assert isinstance(extra, dict), "`setting` makes the field"
        if several:  # tuple[Annotated[int, Field(...)], ...]
            annotation, item = get_args(get_args(annotation)[0])
            limits = item.metadata
        choices = get_args(annotation) if annotation != Number else ()
        return cls(
            name,
            info.default,
            info.description or "",
            cast(Affects, extra["affects"]),  # `setting` has put it there
            int if several else type(info.default),
            several,
            choices,
            next((limit.ge for limit in limits if hasattr(limit, "ge")), -math.inf),
            next((limit.le for limit in limits if hasattr(limit, "le")), math.inf),
            group,
        )

    @property
    def allowed(self) -> str:
        """Its values in a few words."""
        if self.choices:
            return ", ".join(self.choices)
        if self.type in (bool, str):
            return {bool: "true or false", str: "any text"}[self.type]
        return f"{'numbers from ' if self.several else ''}{self.low:.7g} to {self.high:.7g}"

    def refusal(self, value: Any, out_of_range: bool) -> str:
        """The sentence for a value, or an item of a list, that the declaration does not allow."""
        if out_of_range:
            return f"The setting {self.name} must lie between {self.low:g} and {self.high:g}, not {value!r}."
        if self.choices and isinstance(value, str):
            return f"The setting {self.name} must be one of {', '.join(self.choices)}, not {value!r}."
        return f"The setting {self.name} must be of type {self.type.__name__}, not {value!r}."
