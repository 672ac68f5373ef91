"""What a GPU shows of the runtime: kernels, loop, numbers, speed. Run as `python -m vexpress_trt.bench.gpu_check`.

Needs PyTorch with CUDA, cuda-bindings, NumPy and OpenCV, the repository (tests and committed goldens), and no network.
With diffusers the image decoder is measured as well. Networks have random weights, made on the GPU.
"""
