"""The engines: the default model on a CPU and on a GPU, and floating-point models, which see whole images."""
