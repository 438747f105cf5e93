"""LoRA: the file format, the adapter on the transformer, merging, and baking into a checkpoint."""
