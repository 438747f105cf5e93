"""Load Flux: chooses where the weights are. Flux to MODEL / CLIP / VAE: makes the host's objects of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd1_clip
import comfy.text_encoders.flux

from ..training.errors import SourceError
from ..training.models.source import PRECISIONS, FluxSource, demo_model_folder, demo_source
from .compat import diffusers_folders, file_stamp, io, linked_stamp, list_files, resolve_file
from .native import load_native
from .types import CATEGORY, NONE, FluxSourceType

DEMO = "demo (flux-emoji)"
SINGLE_FILES = "single files"
CHECKPOINT = "checkpoint"

# input -> the host's folder of such files
_FILE_FOLDERS = {"transformer": "diffusion_models", "clip_l": "text_encoders", "t5": "text_encoders", "vae": "vae"}
_CHECKPOINTS = "checkpoints"


class LoadFlux(io.ComfyNode):
    """Names a Flux; reads no weights, but says at once what is missing or does not fit together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_LoadFlux",
            display_name="Load Flux",
            category=CATEGORY,
            description="Chooses the Flux to erase from. Nothing is loaded yet; missing files are reported here.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=[DEMO, *diffusers_folders(), SINGLE_FILES, CHECKPOINT],
                    default=DEMO,
                    tooltip="The demo model, a folder in diffusers layout under models/diffusers, the four single "
                    "files chosen below, or the checkpoint chosen below.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    tooltip="auto: fp32 on the CPU; on a GPU bf16, or for a training the fastest that fits the free "
                    "memory. fp8, int8 (half of bf16), nf4 (a third) to decide yourself. fp32 to compare "
                    "with other programs exactly.",
                ),
                *(
                    io.Combo.Input(
                        name,
                        options=[NONE, *list_files(folder)],
                        default=NONE,
                        tooltip=f"For single files: a .safetensors file in models/{folder}."
                        + ("" if name == "transformer" else " With a checkpoint: used instead of the one in it."),
                    )
                    for name, folder in _FILE_FOLDERS.items()
                ),
                io.Combo.Input(
                    "checkpoint",
                    options=[NONE, *list_files(_CHECKPOINTS)],
                    default=NONE,
                    optional=True,
                    tooltip=f"Only for the model checkpoint: a .safetensors file in models/{_CHECKPOINTS} that holds "
                    "all parts of a Flux, or the rest of what is chosen above.",
                ),
            ],
            outputs=[FluxSourceType.Output("flux", display_name="flux")],
        )

    @classmethod
    def execute(
        cls,
        model: str,
        precision: str,
        transformer: str = NONE,
        clip_l: str = NONE,
        t5: str = NONE,
        vae: str = NONE,
        checkpoint: str = NONE,
    ) -> io.NodeOutput:
        files = {"transformer": transformer, "clip_l": clip_l, "t5": t5, "vae": vae, "checkpoint": checkpoint}
        source = choose_source(model, precision, files)
        source.validate()
        return io.NodeOutput(source)

    @classmethod
    def validate_inputs(
        cls,
        model: str = DEMO,
        precision: str = "auto",
        transformer: str = NONE,
        clip_l: str = NONE,
        t5: str = NONE,
        vae: str = NONE,
        checkpoint: str = NONE,
    ) -> bool:
        """Nothing is refused before the node runs: see ChoosesLora."""
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str, precision: str, **files: str) -> str:
        """Changes when the chosen files do, so that the host runs the node again."""
        try:
            source = choose_source(model, precision, files)
            paths = [source.transformer, source.clip_l, source.t5, source.vae]
            if source.kind != "files":
                inside = Path(source.folder).rglob("*")
                paths = sorted(path for path in inside if path.suffix in (".safetensors", ".json"))
            return repr([(str(path), file_stamp(path)) for path in paths if path])
        except SourceError as error:  # also where an input is connected, whose value the host keeps back
            return f"{error} {linked_stamp()}"


