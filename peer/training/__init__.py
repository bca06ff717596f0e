"""Torch: what is trained, on which samples, chunk by chunk, and how the gradients of a round are kept."""
