"""Which weights are learned: the LoRA's rank and scale, and the projections and blocks that get one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from .field import STRICT, Number, setting

# Named sets of projections that get a LoRA, as diffusers calls them: of the double (dual-stream) blocks, except where
# BLOCKS says otherwise. In a single block text and image share a projection.
TARGETS: dict[str, tuple[str, ...]] = {
    "text_qk": ("attn.add_q_proj", "attn.add_k_proj"),  # the paper's
    "text_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "text_kv": ("attn.add_k_proj", "attn.add_v_proj"),
    "both_qk": ("attn.add_q_proj", "attn.add_k_proj", "attn.to_q", "attn.to_k"),
    "all": (
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
    ),
    "single_qk": ("attn.to_q", "attn.to_k"),
    "every_qk": ("attn.add_q_proj", "attn.add_k_proj", "attn.to_q", "attn.to_k"),
}
if TYPE_CHECKING:  # a type checker reads no Literal that is computed
    TargetSet = str
else:
    TargetSet = Literal[("auto", *TARGETS)]

BLOCKS = {"single_qk": ("single",), "every_qk": ("double", "single")}  # of the other sets: double


def target_blocks(targets: str, chosen: Sequence[int], double: int, single: int) -> list[int]:
    """Indices of the blocks that a set of TARGETS means in a model of `double` and `single` blocks, double ones first.

    chosen: `LoraSettings.blocks`; where there are any, no others.
    """
    ranges = {"double": range(double), "single": range(double, double + single)}
    reached = [block for kind in BLOCKS.get(targets, ("double",)) for block in ranges[kind]]
    return [block for block in reached if not chosen or block in chosen]


@dataclass(frozen=True, config=STRICT)
class LoraSettings:
    """Settings of the LoRA."""

    rank: int = setting(8, "Rank of the LoRA. Raise it for broad concepts.", "weights", 1, 512)
    alpha: Number = setting(
        8.0, "The LoRA's alpha; its scale is alpha / rank. Raise it with the rank.", "weights", 1e-3, 4096
    )
    targets: TargetSet = setting(
        "auto",
        "Which projections get a LoRA. auto: the text's q and k for things, all of the double blocks' attention for "
        "styles and relations. Try a larger set where the concept still shows after more steps.",
        "weights",
    )
    blocks: tuple[Annotated[int, Field(ge=0, le=1000)], ...] = setting(
        (),
        "Blocks that get a LoRA, double ones first, single ones counted on; empty: all that targets names. Name some "
        "for a smaller file.",
        "weights",
    )
