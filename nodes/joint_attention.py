"""Taps on the joint attention of the host's Flux: a recorder and an eraser, as patches that chain with others'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.ldm.flux.model
import comfy.ldm.modules.attention
import comfy.sd1_clip
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..training.errors import ConceptError, ConfigError
from ..training.inspection.recording import Recording
from ..training.inspection.words import PromptWords, read_prompt
from ..training.models.attention import attend, text_columns

_KEY = "erase_anything"
_OVERRIDE = "optimized_attention_override"
_POSITIVE = 0  # the host's number for positive conditioning in "cond_or_uncond"

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Call:
    """One pass of the transformer: its t, its geometry, and which rows of the batch belong to the positive prompt."""

    t: float
    grid: tuple[int, int]
    text_length: int
    rows: slice
    found: dict[int, Tensor] = field(default_factory=dict)

    @property
    def image(self) -> slice:
        """Positions of the picture's own tokens; those of reference pictures come after."""
        return slice(self.text_length, self.text_length + self.grid[0] * self.grid[1])


class Tap:
    """Sees the queries, keys and values of chosen blocks while t is in a range; subclasses say what they do with them.

    blocks are counted as training.inspection.choose_blocks() counts them. start and end: the range of t, both included.
    """

    def __init__(self, blocks: Sequence[int], double: int, start: float, end: float) -> None:
        if not 0 <= end <= start <= 1:
            raise ConfigError("The timesteps run from 1 (noise) down to 0: t_start must not be below t_end.")
        self.blocks, self.double, self.start, self.end = tuple(blocks), double, start, end
        self._call: Call | None = None
        self._uuid: object = None

    def __deepcopy__(self, memo: dict) -> Tap:
        return self  # the host copies the options of a MODEL in depth; the copies must reach the same recording

    def put_on(self, model: ModelPatcher) -> ModelPatcher:
        """A clone of the MODEL with this tap; the MODEL given stays as it is."""
        patched = model.clone()
        options = patched.model_options["transformer_options"]
        inner = options.get(_OVERRIDE)

        def override(func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
            def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                if inner is not None:
                    return inner(func, query, key, value, heads, *args, **kwargs)
                return func(query, key, value, heads, *args, **kwargs)

            index = self._index(kwargs.get("transformer_options") or {})
            if self._call is None or index not in self.blocks:
                return attention(q, k, v)
            if args or kwargs.get("mask") is not None or not kwargs.get("skip_reshape"):
                raise ConfigError("Joint attention cannot be followed under an attention mask: take the mask away.")
            return self.attention(self._call, index, q, k, v, attention, inner is None and _is_pytorch(func))

        options[_OVERRIDE] = override
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, self._sample)
        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _KEY, self._pass)
        return patched

    def begin(self) -> None:
        """A sampling run starts."""

    def prepare(self, call: Call, flux: torch.nn.Module, x: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        """A pass in the range starts, on latents x; the transformer_options that it shall have."""
        return options

    def finish(self, call: Call) -> None:
        """A pass in the range is over."""

    def attention(
        self, call: Call, index: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention, plain: bool
    ) -> Tensor:
        """The attention of one block, [B, tokens, heads * d]; q, k, v [B, heads, tokens, d].

        attention computes it as it would have been without this tap; plain: that is PyTorch's own, with no override.
        """
        raise NotImplementedError

    def _index(self, options: dict[str, Any]) -> int | None:
        index = options.get("block_index")
        return index + self.double if index is not None and options.get("block_type") == "single" else index

    def _sample(self, executor: Callable, *args: Any, **kwargs: Any) -> Any:
        self._uuid = self._call = None
        self.begin()
        return executor(*args, **kwargs)

    def _pass(
        self,
        executor: Any,  # the host's WrapperExecutor around the model's forward
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Any = None,
        guidance: Any = None,
        ref_latents: Any = None,
        control: Any = None,
        transformer_options: dict | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = transformer_options or {}
        t = float(timestep.flatten()[0])
        rows = self._positive_rows(options, x.shape[0])
        self._call = None
        if rows is not None and self.end <= t <= self.start:
            # a 2 x 2 patch of latents is a token; the host pads odd sides
            grid = ((x.shape[-2] + 1) // 2, (x.shape[-1] + 1) // 2)
            self._call = Call(t, grid, context.shape[1], rows)
        call = self._call
        if call is not None:
            options = self.prepare(call, executor.class_obj, x, options)
        try:
            out = executor(x, timestep, context, y, guidance, ref_latents, control, options, **kwargs)
        finally:
            self._call = None
        if call is not None:
            self.finish(call)
        return out

    def _positive_rows(self, options: dict[str, Any], batch: int) -> slice | None:
        """The rows of the positive prompt; None where the batch has none. ConfigError for several prompts."""
        kinds = options.get("cond_or_uncond") or [_POSITIVE]
        places = [place for place, kind in enumerate(kinds) if kind == _POSITIVE]
        if not places:
            return None
        uuid = (options.get("uuids") or [None] * len(kinds))[places[0]]
        self._uuid = self._uuid or uuid
        if len(places) > 1 or uuid != self._uuid:
            raise ConfigError(
                "Joint attention is followed for one positive prompt, and here several are combined: connect one."
            )
        size = batch // len(kinds)
        return slice(places[0] * size, (places[0] + 1) * size)


class Recorder(Tap):
    """Fills a Recording while the host samples; a new run replaces what an earlier one recorded."""

    def __init__(
        self, recording: Recording, tokens: int, each_head: bool, start: float = 1.0, end: float = 0.0
    ) -> None:
        super().__init__(recording.blocks, recording.double, start, end)
        self.recording, self.tokens, self.each_head = recording, tokens, each_head

    def begin(self) -> None:
        self.recording.clear()

    def attention(
        self, call: Call, index: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention, plain: bool
    ) -> Tensor:
        query, key = q[call.rows, :, call.image], k[call.rows]
        if plain:  # the same kernel gives the softmax's denominators along with its output
            out, normaliser = attend(q, k, v)
            normaliser = normaliser[call.rows, :, call.image]
            out = out.transpose(1, 2).flatten(2)
        else:
            out = attention(q, k, v)
            normaliser = attend(query, key, key)[1]
        if not call.found:
            self.recording.begin(call.grid, call.text_length, key.shape[2])
        count = min(self.tokens, call.text_length)
        call.found[index] = text_columns(query, key, normaliser, count, mean_heads=not self.each_head)
        return out

    def finish(self, call: Call) -> None:
        times = self.recording.times
        # Guidance of other kinds may run the positive prompt twice at one t: the first pass is the plain one. A pass
        # that skipped blocks (step caching) has nothing whole to add.
        if len(call.found) == len(self.blocks) and not (times and times[-1] == call.t):
            self.recording.add(call.t, [call.found[index] for index in self.blocks])


class Deleter(Tap):
    """Attention deletion (EraseAnything, section 3): A[:, tokens] = 0 after the softmax, for the positive prompt.

    The zeroed columns are those that meet the tokens' values in A v, so the values are zeroed instead: the same to the
    last bit of the formula, at no cost.
    """

    def __init__(
        self, blocks: Sequence[int], double: int, tokens: Sequence[int], text_length: int, start: float, end: float
    ) -> None:
        super().__init__(blocks, double, start, end)
        self.tokens, self.text_length = list(tokens), text_length

    def attention(
        self, call: Call, index: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention, plain: bool
    ) -> Tensor:
        if call.text_length != self.text_length:
            raise ConfigError(
                f"The sampled prompt has {call.text_length} text tokens, the one of Delete Attention "
                f"{self.text_length}: connect the same CLIP and prompt to both."
            )
        v = v.clone()
        v[call.rows, :, self.tokens] = 0
        return attention(q, k, v)


def flux_blocks(model: ModelPatcher) -> tuple[int, int]:
    """How many double and single blocks the MODEL has; ConfigError if it is no Flux.1."""
    flux = model.get_model_object("diffusion_model")
    if type(flux) is not comfy.ldm.flux.model.Flux or len(flux.params.axes_dim) != 3:
        raise ConfigError("This MODEL is no Flux.1: joint attention is followed in Flux.1 dev and schnell only.")
    return len(flux.double_blocks), len(flux.single_blocks)


def read_clip_prompt(clip: Any, prompt: str) -> PromptWords:
    """The words of a prompt as this CLIP's T5 reads it, the host's prompt weights taken off; ConceptError if they do
    not match the tokens that the CLIP gives the model."""
    wrapped = getattr(getattr(clip, "tokenizer", None), "t5xxl", None)
    if wrapped is None:
        raise ConceptError("This CLIP has no T5: connect the CLIP of a Flux.1.")
    tokenizer = wrapped.tokenizer
    ids = [entry[0] for entry in clip.tokenize(prompt)["t5xxl"][0]]
    weighted = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(prompt), 1.0)
    segments = [comfy.sd1_clip.unescape_important(text) for text, _ in weighted]
    # an embedding is a tensor, not a number
    end = next((n for n, token in enumerate(ids) if isinstance(token, int) and token == wrapped.end_token), 0)
    words = read_prompt(tokenizer, segments, end + 1)
    if not all(isinstance(token, int) for token in ids[:end]) or list(words.ids) != ids[:end]:
        raise ConceptError("The words cannot be matched to this CLIP's tokens: leave embeddings out of the prompt.")
    return replace(words, length=len(ids))


def _is_pytorch(function: Callable) -> bool:
    pytorch = comfy.ldm.modules.attention.attention_pytorch
    return function is getattr(pytorch, "__wrapped__", pytorch)
