"""How to erase: every training setting with its default and range, and the request that a job is made of.

All defaults live here; nodes, command line and documentation read them from these classes.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .concepts import Concept, Kind
from .errors import ConfigError
from .models.source import QUANTISED, FluxSource

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
BLOCKS = {"single_qk": ("single",), "every_qk": ("double", "single")}  # of the other sets: double


# Settings that depend on the concept's kind, the values that leave them to it, and what they are then. A thing is most
# of its picture, and goes with all of it. A style or a relation is not: sent to the empty prompt, what is drawn in it
# would go too; and to paint the same in another way takes more than what the text's q and k can change. More weights
# follow the noise of single samples further: there a step has more of them.
AUTO: dict[str, Any] = {"targets": "auto", "eta": -1.0, "erase_to": "auto", "batch_erase": 0, "batch_preserve": 0}
_THING = {"targets": "text_qk", "eta": 0.5, "erase_to": "empty", "batch_erase": 1, "batch_preserve": 1}
_PART = {"targets": "all", "erase_to": "rest", "batch_erase": 4, "batch_preserve": 4}
OF_KIND: dict[Kind, dict[str, Any]] = {
    "entity": _THING,
    "custom": _THING,
    "abstraction": {**_PART, "eta": 3.0},
    "relationship": {**_PART, "eta": 0.0},
}


def target_blocks(targets: str, chosen: Sequence[int], double: int, single: int) -> list[int]:
    """Indices of the blocks that a set of TARGETS means in a model of `double` and `single` blocks, double ones first.

    chosen: `ErasureConfig.blocks`; where there are any, no others.
    """
    ranges = {"double": range(double), "single": range(double, double + single)}
    reached = [block for kind in BLOCKS.get(targets, ("double",)) for block in ranges[kind]]
    return [block for block in reached if not chosen or block in chosen]


def setting(default: Any, help: str, low: float = -math.inf, high: float = math.inf, choices: tuple = ()) -> Any:
    """A dataclass field with its range or choices, and a help text that says when to change it."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class ErasureConfig:
    """The settings of a training. Numbers are validated against the ranges beside them."""

    method: str = setting(
        "eraseanything",
        "The erasure method. Those after the first are there to be compared with it.",
        choices=("eraseanything", "esd", "concept_ablation", "gem"),
    )
    bilevel: bool = setting(
        True,
        "Erase and preserve in turn (eraseanything). Off: one sum of all losses, at the erasing learning rate, to "
        "compare with.",
    )
    anchor: str = setting(
        "",
        "What takes the concept's place (concept_ablation, gem); empty: its irrelevant word of middle distance. Set it "
        "where you know what should be seen instead.",
    )
    steps: int = setting(400, "Erase and preserve steps, in pairs. More where the concept still shows.", 1, 100_000)
    rank: int = setting(8, "Rank of the LoRA. Raise it for broad concepts.", 1, 512)
    alpha: float = setting(8.0, "The LoRA's alpha; its scale is alpha / rank. Raise it with the rank.", 1e-3, 4096)
    targets: str = setting(
        AUTO["targets"],
        "Which projections get a LoRA. auto: the text's q and k for things, all of the double blocks' attention for "
        "styles and relations. Try a larger set where the concept still shows after more steps.",
        choices=(AUTO["targets"], *TARGETS),
    )
    blocks: tuple[int, ...] = setting(
        (),
        "Blocks that get a LoRA, double ones first, single ones counted on; empty: all that targets names. Name some "
        "for a smaller file.",
        0,
        1000,
    )
    capture_blocks: tuple[int, ...] = setting(
        (), "Double blocks whose attention is used; empty: all. Name early ones alone for faster steps.", 0, 1000
    )
    lr_erase: float = setting(
        8e-4, "Learning rate of the erasing level. Lower it where the losses jump, raise it where they stay.", 0, 1
    )
    lr_preserve: float = setting(
        7e-4, "Learning rate of the preserving level. Raise it where other things change too.", 0, 1
    )
    weight_decay: float = setting(
        0.0,
        "AdamW's weight decay on the LoRA: pulls it towards changing nothing. Raise it where other things change too.",
        0,
        10,
    )
    weight_esd: float = setting(
        1.0, "Weight of the erasing velocity loss. Raise it where the concept still shows.", 0, 1e6
    )
    weight_attn: float = setting(
        1.0, "Weight of the concept's attention mass. Raise it where parts of the concept still show.", 0, 1e6
    )
    weight_lora: float = setting(
        1.0, "Weight of velocity matching on preservation prompts. Raise it where other things change too.", 0, 1e6
    )
    weight_rsc: float = setting(
        0.0,
        "Weight of the reverse self-contrastive loss; 0 leaves it out, as nothing measured was better with it. Set it "
        "(0.01) where synonyms still show the concept.",
        0,
        1e6,
    )
    eta: float = setting(
        AUTO["eta"],
        "How far beyond its target the concept is sent; -1: 0.5 for things, 3 for styles, 0 for relations. Raise it "
        "where the concept still shows.",
        -1,
        20,
    )
    tau: float = setting(
        0.07,
        "Temperature of the contrastive loss. Lower it so that the nearest words count most, raise it so that all do.",
        1e-3,
        10,
    )
    batch_erase: int = setting(
        AUTO["batch_erase"],
        "Samples in an erase step; 0: 1 for things, 4 for styles and relations. More for less noise in each step; they "
        "take time and memory.",
        0,
        256,
    )
    batch_preserve: int = setting(
        AUTO["batch_preserve"],
        "Samples in a preserve step; 0: 1 for things, 4 for styles and relations. More where other things change too; "
        "they take time and memory.",
        0,
        256,
    )
    erase_prompts: int = setting(
        24, "Different prompts with the concept in the bank. More where it still shows in other wordings.", 1, 1000
    )
    preserve_prompts: int = setting(
        64,
        "How many of the concept's preservation prompts are used. More where other things change too; fewer start "
        "sooner.",
        0,
        10_000,
    )
    erase_synonyms: bool = setting(True, "Erase the synonyms too. Off where one has other meanings that must stay.")
    shuffle: bool = setting(
        True, "Shuffle the words of a fifth of the prompts (the phrase stays whole). Off where word order matters."
    )
    sampling_steps: int = setting(
        0, "Euler steps of the trajectories; 0: the model's default. Fewer start sooner, at some loss.", 0, 1000
    )
    resolution: int = setting(
        0,
        "Side of the training images in pixels; 0: the model's own, 512 at most. Lower it where memory runs out.",
        0,
        4096,
    )
    t_min: float = setting(
        0.5,
        "Train only on times above this (1 is noise): what is shown is decided there. Lower it where small details "
        "must go.",
        0,
        0.99,
    )
    refresh_every: int = setting(
        0,
        "Steps after which a quarter of the erasing trajectories is sampled again, with the LoRA on; 0: never. Set it "
        "where the concept still shows although the erasing loss is low.",
        0,
        100_000,
    )
    guidance: float = setting(
        -1.0, "Guidance fed to the model; -1: the model's default. Set it where you sample with another.", -1, 100
    )
    random_strength: bool = setting(
        False,
        "Train at random strengths, so that the strength slider is proportional. On where you want to erase by halves.",
    )
    seed: int = setting(0, "Seed of everything. Another number is another training.", 0, 2**63 - 1)
    checkpoint_every: int = setting(
        50, "Steps between checkpoints. Fewer where little may be lost when the worker is killed.", 1, 100_000
    )
    keep_checkpoints: int = setting(
        2, "How many checkpoints stay on disk, the newest ones. More where you may want to go back by hand.", 1, 1000
    )
    sample_every: int = setting(
        200, "Steps between sample images; 0: none. Fewer show more, and take longer.", 0, 100_000
    )
    sample_count: int = setting(2, "Seeds per sample image. More show more, and take longer.", 1, 16)
    # New settings come last: saved workflows hold the node's values in this order.
    erase_to: str = setting(
        AUTO["erase_to"],
        "Which prompt the concept's prompts are sent to (eraseanything, esd): the empty one, or the rest of the same "
        "prompt, with another relation in a relation's place. auto: the rest for styles and relations, which are only "
        "a part of what is seen.",
        choices=(AUTO["erase_to"], "empty", "rest"),
    )
    gradient_checkpointing: str = setting(
        "auto",
        "Keep only what goes into each block, and compute the rest again in the backward pass: the same LoRA with far "
        "less memory, about a third slower. auto: on where the weights are quantised (fp8, int8, nf4), which saves "
        "nothing without it, where blocks are streamed, and where memory is short. Off where you know that it fits.",
        choices=("auto", "on", "off"),
    )
    stream_blocks: int = setting(
        0,
        "How many of the transformer's blocks are on the device at a time, 2 or more; the others wait in the "
        "computer's own memory. 0: all, or what fits where Load Flux leaves the precision open (auto). 2 where the "
        "transformer does not fit even in nf4; slower, and the same LoRA.",
        0,
        1000,
    )
    early_stopping: int = setting(
        0,
        "Stop when what is left of the concept has not become less for so many steps; 0: train all steps. Set it (40) "
        "with more steps than you think you need.",
        0,
        100_000,
    )
    compile: bool = setting(
        False,
        "Compile the transformer's blocks before they run: faster steps after a minute or two at the start, the same "
        "LoRA to rounding. On for long trainings of a full-size Flux on a GPU; off where a training takes minutes.",
    )

    def for_kind(self, kind: Kind) -> ErasureConfig:
        """These settings with those decided that are left to the concept's kind: `OF_KIND`.

        The other methods' η is their own, 1 for every kind.
        """
        decided = {**OF_KIND[kind], **({"eta": 1.0} if self.method != "eraseanything" else {})}
        return dataclasses.replace(self, **{k: v for k, v in decided.items() if getattr(self, k) == AUTO[k]})

    def checkpoints_blocks(self, precision: str) -> bool:
        """Whether blocks are computed again in the backward pass: `gradient_checkpointing` decided for a source's
        precision. Without it, autograd would keep a copy in bf16 of every quantised weight."""
        if self.gradient_checkpointing == "auto":
            return precision in QUANTISED or self.stream_blocks > 0
        return self.gradient_checkpointing == "on"

    def streams_encoder(self, precision: str) -> bool:
        """Whether T5 visits the device layer by layer: where the transformer takes less memory there than T5 would."""
        return self.stream_blocks > 0 or precision == "nf4"

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ErasureConfig:
        """From `to_dict`'s result or a part of it (the rest keeps its default), validated. Raises ConfigError."""
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(data, dict) or set(data) - names:
            unknown = ", ".join(sorted(set(data) - names)) if isinstance(data, dict) else repr(data)
            raise ConfigError(f"Unknown training setting {unknown}: choose from {', '.join(sorted(names))}.")
        config = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
        config.validate()
        return config

    def validate(self) -> None:
        """Raises ConfigError for the first setting that has the wrong type or is outside its range."""
        for f in dataclasses.fields(self):
            value, meta = getattr(self, f.name), f.metadata
            several = isinstance(f.default, tuple)
            if isinstance(value, tuple) != several:
                what = "a list" if several else "one value, no list"
                raise ConfigError(f"The setting {f.name} must be {what}, not {value!r}.")
            items = value if several else (value,)
            kind = int if several else type(f.default)
            for item in items:
                right = isinstance(item, (int, float)) if kind is float else isinstance(item, kind)
                if not right or (kind in (int, float) and isinstance(item, bool)):
                    raise ConfigError(f"The setting {f.name} must be of type {kind.__name__}, not {item!r}.")
                if meta["choices"] and item not in meta["choices"]:
                    choices = ", ".join(meta["choices"])
                    raise ConfigError(f"The setting {f.name} must be one of {choices}, not {item!r}.")
                if kind in (int, float) and not meta["low"] <= item <= meta["high"]:
                    raise ConfigError(
                        f"The setting {f.name} must lie between {meta['low']:g} and {meta['high']:g}, not {item!r}."
                    )
        if self.stream_blocks == 1:
            raise ConfigError("The setting stream_blocks must be 0 or at least 2: one block computes, one is copied.")
        if self.stream_blocks and self.gradient_checkpointing == "off":
            raise ConfigError(
                "The setting stream_blocks needs gradient_checkpointing: leave that on auto, or set it on."
            )


