"""Train Erasure LoRA: queues a background job and returns at once. Wait for Erasure LoRA: joins a graph to a job."""

from __future__ import annotations

import math
import re
import time
from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image

from ..training.concepts import Concept
from ..training.errors import ConfigError, JobError
from ..training.jobs import Job
from ..training.models.source import FluxSource
from ..training.settings import SETTINGS, ErasureConfig
from . import service
from .compat import advanced, io, lora_name
from .types import CATEGORY, ConceptType, FluxSourceType, JobType

# Saved workflows hold the values of a node's widgets by position: no name may move, and a new setting's comes last.
# Shown at once are these.
SIMPLE = (
    "method",
    "steps",
    "rank",
    "targets",
    "eta",
    "erase_prompts",
    "random_strength",
    "sample_every",
    "seed",
    "preserve_prompts",
)
# And these when the user asks for the advanced ones.
ADVANCED = (
    "bilevel",
    "anchor",
    "alpha",
    "blocks",
    "capture_blocks",
    "lr_erase",
    "lr_preserve",
    "weight_decay",
    "weight_esd",
    "weight_attn",
    "weight_lora",
    "weight_rsc",
    "tau",
    "batch_erase",
    "batch_preserve",
    "erase_synonyms",
    "shuffle",
    "sampling_steps",
    "resolution",
    "t_min",
    "refresh_every",
    "guidance",
    "checkpoint_every",
    "keep_checkpoints",
    "sample_count",
    "erase_to",
    "gradient_checkpointing",
    "stream_blocks",
    "early_stopping",
    "compile",
)

# Not called "seed": the frontend would add a control that draws a new one, and so a new training, with every run.
SEED = "training_seed"

POLL_SECONDS = 0.25
LARGEST_INT = 2**53 - 1  # that a browser can hold


def setting_input(name: str) -> io.Input:
    """A widget for a setting, with its default, range and help text."""
    setting, input_id = SETTINGS[name], SEED if name == "seed" else name
    common = {"default": setting.default, "tooltip": setting.help}
    if setting.several:
        return io.String.Input(input_id, placeholder="empty: all", **{**common, "default": ""})
    if setting.choices:
        return io.Combo.Input(input_id, options=list(setting.choices), **common)
    if setting.type is bool:
        return io.Boolean.Input(input_id, **common)
    if setting.type is str:
        return io.String.Input(input_id, placeholder="empty: automatic", **common)
    if setting.type is int:
        return io.Int.Input(input_id, min=int(setting.low), max=int(min(setting.high, LARGEST_INT)), **common)
    return io.Float.Input(input_id, min=setting.low, max=setting.high, step=step_of(setting.default), **common)


def step_of(default: float) -> float:
    """A hundredth of the default's power of ten: the frontend rounds what is typed to a float widget's step.

    0.001 for a default of 0.5, 0.00001 for 0.001, and 0.0001 where the default is 0 and says nothing.
    """
    return 10.0 ** (math.floor(math.log10(abs(default))) - 2) if default else 1e-4


def setting_inputs() -> list[io.Input]:
    """Widgets for all settings: the simple ones, then the advanced ones."""
    return [*map(setting_input, SIMPLE), *(advanced(setting_input(name)) for name in ADVANCED)]


def config_of(values: dict[str, Any]) -> ErasureConfig:
    """The settings that the node's widgets hold; those that a prompt leaves out keep their defaults.

    Raises ConfigError.
    """
    settings = {"seed" if name == SEED else name: value for name, value in values.items()}
    lists = {name for name, setting in SETTINGS.items() if setting.several}
    return ErasureConfig.from_dict(
        {name: indices_of(name, value) if name in lists else value for name, value in settings.items()}
    )


def indices_of(name: str, text: str) -> list[int]:
    """Block numbers from a text like "0, 2, 5-8", each once, in their order; [] for an empty text.

    name: the setting's, for the sentence of the ConfigError that is raised for any other text.
    """
    found: set[int] = set()
    for part in text.split(",") if text.strip() else []:
        match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ConfigError(
                f'The setting {name} must be block numbers like "0, 2, 5-8", or empty, not {text[:60]!r}.'
            )
        found |= set(range(first, last + 1))
    return sorted(found)


class TrainErasureLora(io.ComfyNode):
    """Submits a job; the same inputs give the same job."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_Train",
            display_name="Train Erasure LoRA",
            category=CATEGORY,
            description="Trains in the background, while the queue stays free. The LoRA appears in models/loras.",
            is_output_node=True,
            inputs=[
                FluxSourceType.Input("flux", tooltip="From Load Flux."),
                ConceptType.Input("concept", tooltip="From Erasure Concept."),
                io.String.Input(
                    "name",
                    default="",
                    placeholder="empty: erase-<phrase>",
                    tooltip="The LoRA's file name, without folders. Give another one to keep an earlier LoRA.",
                ),
                *setting_inputs(),
            ],
            outputs=[JobType.Output("job", display_name="job")],
        )

    @classmethod
    def execute(cls, flux: FluxSource, concept: Concept, name: str, **settings: Any) -> io.NodeOutput:
        job = service.submit(flux, concept, config_of(settings), name)
        return io.NodeOutput(job.id, ui={"job": [job.id], "text": [f"{job.name}: {job.state.state}"]})

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Changes when a job ended without its LoRA, so that the same graph submits it again."""
        return service.unfinished()


class WaitForErasureLora(io.ComfyNode):
    """Blocks until a job has written its LoRA. Interrupting it ends the waiting, not the job."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_Wait",
            display_name="Wait for Erasure LoRA",
            category=CATEGORY,
            description="Waits for a training, so that one graph can train and use its LoRA. Interrupt ends only the "
            "waiting; the training goes on.",
            inputs=[JobType.Input("job", tooltip="From Train Erasure LoRA.")],
            outputs=[io.String.Output("lora_name", display_name="lora name")],
        )

    @classmethod
    def execute(cls, job: str) -> io.NodeOutput:
        done = wait(job)
        name = lora_name(done.lora)
        return io.NodeOutput(name, ui={"job": [done.id], "text": [f"{name} is ready"]})


def wait(job_id: str) -> Job:
    """The training once it is completed; see `finished`."""
    return finished(job_id, "training", "Train")


def finished(job_id: str, what: str, node: str) -> Job:
    """The job once it is completed, with its progress on the running node. what, node: as sentences call them.

    Raises JobError when it fails, is cancelled, interrupted or deleted; the host's own exception on Interrupt.
    """
    bar, shown = None, None
    while True:
        job = service.repository().get(job_id)
        state = job.state
        if state.state == "completed":
            return job
        if state.state == "cancelled":
            raise JobError(f'The {what} of "{job.name}" was cancelled: resume it, or queue the {node} node again.')
        if state.state in ("failed", "interrupted"):
            raise JobError(f'The {what} of "{job.name}" did not end well. {state.message}')
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar = bar or comfy.utils.ProgressBar(max(state.total, 1))
        if (state.step, state.phase) != shown:
            shown = (state.step, state.phase)
            bar.update_absolute(state.step, max(state.total, 1), _preview(job))
        time.sleep(POLL_SECONDS)


def _preview(job: Job) -> tuple[str, Image.Image, int] | None:
    """The latest sample as the host's progress previews want it: (format, image, largest side in pixels)."""
    try:
        newest = max(job.folder.samples.glob("step-*-p0-s0.png"), default=None)  # of the concept itself
        if newest is None:
            return None
        with Image.open(newest) as image:
            return ("PNG", image.convert("RGB"), 512)
    except OSError:
        return None


NODES = [TrainErasureLora, WaitForErasureLora]
