"""The pack's own socket types."""

from __future__ import annotations

from .compat import io

CATEGORY = "Erase Anything"

NONE = "none"  # the choice in a combo of files that chooses none

FluxSourceType = io.Custom("FLUX_SOURCE")  # carries training.models.source.FluxSource
ConceptType = io.Custom("ERASURE_CONCEPT")  # carries training.concepts.Concept
EndpointType = io.Custom("WORDS_ENDPOINT")  # carries a nodes.concept.Endpoint
JobType = io.Custom("ERASURE_JOB")  # carries a job's id (str)
EvaluationType = io.Custom("ERASURE_EVALUATION")  # carries the id (str) of an evaluation's job
StackType = io.Custom("ERASURE_LORA_STACK")  # carries a tuple of nodes.stack.Row
RecordingType = io.Custom("JOINT_ATTENTION")  # carries training.inspection.Recording
