"""Measures on generated images: cases → render → judges → tally → result. To evaluate is `run.evaluate`."""

from .cases import Case, Content, concept_cases, keys_of, require_measurable
from .classifier import load_classifier
from .measure import measure_deletion, measure_erasure, score
from .pictures import PictureFolder
from .render import render
from .result import read_evaluation
from .spec import EvaluationSpec, Subject, concept_of_loras

__all__ = [
    "Case",
    "Content",
    "EvaluationSpec",
    "PictureFolder",
    "Subject",
    "concept_cases",
    "concept_of_loras",
    "keys_of",
    "load_classifier",
    "measure_deletion",
    "measure_erasure",
    "read_evaluation",
    "render",
    "require_measurable",
    "score",
]
