"""Flux: where its weights are, loading, text encoding, velocity, sampling and joint attention."""
