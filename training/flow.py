"""The transformer with its adapter as a training sees it: loaded, adapted, asked for student and teacher velocities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from .lora.adapter import adapter_disabled, add_adapter, set_adapter_scale
from .models.attention import AttentionCapture
from .models.checkpointing import checkpoint_blocks
from .models.compiling import compile_blocks
from .models.device import use_autocast
from .models.loading import load_transformer
from .models.sampling import sigmas
from .models.source import FluxSource
from .models.text import TextEmbeds
from .models.variants import FluxVariant, training_side, variant_of
from .models.velocity import velocity
from .parallel import ALONE, Group
from .settings import TARGETS, ErasureConfig, target_blocks

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

Progress = Callable[[int, int], None]  # (done, total); may raise to stop the work


@dataclass
class Flow:
    """The transformer with its adapter, and the settings every call of it shares.

    Attributes:
        levels: [steps + 1] sigmas from 1 to 0 that trajectories run on.
        grid: rows and columns of image tokens.
        guidance: what the guidance embedding is fed.
        autocast: compute in bf16 (the weights stay as they are).
        group: the processes that batches are shared among.
    """

    transformer: FluxTransformer2DModel
    levels: Tensor
    grid: tuple[int, int]
    guidance: float
    autocast: bool = False
    group: Group = ALONE

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @property
    def channels(self) -> int:
        """Channels of the unpacked latents."""
        return self.transformer.config.in_channels // 4

    @property
    def double_blocks(self) -> int:
        return len(self.transformer.transformer_blocks)

    @property
    def single_blocks(self) -> int:
        return len(self.transformer.single_transformer_blocks)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The arithmetic of this training while the context lasts."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            yield

    @overload
    def student(
        self, latents: Tensor, t: Tensor | float, embeds: TextEmbeds, *, capture: AttentionCapture | None = None
    ) -> Tensor: ...
    @overload
    def student(
        self,
        latents: Tensor,
        t: Tensor | float,
        embeds: TextEmbeds,
        *,
        capture: AttentionCapture | None = None,
        stop_after_block: int | None,
    ) -> Tensor | None: ...
    def student(
        self,
        latents: Tensor,
        t: Tensor | float,
        embeds: TextEmbeds,
        *,
        capture: AttentionCapture | None = None,
        stop_after_block: int | None = None,
    ) -> Tensor | None:
        """v_θ, with the adapter on, and with gradients where they are enabled; see `velocity` for the arguments."""
        with self.computing():
            return velocity(
                self.transformer,
                latents.to(self.device),
                t,
                embeds,
                self.guidance,
                self.grid,
                capture=capture,
                stop_after_block=stop_after_block,
            )

    @overload
    def teacher(
        self, latents: Tensor, t: Tensor | float, embeds: TextEmbeds, *, capture: AttentionCapture | None = None
    ) -> Tensor: ...
    @overload
    def teacher(
        self,
        latents: Tensor,
        t: Tensor | float,
        embeds: TextEmbeds,
        *,
        capture: AttentionCapture | None = None,
        stop_after_block: int | None,
    ) -> Tensor | None: ...
    @torch.no_grad()
    def teacher(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """v_o: the frozen base, which is the same network with the adapter off, without gradients."""
        with adapter_disabled(self.transformer):
            return self.student(*args, **kwargs)

    @contextmanager
    def strength(self, scale: float) -> Iterator[None]:
        """The adapter at `scale` times its strength while the context lasts."""
        set_adapter_scale(self.transformer, scale)
        try:
            yield
        finally:
            set_adapter_scale(self.transformer, 1.0)


def adapted_flow(
    source: FluxSource, config: ErasureConfig, device: torch.device
) -> tuple[Flow, list[torch.nn.Parameter]]:
    """The source's transformer with a fresh adapter, and the adapter's parameters. config: see `for_kind`."""
    transformer = load_transformer(source, device, ring=config.stream_blocks)
    return put_adapter(transformer, source, variant_of(source), config, device)


def put_adapter(
    transformer: FluxTransformer2DModel,
    source: FluxSource,
    variant: FluxVariant,
    config: ErasureConfig,
    device: torch.device,
) -> tuple[Flow, list[torch.nn.Parameter]]:
    """`adapted_flow` of a transformer that is loaded already, as `source` and `config` say."""
    if config.checkpoints_blocks(source.precision) and not config.stream_blocks:  # streamed blocks are checkpointed
        checkpoint_blocks(transformer)
    side = training_side(config.resolution, variant)
    flow = Flow(
        transformer,
        sigmas(variant, config.sampling_steps or variant.default_steps, side * side),
        (side, side),
        variant.default_guidance if config.guidance < 0 else config.guidance,
        use_autocast(source, device),
    )
    blocks = target_blocks(config.targets, config.blocks, flow.double_blocks, flow.single_blocks)
    targets = TARGETS[config.targets]
    parameters = add_adapter(transformer, targets, config.rank, config.alpha, config.seed, blocks)
    if config.compile:
        compile_blocks(transformer)
    return flow, parameters
