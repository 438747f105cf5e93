"""Which words paint which pixels: recordings of joint attention, the words behind the tokens, heatmaps."""

from .heatmaps import COLOUR_MAPS, Figure, draw_figure, figure_of, read_figure
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
    "draw_figure",
    "figure_of",
    "read_figure",
    "read_prompt",
]
