"""The only file that knows differences between ComfyUI versions, and how names become files under the host's
folders."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import torch
from comfy.ldm.flux.model import FluxParams
from comfy_api.v0_0_2 import ComfyExtension, io, ui

from ..training.errors import ErasureError, LoraError
from ..training.lora.inputs import INPUTS_SUFFIX
from ..training.lora.scales import CONFIG_FILE
from ..training.models.weights import HOST_FORMATS

__all__ = [
    "ChoosesLora",
    "ComfyExtension",
    "advanced",
    "diffusers_folders",
    "file_stamp",
    "flux_config",
    "io",
    "judge_folders",
    "linked_stamp",
    "list_files",
    "lora_name",
    "lora_stamp",
    "output_path",
    "quiet_log",
    "readable_quantisation",
    "resolve_file",
    "resolve_lora",
    "searched",
    "show_text",
    "temp_file",
    "temp_path",
    "ui",
]


def advanced(widget: io.Input) -> io.Input:
    """`widget`, out of sight until the user asks for the advanced ones, and not needed in a prompt.

    ComfyUI 0.3.75 has no argument for it, but passes on what `extra_dict` holds; see web/advanced.mjs for the rest.
    """
    widget.optional = True
    widget.extra_dict = {**widget.extra_dict, "advanced": True}
    return widget


def searched(aliases: list[str], **schema: Any) -> io.Schema:
    """A node's schema with other words by which a search finds it, which ComfyUI 0.3.75 does not know of."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**schema, **({"search_aliases": aliases} if "search_aliases" in known else {}))


class ChoosesLora(io.ComfyNode):
    """A node with a list of LoRAs named "lora", whose value it checks itself when it needs it.

    Newer hosts refuse a prompt where the value is not in the list, also when another input takes its place, in words
    that say no way out. Inputs named by `validate_inputs` they leave to the node.
    """

    @classmethod
    def validate_inputs(cls, lora: str | None = None) -> bool:
        """Nothing is refused before the node runs."""
        return True

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = "", lora_name: str | None = "", **_: object) -> str:
        """Changes when the LoRA's file does, so that the host does not keep what it made of an older one."""
        if lora is None or lora_name is None:  # what the host says of an input that is connected
            return linked_stamp()
        return lora_stamp(lora_name or lora)


def list_files(kind: str) -> list[str]:
    """Names of the .safetensors files in one of the host's model folders ("loras", "vae", ...), as its combos show
    them; without those that lie beside LoRAs for merging."""
    names = folder_paths.get_filename_list(kind)
    return [name for name in names if name.lower().endswith(SUFFIX) and not name.lower().endswith(INPUTS_SUFFIX)]


def resolve_file(kind: str, name: str, error: type[ErasureError]) -> str:
    """The absolute path of a file that the host lists under `kind`; `error` if it lists none of that name.

    Names come from prompts that anybody may send, so whatever leads out of the host's folders is refused.
    """
    path = folder_paths.get_full_path(kind, name) if isinstance(name, str) and name else None
    if path is None or not _inside(path, folder_paths.get_folder_paths(kind)):
        raise error(
            f"There is no file {os.path.basename(str(name))!r} among the {kind}: refresh the list, choose another."
        )
    path = os.path.abspath(path)
    _note_read(path)
    return path


SUFFIX = ".safetensors"


def resolve_lora(name: str) -> str:
    """The absolute path of a LoRA that the host lists, with or without its ending; LoraError if it lists none."""
    return resolve_file("loras", _with_ending(name), LoraError)


def _with_ending(name: str) -> str:
    """A LoRA's name with the ending as the file has it: disks tell a.safetensors and a.SAFETENSORS apart."""
    listed = list_files("loras")
    if name in listed:
        return name
    stem = name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name
    return next((each for each in listed if each[: -len(SUFFIX)] == stem), stem + SUFFIX)


def file_stamp(path: str | Path | None) -> str:
    """A file's time of change and size; "" for one that is not there."""
    try:
        found = os.stat(path) if path else None
    except OSError:
        found = None
    return f"{found.st_mtime_ns} {found.st_size}" if found else ""


def lora_stamp(name: str) -> str:
    """`file_stamp` of a LoRA by its name, and of the settings beside it that say its alpha."""
    path = folder_paths.get_full_path("loras", _with_ending(name)) if name else None
    return f"{file_stamp(path)} {file_stamp(Path(path).with_name(CONFIG_FILE))}" if path else ""


_files_read: dict[str, str] = {}  # files that nodes have read → their stamps then
_replaced = 0  # how many of them have been found to be others since


def _note_read(path: str) -> None:
    global _replaced
    stamp = file_stamp(path)
    _replaced += _files_read.get(path, stamp) != stamp
    _files_read[path] = stamp


