"""Which package does a docstring come from? LoRA, PoLAR and RefLoRA against a probe on frozen features."""
