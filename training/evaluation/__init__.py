"""Measures on generated images: cases → render → judges → tally → result. To evaluate is `run.evaluate`."""

from .attacks import ATTACKS
from .cases import Case, Content, concept_cases, keys_of, require_measurable
from .classifier import DemoClassifier, load_classifier
from .drift import Drift
from .intervals import wilson
from .measure import ErasureScore, Share, measure_deletion, measure_erasure, score
from .pictures import PictureFolder
from .render import Pictures, render
from .result import read_evaluation
from .spec import EvaluationSpec, Subject, concept_of_loras

__all__ = [
    "ATTACKS",
    "Case",
    "Content",
    "DemoClassifier",
    "Drift",
    "ErasureScore",
    "EvaluationSpec",
    "PictureFolder",
    "Pictures",
    "Share",
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
    "wilson",
]