# Names that Windows keeps for devices: a file of that stem cannot be written there.
_DEVICES = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}


def validate_name(name: str) -> str:
    """`name` if it can be a LoRA's file stem on every system (no path parts); raises ConfigError otherwise."""
    if (
        not isinstance(name, str)
        or not re.fullmatch(r"[\w][\w .()+-]{0,99}", name)
        or name.endswith((".", " "))
        or name.split(".")[0].strip().lower() in _DEVICES
    ):
        raise ConfigError(
            f"{name!r} cannot be a LoRA's name: use at most 100 letters, digits, spaces and . _ - + ( ), no folders."
        )
    return name


@dataclass(frozen=True)
class ErasureRequest:
    """Everything a training needs to know: a job folder with this in it can be run again.

    name: file stem of the LoRA. output_folder: where `name`.safetensors is written. device: "auto", "cpu", "cuda", ….
    """

    source: FluxSource
    concept: Concept
    config: ErasureConfig
    name: str
    output_folder: str
    device: str = "auto"

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "source": self.source.to_dict(),
            "concept": self.concept.to_dict(),
            "config": self.config.to_dict(),
            "name": self.name,
            "output_folder": self.output_folder,
            "device": self.device,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ErasureRequest:
        """From `to_dict`'s result; each part is validated. Raises ErasureError's subclasses."""
        try:
            request = cls(
                FluxSource.from_dict(data["source"]),
                Concept.from_dict(data["concept"]),
                ErasureConfig.from_dict(data["config"]),
                data["name"],
                data["output_folder"],
                data.get("device", "auto"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError("The training request is not complete: make it again.") from error
        validate_name(request.name)
        return request

    def validate(self) -> None:
        """Checks every part, the model's files among them. Raises ErasureError's subclasses."""
        validate_name(self.name)
        self.concept.validate()
        self.config.validate()
        if not self.output_folder or not os.path.isabs(self.output_folder):
            raise ConfigError("The LoRA's output folder must be an absolute path.")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?|xpu(:\d+)?", self.device):
            raise ConfigError(f'Unknown device "{self.device}": use auto, cpu, cuda, cuda:1, mps or xpu.')
        if self.config.compile and self.source.precision in QUANTISED:
            raise ConfigError(
                f"The setting compile does not work with {self.source.precision} weights: choose bf16 as Load Flux's "
                "precision, or switch compile off."
            )
        self.source.validate()