def linked_stamp() -> str:
    """Changes when any file changes that a node has read.

    It stands for the file of a connected name. The host gives `fingerprint_inputs` no value of connected inputs, and
    that value would not change when only the file does.
    """
    for path in list(_files_read):
        _note_read(path)
    return str(_replaced)


def lora_name(path: Path) -> str:
    """A LoRA as the host's lists name it: its path below a loras folder."""
    for root in folder_paths.get_folder_paths("loras"):
        with contextlib.suppress(ValueError):
            return str(path.relative_to(Path(root).absolute()))
    return path.name


def flux_config(values: dict[str, Any]) -> dict[str, Any]:
    """The host's description of a Flux.1, with what newer hosts ask for besides."""
    newer: dict[str, Any] = {"txt_ids_dims": []}  # text tokens have no positions
    return {**values, **{name: value for name, value in newer.items() if name in FluxParams.__dataclass_fields__}}


def readable_quantisation(
    state: dict[str, torch.Tensor], metadata: dict[str, str]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A quantised state dict and its file's metadata as this host reads them.

    Newer hosts look for each layer's format in a tensor beside its weight, and turn older forms into that one where
    they load a file; 0.3.75 looks in the metadata.
    """
    if hasattr(comfy.utils, "convert_old_quants"):
        return comfy.utils.convert_old_quants(state, "", metadata)[0], {}
    ending = ".comfy_quant"
    layers = {name.removesuffix(ending): state[name] for name in state if name.endswith(ending)}
    if not layers:
        return state, metadata
    formats = {name: json.loads(tensor.numpy().tobytes()) for name, tensor in layers.items()}
    rest = {name: tensor for name, tensor in state.items() if not name.endswith(ending)}
    return rest, {**metadata, HOST_FORMATS: json.dumps({"layers": formats})}


def diffusers_folders() -> dict[str, Path]:
    """Flux models in diffusers layout under the host's models/diffusers folders, by their path relative to it."""
    found: dict[str, Path] = {}
    for root in folder_paths.get_folder_paths("diffusers"):
        for index in sorted(Path(root).glob("*/model_index.json")) + sorted(Path(root).glob("*/*/model_index.json")):
            folder = index.parent
            if (folder / "transformer").is_dir():
                found.setdefault(folder.relative_to(root).as_posix(), folder.absolute())
    return found


def judge_folders() -> dict[str, Path]:
    """Models in transformers' layout that can judge pictures (a preprocessor and weights beside their config.json), one
    folder each under the host's models/clip_vision and models/classifiers, by name."""
    roots = [*folder_paths.get_folder_paths("clip_vision"), os.path.join(folder_paths.models_dir, "classifiers")]
    found: dict[str, Path] = {}
    for root in roots:
        for config in sorted(Path(root).glob("*/config.json")):
            if (config.parent / "preprocessor_config.json").is_file():
                found.setdefault(config.parent.name, config.parent.absolute())
    return found


def _inside(path: str, roots: list[str]) -> bool:
    # not realpath: users link their models in from other disks
    path = os.path.abspath(path)
    return any(
        os.path.commonpath([os.path.abspath(root), path]) == os.path.abspath(root)
        for root in roots
        if os.path.splitdrive(os.path.abspath(root))[0] == os.path.splitdrive(path)[0]
    )


def output_path(prefix: str, width: int, height: int, error: type[ErasureError]) -> Path:
    """Where to write files below the host's output folder, numbered and without an ending; `error` for a prefix that
    leads out of it."""
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(
            prefix, folder_paths.get_output_directory(), width, height
        )
    except Exception as reason:  # the host raises nothing more exact
        raise error(f"Files cannot be saved as {prefix!r}: choose a name inside the output folder.") from reason
    # as the host numbers its own files, with the underscore that its counting looks for
    return Path(folder) / f"{name}_{counter:05}_"


def temp_path(stem: str, ending: str) -> Path:
    """A new file's path in the host's folder for previews, which the host empties when it starts."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{stem}_{uuid.uuid4().hex}{ending}"


def temp_file(stem: str, ending: str, data: str) -> dict[str, str]:
    """Writes a text file into the host's folder for previews; what the page needs to fetch it from /view."""
    path = temp_path(stem, ending)
    path.write_text(data, encoding="utf-8")
    return {"filename": path.name, "subfolder": "", "type": "temp"}


def show_text(node: str | None, text: str) -> None:
    """Shows a line of text on a node while the graph runs; nothing where there is no page, or no node."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None and node is not None:
        server.send_progress_text(text, node)


@contextlib.contextmanager
def quiet_log(text: str) -> Iterator[None]:
    """Keep one of the host's log messages, which would mislead, from the log."""

    def keep(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    logger = logging.getLogger()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
