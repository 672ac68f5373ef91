"""Export: official PyTorch checkpoints in, a bundle of typed ONNX graphs out. The only room that needs torch."""
