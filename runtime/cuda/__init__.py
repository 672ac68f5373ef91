"""The loop on an NVIDIA GPU: kernels, buffers, streams."""
