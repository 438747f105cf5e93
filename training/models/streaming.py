"""Block streaming: frozen blocks live in host memory and visit the device through a small ring of buffers.

The base never changes, so its weights are copied to the device only, never back. A block's weights are on the device
while the block computes, and again while gradient checkpointing recomputes it in the backward pass. Autograd stores no
weight of a checkpointed block, and it ends the backward pass of one block before it recomputes the block below. The
trained LoRA stays on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .checkpointing import checkpoint_blocks

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

_ALIGNED = 256  # bytes: where a tensor may start in a buffer, as device allocators align


@dataclass(frozen=True)
class _Part:
    """One frozen tensor of a block and its place in the block's buffer."""

    owner: Tensor  # the parameter, or the tensor inside a quantised one
    dtype: torch.dtype
    shape: torch.Size
    start: int
    end: int

    def view(self, buffer: Tensor) -> Tensor:
        return buffer[self.start : self.end].view(self.dtype).view(self.shape)


class BlockStream:
    """Streams the blocks of a transformer whose weights are on the CPU; `stream_blocks` makes it.

    Attributes:
        slots: The ring: buffers on the device, each as large as the largest block, uint8.
    """

    def __init__(self, transformer: FluxTransformer2DModel, device: torch.device, ring: int) -> None:
        self.transformer, self.device = transformer, device
        self.blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        self.cuda = device.type == "cuda"
        self.parts: list[list[_Part]] = []
        self.host: list[Tensor] = []  # a block's weights, one buffer each
        for block in self.blocks:
            parts, size = _layout(block)
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self.cuda)
            for part in parts:
                part.view(buffer).copy_(part.owner.data)
            self.parts.append(parts)
            self.host.append(buffer)
            self._bind(len(self.host) - 1, buffer)
        largest = max(buffer.nbytes for buffer in self.host)
        self.slots = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(min(ring, len(self.host)))]
        self.held: list[int | None] = [None] * len(self.slots)  # the block that each slot holds
        self.copied: list[Any] = [None] * len(self.slots)  # on CUDA: the event of the copy into each slot
        self.side = torch.cuda.Stream(device) if self.cuda else None
        if self.side is not None:
            for slot in self.slots:
                slot.record_stream(self.side)  # a copy may be under way when the slots are freed
        self.next = 0  # the slot to be overwritten next
        self.replaying = False
        for index, block in enumerate(self.blocks):
            block.register_forward_pre_hook(self._before(index))
            # always: also where an exception ends the pass inside the block
            block.register_forward_hook(self._after(index), always_call=True)

    def _before(self, index: int) -> Any:
        def load(*_: object) -> None:
            if torch.is_grad_enabled() and not self.transformer.gradient_checkpointing:
                raise ConfigError("Streamed blocks have gradients with gradient checkpointing only: leave it on.")
            slot = self._fetch(index, None)
            if self.cuda:
                torch.cuda.current_stream(self.device).wait_event(self.copied[slot])
            self._bind(index, self.slots[slot])
            following = self._following(index)
            if following is not None and len(self.slots) > 1:
                self._fetch(following, slot)

        return load

    def _after(self, index: int) -> Any:
        def unload(*_: object) -> None:
            # layers that cast their weights for computing have put copies of their own in the parameters' place
            self._bind(index, self.host[index])

        return unload

    def _following(self, index: int) -> int | None:
        """The block that is expected to run after this one; None where this is not known."""
        if self.replaying:
            return index - 1 if index else None
        if index + 1 < len(self.blocks):
            return index + 1
        return None if torch.is_grad_enabled() else 0  # with gradients the backward pass follows, else a new forward

    def _fetch(self, index: int, busy: int | None) -> int:
        """The slot that holds a block; if none does, the block is copied over the oldest slot that is not `busy`."""
        if index in self.held:
            return self.held.index(index)
        slot = self.next if self.next != busy else (self.next + 1) % len(self.slots)
        self.next = (slot + 1) % len(self.slots)
        source = self.host[index]
        target = self.slots[slot][: source.nbytes]
        if self.side is not None:
            # By now all work on earlier blocks is queued: the copy waits for that work, and not for the next block's.
            self.side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.side):
                target.copy_(source, non_blocking=True)
                self.copied[slot] = self.side.record_event()
        else:
            target.copy_(source)
        self.held[slot] = index
        return slot

    def _bind(self, index: int, buffer: Tensor) -> None:
        """Makes a block's parameters views of a buffer."""
        for part in self.parts[index]:
            part.owner.data = part.view(buffer)


class _Replay:
    """The context in which the backward pass recomputes a block; retain_graph may enter it more than once."""

    def __init__(self, stream: BlockStream) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self.stream.replaying = True

    def __exit__(self, *_: object) -> None:
        self.stream.replaying = False


def stream_blocks(transformer: FluxTransformer2DModel, device: torch.device, ring: int) -> BlockStream:
    """Moves a transformer from the CPU to a device, except its blocks' weights, which stream through a ring of slots.

    From then on the blocks are checkpointed. A LoRA is added afterwards and stays on the device.

    Args:
        ring: Slots on the device, 2 or more.

    Raises:
        ConfigError: For a transformer that has a LoRA already, or a ring of fewer than 2 slots.
    """
    if ring < 2:
        raise ConfigError("Streaming needs room for 2 blocks: one computes while the next is copied.")
    if any(parameter.requires_grad for parameter in transformer.parameters()):
        raise ConfigError("A transformer's blocks must be streamed before a LoRA is put on it.")
    stream = BlockStream(transformer, device, ring)
    for part in transformer.children():
        if part not in (transformer.transformer_blocks, transformer.single_transformer_blocks):
            part.to(device)
    checkpoint_blocks(transformer, lambda: (nullcontext(), _Replay(stream)))
    return stream


def _layout(block: torch.nn.Module) -> tuple[list[_Part], int]:
    """The place of each tensor of a block's parameters in one buffer, and the buffer's size in bytes."""
    parts, size = [], 0
    for parameter in block.parameters():
        for tensor in _plain(parameter):
            parts.append(_Part(tensor, tensor.dtype, tensor.shape, size, size + tensor.nbytes))
            size += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    return parts, size


def _plain(parameter: Tensor) -> Iterator[Tensor]:
    """The tensors that hold a parameter's bytes: itself, or those inside a quantised one."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:  # bitsandbytes': the bytes are the parameter's own, its scales (of two levels) beside them
        yield parameter
        while state is not None:
            yield from (tensor for tensor in vars(state).values() if isinstance(tensor, Tensor))
            state = state.state2
        return
    if not hasattr(parameter, "__tensor_flatten__"):
        yield parameter
        return
    for name in parameter.__tensor_flatten__()[0]:
        yield from _plain(getattr(parameter, name))
