"""Measures on generated images. Whatever needs no model of its own; to evaluate is `run.evaluate`."""

from .attacks import ATTACKS
from .classifier import DemoClassifier, Verdict, load_classifier
from .erasure import Drift, ErasureScore, Pictures, Share, judge, measure_deletion, measure_erasure, paint
from .intervals import wilson
from .order import Order, Subject, concept_of_loras
from .pictures import PictureFolder
from .probes import Probe, probes, require_measurable
from .result import read_evaluation

__all__ = [
    "ATTACKS",
    "DemoClassifier",
    "Drift",
    "ErasureScore",
    "Order",
    "PictureFolder",
    "Pictures",
    "Probe",
    "Share",
    "Subject",
    "Verdict",
    "concept_of_loras",
    "judge",
    "load_classifier",
    "measure_deletion",
    "measure_erasure",
    "paint",
    "probes",
    "read_evaluation",
    "require_measurable",
    "wilson",
]
