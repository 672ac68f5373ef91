"""Networks with random weights, made where they run, as engines without a bundle."""

import math
import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from vexpress_trt.bench.gpu_check.parts import Setting
from vexpress_trt.engines.dims import evaluate
from vexpress_trt.engines.manifest import PRECISION_DTYPE, GraphSpec, TensorSpec
from vexpress_trt.engines.torch_cuda_engine import TorchDeviceEngine
from vexpress_trt.export.graph_shapes import key_value_shapes, tap_shapes
from vexpress_trt.export.nets.configs import NetworkConfigs
from vexpress_trt.export.nets.denoiser import Denoiser
from vexpress_trt.export.nets.guider import KpsGuider
from vexpress_trt.export.nets.motion import PositionTable
from vexpress_trt.export.nets.plain import PlainDenoiser
from vexpress_trt.export.random_model import FULL, RandomModel

# The smallest that has every kind of layer, for questions that do not depend on sizes.
MINI = RandomModel(
    block_out_channels=(32, 64),
    layers_per_block=1,
    cross_attention_dim=40,
    projection_dim=48,
    projection_depth=1,
    vae_channels=(16, 16, 32, 32),
    vae_layers=1,
    vae_groups=8,
)
TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Deviation of a layer's output for inputs of deviation 1, as in `export.random_weights`: activations stay small.
_GAINS = (
    (r"to_[qk]\.weight", 1.2),
    (r"time_embedding|time_emb_proj|conv_in\.|shortcut|samplers|proj_in|conv_out", 1.0),
    (r"", 0.6),
)


def model_for(setting: Setting) -> RandomModel:
    """The official sizes, or the smallest where those would take too long."""
    return MINI if setting.small else FULL


def randomised(build: Callable[[], nn.Module], *, device: str, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """The network on a device, with weights that depend on the seed and on the kind of device."""
    with torch.device("meta"):
        module = build().to(dtype)
    module = module.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith(".pe"):
            tensor.copy_(PositionTable(tensor.shape[2], tensor.shape[1]).pe)
            continue
        tensor.normal_(generator=generator)
        if name.endswith(".bias"):
            tensor.mul_(0.1)
        elif tensor.ndim == 1:
            tensor.mul_(0.1).add_(1.0)
        else:
            gain = next(gain for pattern, gain in _GAINS if re.search(pattern, name))
            tensor.mul_(gain / math.sqrt(tensor[0].numel()))
    return module


def denoiser(networks: NetworkConfigs, *, guided: bool, plain: bool = False) -> nn.Module:
    """The denoiser of these sizes; `plain` without the exact savings, as the original computes it."""
    return (PlainDenoiser if plain else Denoiser)(networks.unet, networks.motion, guided=guided)


def guider(networks: NetworkConfigs) -> nn.Module:
    return KpsGuider(networks.guider)


def denoiser_spec(networks: NetworkConfigs, *, guided: bool, precision: str, plain: bool = False) -> GraphSpec:
    """As the exporter writes it into a manifest."""
    typed, unet = PRECISION_DTYPE[precision], networks.unet
    latent = (unet.in_channels, "h", "w")
    width, cross, queries = unet.block_out_channels[0], unet.cross_attention_dim, networks.projection.queries
    if plain:
        reference = [(f"tap_{at:02d}", shape) for at, shape in enumerate(tap_shapes(unet))]
    else:
        pairs = enumerate(key_value_shapes(unet))
        reference = [(f"{kind}_{at:02d}", shape) for at, shape in pairs for kind in ("key", "value")]
    name = "denoiser_guided" if guided else "denoiser_single"
    return GraphSpec(
        name,
        precision,
        f"{name}.onnx",
        (
            TensorSpec("latents", "float32", ("B", "F", *latent)),
            TensorSpec("timestep", "float32", ("B",)),
            TensorSpec("tokens", typed, ("B", "F", queries, cross)),
            TensorSpec("kps_feature", typed, ("B", "F", width, "h", "w")),
            *(TensorSpec(key, typed, shape) for key, shape in reference),
            TensorSpec("reference_weight", "float32", (1,)),
            TensorSpec("audio_weight", "float32", (1,)),
        ),
        (TensorSpec("prediction", "float32", ("B", 2 if guided else 1, "F", *latent)),),
        (f"{name}.onnx",),
    )


def guider_spec(networks: NetworkConfigs, precision: str) -> GraphSpec:
    typed, width = PRECISION_DTYPE[precision], networks.unet.block_out_channels[0]
    inputs = (TensorSpec("rgb", "float32", ("N", 3, "8*h", "8*w")),)
    outputs = (TensorSpec("feature", typed, ("N", width, "h", "w")),)
    return GraphSpec("kps_guider", precision, "kps_guider.onnx", inputs, outputs, ("kps_guider.onnx",))


def random_inputs(spec: GraphSpec, sizes: dict[str, int], *, device: str, seed: int = 1) -> dict[str, Tensor]:
    """A tensor for every input: unit normal, weights 1, timesteps 500."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for tensor in spec.inputs:
        shape = [evaluate(dimension, sizes) for dimension in tensor.shape]
        kind = getattr(torch, tensor.dtype)
        if tensor.name in ("timestep", "reference_weight", "audio_weight"):
            tensors[tensor.name] = torch.full(shape, 500.0 if tensor.name == "timestep" else 1.0, device=device)
        else:
            tensors[tensor.name] = torch.randn(shape, generator=generator, device=device).to(kind)
    return tensors


def engine_on(
    device: str, spec: GraphSpec, module: nn.Module, precision: str, *, fused: bool = True
) -> TorchDeviceEngine:
    """An engine of a network that is there already. `fused`: a denoiser takes its fused form, if a GPU has kernels for
    it; on the CPU by plain forms, to try the check."""
    backend = "torch-cuda" if device == "cuda" else "torch"
    wanted = None if fused and device == "cuda" else fused
    return TorchDeviceEngine(None, spec, backend=backend, dtype=precision, module=module, threads=1, fused=wanted)


def arguments(spec: GraphSpec, tensors: dict[str, Tensor]) -> list[object]:
    """Arguments of the module's `forward`."""
    from vexpress_trt.engines.torch_engine import module_arguments

    return module_arguments(spec, tensors)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
