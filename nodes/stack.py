"""Nodes that gather LoRAs: Erasure LoRA Stack, Erasure LoRA Folder, Erasure LoRA Set, Save Erasure LoRA Set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import folder_paths

from ..training.errors import ConfigError, LoraError
from ..training.files import read_json, write_atomically
from ..training.lora.files import describe, numbered
from ..training.lora.names import validate_name
from .compat import (
    ChoosesLora,
    file_stamp,
    io,
    linked_stamp,
    list_files,
    lora_name,
    lora_stamp,
    resolve_lora,
)
from .types import CATEGORY, NONE, StackType


class Row(NamedTuple):
    """One LoRA of a stack: an absolute path and its weight."""

    path: str
    weight: float


Stack = tuple[Row, ...]
MAX_WEIGHT = 2.0


def _weight_input() -> io.Input:
    return io.Float.Input(
        "weight",
        default=1.0,
        min=-MAX_WEIGHT,
        max=MAX_WEIGHT,
        step=0.05,
        tooltip="1 as trained, less where it disturbs others, 0 leaves it out, negative brings the concept back.",
    )


def _stack_input() -> io.Input:
    return StackType.Input("stack", optional=True, tooltip="LoRAs from another stack node; these are added to them.")


def _stack_outputs() -> list[io.Output]:
    return [
        StackType.Output("loras", display_name="stack"),
        io.String.Output("info", display_name="info", tooltip="What is in it, one line each."),
    ]


class LoraStack(ChoosesLora):
    """Adds one LoRA to a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_LoraStack",
            display_name="Erasure LoRA Stack",
            category=CATEGORY,
            description="One LoRA of a stack, to apply or merge them together. Chain as many as you like.",
            inputs=[
                io.Combo.Input(
                    "lora",
                    options=[NONE, *list_files("loras")],
                    default=NONE,
                    tooltip="A Flux LoRA of any kind: erasure, style, from any trainer.",
                ),
                _weight_input(),
                io.Boolean.Input("on", default=True, tooltip="Off: as if the row were not there."),
                _stack_input(),
                io.String.Input(
                    "lora_name",
                    optional=True,
                    force_input=True,
                    tooltip="The name that Wait for Erasure LoRA gives; used instead of the list when connected.",
                ),
            ],
            outputs=_stack_outputs(),
        )

    @classmethod
    def execute(
        cls, lora: str, weight: float, on: bool, stack: Stack = (), lora_name: str | None = None
    ) -> io.NodeOutput:
        name = lora_name or lora
        if on and name != NONE:
            stack = (*stack, Row(resolve_lora(name), checked_weight(weight)))
        return _described(stack)


class LoraFolder(io.ComfyNode):
    """Adds all LoRAs of a folder to a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_LoraFolder",
            display_name="Erasure LoRA Folder",
            category=CATEGORY,
            description="All LoRAs of a folder as a stack.",
            inputs=[
                io.String.Input("folder", default="", tooltip="Below models/loras, for example: erased. Empty: that."),
                _weight_input(),
                _stack_input(),
            ],
            outputs=_stack_outputs(),
        )

    @classmethod
    def execute(cls, folder: str, weight: float, stack: Stack = ()) -> io.NodeOutput:
        names = _inside(folder)
        if not names:
            raise LoraError(
                f"There is no LoRA in the folder {folder or 'loras'!r}: choose another, or put some into it."
            )
        rows = (Row(resolve_lora(name), checked_weight(weight)) for name in names)
        return _described((*stack, *rows))

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **_: object) -> str:
        """Changes when files of the folder do: their names, times and sizes (of a connected folder, those of all)."""
        names = sorted(list_files("loras")) if folder is None else _inside(folder)
        return "\n".join(f"{name} {lora_stamp(name)}" for name in names)


def _inside(folder: str) -> list[str]:
    """Names of the LoRAs that lie in a folder below models/loras itself, sorted."""
    subfolder = [part for part in folder.replace("\\", "/").split("/") if part not in ("", ".")]
    return sorted(name for name in list_files("loras") if Path(name).parts[:-1] == tuple(subfolder))


class LoraSet(io.ComfyNode):
    """Adds the LoRAs of a saved set to a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_LoraSet",
            display_name="Erasure LoRA Set",
            category=CATEGORY,
            description="The LoRAs of a set that was saved, with their weights, as a stack.",
            inputs=[
                io.Combo.Input(
                    "saved",
                    options=[NONE, *sorted(path.stem for path in _sets().glob("*.json"))],
                    default=NONE,
                    tooltip="A set from Save Erasure LoRA Set. It names LoRAs; their files must be here.",
                ),
                _weight_input(),
                _stack_input(),
            ],
            outputs=_stack_outputs(),
        )

    @classmethod
    def validate_inputs(cls, saved: str = NONE) -> bool:
        """Nothing is refused before the node runs: see ChoosesLora."""
        return True

    @classmethod
    def execute(cls, saved: str, weight: float, stack: Stack = ()) -> io.NodeOutput:
        factor = checked_weight(weight)
        rows = [] if saved == NONE else read_set(saved)
        return _described((*stack, *(Row(row.path, row.weight * factor) for row in rows)))

    @classmethod
    def fingerprint_inputs(cls, saved: str | None = None, **_: object) -> str:
        """Changes when the set does, or a file of one of its LoRAs (of a connected set, of any that was read)."""
        if saved is None:
            return linked_stamp()
        if saved == NONE:
            return ""
        try:
            return repr([(row, file_stamp(row.path)) for row in read_set(saved)])
        except LoraError as error:
            return str(error)


