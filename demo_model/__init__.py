"""Builds and measures flux-emoji, the small demo Flux that ships with the pack (run by hand, not by users)."""
