"""Serving: the runtime behind a Triton Inference Server, its clients, and batches of clips."""
