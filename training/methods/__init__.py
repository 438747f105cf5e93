"""Erasure methods behind one small protocol (base.Method): one file per method, loss terms in losses.py."""

from ..concepts import Concept
from ..config import ErasureConfig
from .base import Level, Method, MethodFactory, Prompts, Term
from .eraseanything import EraseAnything

METHODS: dict[str, MethodFactory] = {"eraseanything": EraseAnything}


def make_method(concept: Concept, config: ErasureConfig) -> Method:
    """The method that `config` names, for one concept."""
    return METHODS[config.method](concept, config)


__all__ = ["METHODS", "Level", "Method", "Prompts", "Term", "make_method"]
