"""Erase Anything: erases concepts from Flux with LoRAs that are trained in the background."""

from __future__ import annotations

from .nodes import NODES
from .nodes.compat import ComfyExtension, io
from .nodes.routes import register

WEB_DIRECTORY = "./web"


class EraseAnything(ComfyExtension):
    """What the host asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All node classes of the pack."""
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    """The host's entry into the pack."""
    return EraseAnything()


register()  # at import: the host never calls ComfyExtension.on_load
