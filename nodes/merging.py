"""Nodes that make one thing of many LoRAs: Merge Erasure LoRAs, Bake into Checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch

from ..training.errors import LoraError
from ..training.lora.bake import bake
from ..training.lora.files import merge_files, numbered
from ..training.lora.format import KEY_CONCEPT, read_metadata
from ..training.lora.merge import MODES, PRESERVE
from ..training.lora.names import validate_name
from ..training.models.source import FluxSource
from .compat import file_stamp, io, linked_stamp, list_files, resolve_file, temp_path
from .stack import MAX_WEIGHT, Row, Stack, checked_weight
from .types import CATEGORY, NONE, FluxSourceType, StackType


class MergeErasureLoras(io.ComfyNode):
    """Makes one LoRA of a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_MergeLoras",
            display_name="Merge Erasure LoRAs",
            category=CATEGORY,
            description="Makes one LoRA of a stack, to be used at once or saved for any other pipeline.",
            is_output_node=True,
            inputs=[
                StackType.Input("stack", tooltip="From Erasure LoRA Stack or Folder."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=next(iter(MODES)),
                    tooltip="\n".join(f"{mode}: {use}" for mode, use in MODES.items()),
                ),
                io.String.Input(
                    "save_as",
                    default="",
                    tooltip="A name in models/loras; a number is added where it is taken. Empty: not saved.",
                ),
                io.Int.Input("rank", default=16, min=0, max=4096, tooltip="For svd: highest rank. 0: by error."),
                io.Float.Input(
                    "error",
                    default=0.05,
                    min=0.001,
                    max=0.99,
                    step=0.001,
                    tooltip="For svd with rank 0: the relative error that may be made.",
                ),
                io.Float.Input(
                    "preserve",
                    default=PRESERVE,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip="For fusion: weight of what must stay as it is. Raise it where other things change.",
                ),
                FluxSourceType.Input(
                    "flux",
                    optional=True,
                    tooltip="The model that the LoRAs were trained on. For fusion: what it needs to know of a LoRA is "
                    "made with it, once, and kept beside the LoRA.",
                ),
            ],
            outputs=[
                StackType.Output("merged", display_name="stack", tooltip="The one LoRA, for Apply Erasure LoRA."),
                io.String.Output("lora_name", display_name="lora name", tooltip="Empty where it was not saved."),
                io.String.Output("report", display_name="report", tooltip="What is left of each LoRA, and its price."),
            ],
        )

    @classmethod
    def execute(
        cls,
        stack: Stack,
        mode: str,
        save_as: str,
        rank: int,
        error: float,
        preserve: float,
        flux: FluxSource | None = None,
    ) -> io.NodeOutput:
        if not stack:
            raise LoraError("The stack is empty: add a LoRA to it.")
        name = save_as.strip()
        if name:
            validate_name(name)
            out = numbered(Path(folder_paths.get_folder_paths("loras")[0]) / f"{name}.safetensors")
        else:
            out = temp_path("merged", ".safetensors")
        bar = comfy.utils.ProgressBar(1)
        if mode == "fusion" and flux is not None:
            from ..training.concept_inputs import write_missing

            own = [row.path for row in stack if KEY_CONCEPT in read_metadata(row.path)]  # others join as in a sum
            comfy.model_management.unload_all_models()  # the model is loaded once more, beside the host's
            with torch.inference_mode(False):
                write_missing(flux, own, progress=lambda done, total: bar.update_absolute(done, total + 1))
        compress: dict[str, Any] = {"rank": rank or None, "error": None if rank else error} if mode == "svd" else {}
        report = merge_files(
            [row.path for row in stack],
            out,
            mode,
            weights=[row.weight for row in stack],
            preserve=preserve,
            **compress,
            progress=lambda done, total: bar.update_absolute(done, total),
        )
        text = report_text(report)
        return io.NodeOutput((Row(str(out), 1.0),), out.name if name else "", text, ui={"text": [text]})


_CHECKPOINTS = ("diffusion_models", "checkpoints")


class BakeIntoCheckpoint(io.ComfyNode):
    """Writes a Flux checkpoint with a stack folded in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = [f"{kind}/{name}" for kind in _CHECKPOINTS for name in list_files(kind)]
        return io.Schema(
            node_id="EraseAnything_Bake",
            display_name="Bake into Checkpoint",
            category=CATEGORY,
            description="Writes a copy of a Flux checkpoint with the erasure in its weights, for pipelines that take "
            "no LoRA. Needs disk space for the copy, and little memory.",
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[NONE, *files],
                    default=NONE,
                    tooltip="In bf16, fp16 or fp32: quantised weights cannot be changed.",
                ),
                StackType.Input("stack", tooltip="From Merge Erasure LoRAs, Erasure LoRA Stack or Folder."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=MAX_WEIGHT,
                    step=0.05,
                    tooltip="Of the whole stack.",
                ),
                io.String.Input(
                    "save_as",
                    default="flux-erased",
                    tooltip="A name in the checkpoint's own folder; a number is added where it is taken.",
                ),
            ],
            outputs=[io.String.Output("name", display_name="checkpoint name")],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str = NONE) -> bool:
        """Nothing is refused before the node runs: see ChoosesLora."""
        return True

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None = None, **_: object) -> str:
        """Changes when the checkpoint's file does."""
        if checkpoint is None:
            return linked_stamp()
        kind, _, name = checkpoint.partition("/")
        return file_stamp(folder_paths.get_full_path(kind, name)) if kind in _CHECKPOINTS else ""

    @classmethod
    def execute(cls, checkpoint: str, stack: Stack, strength: float, save_as: str) -> io.NodeOutput:
        kind, _, name = checkpoint.partition("/")
        if kind not in _CHECKPOINTS:
            raise LoraError("There is no checkpoint to bake into: choose one, or put one into diffusion_models.")
        if not stack:
            raise LoraError("The stack is empty: add a LoRA to it.")
        source = Path(resolve_file(kind, name, LoraError))
        out = numbered(source.parent / f"{validate_name(save_as.strip())}.safetensors")
        bar, whole = comfy.utils.ProgressBar(1), checked_weight(strength)
        done = bake(
            source,
            [row.path for row in stack],
            out,
            strengths=[row.weight * whole for row in stack],
            progress=lambda part, total: bar.update_absolute(part, total),
        )
        text = "\n".join([f"{out.name}: {done['changed']} of {done['tensors']} tensors changed", *done["notes"]])
        return io.NodeOutput(out.name, ui={"text": [text]})


def report_text(report: dict) -> str:
    """A merge's report as lines of text: the whole, each source, notes."""
    lines = [
        f"{report['mode']}: {report['modules']} layers, rank {report['mean_rank']:g} (at most {report['rank']}), "
        f"{report['parameters']:,} parameters, relative error {report['relative_error']:.2g}",
    ]
    for source in report["sources"]:
        shares = ", ".join(
            f"{name.replace('_', ' ')} {value:.3g}" for name, value in source.items() if _is_share(value)
        )
        lines.append(f"{source['concept'] or source['name']}: {shares}")
    return "\n".join([*lines, *report["notes"]])


def _is_share(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


NODES = [MergeErasureLoras, BakeIntoCheckpoint]
