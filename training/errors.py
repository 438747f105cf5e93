"""Errors that users may see: each message is one clear sentence that says what to do.

Callers tell errors apart by their class, never by their text.
"""

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
    """A job cannot be started, continued, stopped or read: what is asked does not fit the state that it is in."""


class JobNotFound(JobError):
    """There is no job of this id, or no longer."""


class JobUnreadable(JobError):
    """A job's folder is broken: the job can only be deleted."""


class JobOfOtherVersion(JobError):
    """Another version of this pack has written what is to be read; nothing of it may be changed."""


class JobBusy(JobError):
    """Another process is writing a job's folder."""


class LoraError(ErasureError):
    """A LoRA file cannot be read, written or applied."""


class CheckpointError(ErasureError):
    """A training checkpoint cannot be read or written."""
