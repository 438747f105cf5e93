"""Which words paint which pixels: recordings of joint attention, the words behind the tokens, heatmaps."""

from .heatmaps import COLOUR_MAPS, Figure, figure_of
from .recording import Recording, choose_blocks, default_blocks, default_time
from .words import PromptWords, Word, read_prompt

__all__ = [
    "COLOUR_MAPS",
    "Figure",
    "PromptWords",
    "Recording",
    "Word",
    "choose_blocks",
    "default_blocks",
    "default_time",
    "figure_of",
    "read_prompt",
]
