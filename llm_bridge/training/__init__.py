"""The parts of a fine-tuning run: options, the model and its data, the loop, and what is written at its end."""
