"""Erasure methods behind one small protocol (base.Method): one file per method, loss terms in losses.py."""

from ..concepts import Concept
from ..settings import ErasureConfig
from .base import Method, MethodFactory, Prompts
from .concept_ablation import ConceptAblation
from .eraseanything import EraseAnything
from .esd import ESD
from .gem import GEM

METHODS: dict[str, MethodFactory] = {
    "eraseanything": EraseAnything,
    "esd": ESD,
    "concept_ablation": ConceptAblation,
    "gem": GEM,
}


def make_method(concept: Concept, config: ErasureConfig) -> Method:
    """The method that `config` names, for one concept."""
    return METHODS[config.method](concept, config)


__all__ = ["METHODS", "Method", "Prompts", "make_method"]
