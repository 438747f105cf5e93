"""Measures on generated images."""

from .classifier import DemoClassifier, Verdict, load_classifier
from .erasure import ErasureScore, Share, measure_erasure

__all__ = ["DemoClassifier", "ErasureScore", "Share", "Verdict", "load_classifier", "measure_erasure"]
