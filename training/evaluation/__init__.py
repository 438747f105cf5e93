"""Measures on generated images."""

from .attacks import ATTACKS
from .classifier import DemoClassifier, Verdict, load_classifier
from .erasure import Drift, ErasureScore, Pictures, Share, judge, measure_deletion, measure_erasure, paint
from .probes import Probe, probes, require_measurable

__all__ = [
    "ATTACKS",
    "DemoClassifier",
    "Drift",
    "ErasureScore",
    "Pictures",
    "Probe",
    "Share",
    "Verdict",
    "judge",
    "load_classifier",
    "measure_deletion",
    "measure_erasure",
    "paint",
    "probes",
    "require_measurable",
]
