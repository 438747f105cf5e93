"""Errors that users may see: each message is one clear sentence that says what to do."""

from __future__ import annotations


class ErasureError(Exception):
    """Base of every error this pack raises on purpose; nodes and routes show its message as it is."""


class SourceError(ErasureError):
    """The model's files are missing, incomplete or of another kind."""


class ConceptError(ErasureError):
    """The concept, its words or its prompts cannot be used."""


class ConfigError(ErasureError):
    """A training setting is outside its range."""


class JobError(ErasureError):
    """A training job cannot be started, continued or stopped."""


class LoraError(ErasureError):
    """A LoRA file cannot be read, written or applied."""


class CheckpointError(ErasureError):
    """A training checkpoint cannot be read or written."""
