"""What variants of LoRA cost beside LoRA: the measuring of a step, the models, and the study."""
