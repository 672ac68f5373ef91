"""What denoisers that tests make up take."""

from vexpress_trt.engines.manifest import TensorSpec


def denoiser_inputs(dtype: str = "float32", channels: int = 2) -> tuple[TensorSpec, ...]:
    """Latents, timestep, five audio tokens of three numbers for each frame, and `channels` of key point features; the
    last two are of `dtype`."""
    return (
        TensorSpec("latents", "float32", ("B", "F", 4, "h", "w")),
        TensorSpec("timestep", "float32", ("B",)),
        TensorSpec("tokens", dtype, ("B", "F", 5, 3)),
        TensorSpec("kps_feature", dtype, ("B", "F", channels, "h", "w")),
    )