def choose_source(model: str, precision: str, files: dict[str, str]) -> FluxSource:
    """The source for these choices, not yet validated; SourceError for a choice that the host does not offer."""
    if model == DEMO:
        if not demo_model_folder().is_dir():
            raise SourceError("The demo model is missing: put the folder example_models/flux-emoji of this pack back.")
        return demo_source(precision)
    if model in (SINGLE_FILES, CHECKPOINT):
        return FluxSource(kind="files", precision=precision, **_chosen_files(model, files), **_host_tokenizers())
    folder = diffusers_folders().get(model)
    if folder is None:
        raise SourceError(
            f"There is no model folder {model!r} under models/diffusers: refresh the list, choose another."
        )
    return FluxSource(kind="diffusers", folder=str(folder), precision=precision)


def _chosen_files(model: str, files: dict[str, str]) -> dict[str, str]:
    """Paths of the four parts; with a checkpoint, of it where no other file is chosen."""
    whole = ""
    if model == CHECKPOINT:
        if files.get(CHECKPOINT, NONE) == NONE:
            raise SourceError(f"No checkpoint is chosen: choose one from models/{_CHECKPOINTS}.")
        whole = resolve_file(_CHECKPOINTS, files[CHECKPOINT], SourceError)
    chosen = {}
    for name, folder in _FILE_FOLDERS.items():
        if whole and (name == "transformer" or files.get(name, NONE) == NONE):
            chosen[name] = whole
        elif files.get(name, NONE) == NONE:
            raise SourceError(f"No file is chosen for {name}: choose one from models/{folder}.")
        else:
            chosen[name] = resolve_file(folder, files[name], SourceError)
    return chosen


def choices_of(source: FluxSource) -> dict[str, Any]:
    """The inverse of choose_source(): its arguments `model`, `precision` and `files`, names and never paths.

    What the host no longer lists is given by its bare name, which choose_source() then refuses.
    """
    if source.kind == "files":
        whole = _listed(_CHECKPOINTS, source.transformer)
        files = {
            name: _listed(folder, getattr(source, name)) or Path(getattr(source, name)).name
            for name, folder in _FILE_FOLDERS.items()
            if not whole or getattr(source, name) != source.transformer
        }
        if whole:
            files[CHECKPOINT] = whole
        return {"model": CHECKPOINT if whole else SINGLE_FILES, "precision": source.precision, "files": files}
    folder, demo = Path(source.folder), Path(demo_source().folder)
    listed = DEMO if folder == demo else next((n for n, path in diffusers_folders().items() if path == folder), None)
    return {"model": listed or folder.name, "precision": source.precision, "files": {}}


def _listed(kind: str, path: str) -> str | None:
    """A file's name in one of the host's lists; None if it is not there."""
    return next((name for name in list_files(kind) if resolve_file(kind, name, SourceError) == path), None)


def _host_tokenizers() -> dict[str, str]:
    """Single files carry no tokenizers; the host has both of Flux's."""
    return {
        "tokenizer": str(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"),
        "tokenizer_2": str(Path(comfy.text_encoders.flux.__file__).parent / "t5_tokenizer"),
    }


class FluxToNative(io.ComfyNode):
    """Loads a Flux as the host's own objects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_FluxToNative",
            display_name="Flux to MODEL / CLIP / VAE",
            category=CATEGORY,
            description="Loads the Flux for stock nodes: KSampler, CLIP Text Encode, VAE Decode, Load LoRA.",
            inputs=[FluxSourceType.Input("flux", tooltip="From Load Flux.")],
            outputs=[
                io.Model.Output("model", display_name="MODEL"),
                io.Clip.Output("clip", display_name="CLIP"),
                io.Vae.Output("vae", display_name="VAE"),
            ],
        )

    @classmethod
    def execute(cls, flux: FluxSource) -> io.NodeOutput:
        native = load_native(flux)
        return io.NodeOutput(native.model, native.clip, native.vae)


NODES = [LoadFlux, FluxToNative]