class SaveLoraSet(io.ComfyNode):
    """Saves a stack under a name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_SaveLoraSet",
            display_name="Save Erasure LoRA Set",
            category=CATEGORY,
            description="Keeps the names and weights of a stack for Erasure LoRA Set.",
            is_output_node=True,
            inputs=[
                StackType.Input("stack", tooltip="From Erasure LoRA Stack, Folder or Set."),
                io.String.Input(
                    "name", default="my set", tooltip="Of the set; a number is added where another one has it."
                ),
            ],
            outputs=[StackType.Output("loras", display_name="stack", tooltip="The same stack, to go on with.")],
        )

    @classmethod
    def execute(cls, stack: Stack, name: str) -> io.NodeOutput:
        path = write_set(stack, name.strip())
        return io.NodeOutput(stack, ui={"text": [f"saved as {path.stem}: {len(stack)} LoRAs"]})


def _sets() -> Path:
    """The folder of saved sets, in the user's own data, where an update of the pack leaves it alone."""
    return Path(folder_paths.get_system_user_directory("erase_anything")) / "lora_sets"


_VERSION = 1


def write_set(stack: Stack, name: str) -> Path:
    """Saves a stack by the names of its LoRAs; where another set has the name, under the next free number.

    Raises ConfigError for a name that cannot be, LoraError for a stack that is empty or holds an unsaved merge.
    """
    validate_name(name)
    if not stack:
        raise LoraError("The stack is empty: add a LoRA to it.")
    known = set(list_files("loras"))
    names = [lora_name(Path(row.path)) for row in stack]
    lost = next((lora for lora in names if lora not in known), None)
    if lost is not None:
        raise LoraError(f"{lost} is not among the loras, so a set cannot name it: save the merge under a name first.")
    rows = [{"lora": Path(lora).as_posix(), "weight": row.weight} for lora, row in zip(names, stack, strict=True)]
    text = json.dumps({"version": _VERSION, "rows": rows}, ensure_ascii=False, indent=1)
    path = _sets() / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return path  # the same workflow again
    path = numbered(path)
    write_atomically(path, text.encode())
    return path


def read_set(name: str) -> Stack:
    """A saved set's rows. LoraError where there is none, it cannot be read, or one of its LoRAs is not here."""
    if name not in {path.stem for path in _sets().glob("*.json")}:
        raise LoraError(f"There is no set {name!r}: refresh the list, choose another.")
    broken = LoraError(f"The set {name!r} cannot be read: save it again.")
    saved = read_json(_sets() / f"{name}.json", broken)
    try:
        version, rows = saved["version"], [(str(row["lora"]), float(row["weight"])) for row in saved["rows"]]
    except (ValueError, KeyError, TypeError):
        raise broken from None
    if version != _VERSION:
        raise LoraError(f"The set {name!r} is of another version of this pack: update it, or save the set again.")
    found = []
    for lora, weight in rows:
        try:
            found.append(Row(resolve_lora(lora), checked_weight(weight)))
        except LoraError:
            raise LoraError(
                f"The set {name!r} names {Path(lora).name}, which is not here: put it into models/loras, or save the "
                "set again without it."
            ) from None
    return tuple(found)


def checked_weight(weight: float) -> float:
    """`weight` if a LoRA may have it; raises ConfigError."""
    if not -MAX_WEIGHT <= weight <= MAX_WEIGHT:
        raise ConfigError(f"The weight {weight} is outside -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}: choose one between.")
    return weight


def _described(stack: Stack) -> io.NodeOutput:
    lines = []
    for row in stack:
        known = describe(row.path)
        what = ", ".join(str(known[key]) for key in ("concept", "method") if known[key]) or known["dialect"]
        lines += [f"{row.weight:g} × {Path(row.path).stem} ({what}, rank {known['rank']})", *known["notes"]]
    text = "\n".join(lines)
    return io.NodeOutput(stack, text, ui={"text": [text]})


NODES = [LoraStack, LoraFolder, LoraSet, SaveLoraSet]
