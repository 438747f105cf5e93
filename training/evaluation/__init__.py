"""Measures on generated images."""

from .classifier import DemoClassifier, Verdict, load_classifier

__all__ = ["DemoClassifier", "Verdict", "load_classifier"]
