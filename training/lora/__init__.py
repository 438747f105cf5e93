"""LoRA: the file format and the adapter on the transformer."""
