"""The graphs of a bundle: which module each is made from, and the names, dtypes and shapes of its tensors."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from vexpress_trt.engines.manifest import PRECISION_DTYPE, DType, GraphSpec, Precision, TensorSpec
from vexpress_trt.export.checkpoints import Checkpoints
from vexpress_trt.export.nets.audio_projection import AudioProjection
from vexpress_trt.export.nets.configs import UNetConfig
from vexpress_trt.export.nets.denoiser import Denoiser
from vexpress_trt.export.nets.guider import KpsGuider
from vexpress_trt.export.nets.library import AudioEncoder, VaeDecoder, VaeEncoder
from vexpress_trt.export.nets.reference import Reference

LATENT_CHANNELS = 4

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph at any precision; a `typed` one has the graph's own dtype, others are float32."""

    name: str
    shape: Shape
    typed: bool = False

    def spec(self, precision: Precision) -> TensorSpec:
        dtype: DType = PRECISION_DTYPE[precision] if self.typed else "float32"
        return TensorSpec(self.name, dtype, self.shape)


@dataclass(frozen=True)
class Graph:
    """One graph of the bundle at any precision.

    `build` makes the torch module from checkpoints; `weights` names the file of its weights, which graphs may share.
    `traced` are the values of its symbols while tracing, `checked` those of the parity check: other ones, so that it
    also shows that the graph holds for more sizes than it was traced with.
    """

    name: str
    weights: str
    build: Callable[[Checkpoints], nn.Module]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    traced: Mapping[str, int]
    checked: Mapping[str, int]

    def spec(self, precision: Precision, *, files: tuple[str, ...] = (), parity: dict | None = None) -> GraphSpec:
        """What the manifest says about this graph; `files` are those besides the graph and its weights."""
        path, data = f"onnx/{precision}/{self.name}.onnx", f"onnx/{precision}/{self.weights}.data"
        inputs = tuple(tensor.spec(precision) for tensor in self.inputs)
        outputs = tuple(tensor.spec(precision) for tensor in self.outputs)
        return GraphSpec(self.name, precision, path, inputs, outputs, (path, data, *files), parity)

    def arguments(self, values: Iterable[Any]) -> tuple[Any, ...]:
        """Arguments of the module's `forward` from one value per input: keys and values go in as one sequence."""
        named = dict(zip((tensor.name for tensor in self.inputs), values, strict=True))
        arguments: list[Any] = []
        pairs: list[Any] = []
        for name, value in named.items():
            if name.startswith(("key_", "value_")):
                if not pairs:
                    arguments.append(pairs)
                pairs.append(value)
            else:
                arguments.append(value)
        return tuple(arguments)


def graphs(checkpoints: Checkpoints) -> tuple[Graph, ...]:
    """All graphs for networks of these sizes, in the order in which they run."""
    configs = checkpoints.networks
    width, cross = configs.unet.block_out_channels[0], configs.unet.cross_attention_dim
    projection = configs.projection
    hidden = checkpoints.wav2vec2_config["hidden_size"]
    pairs = keys_and_values(configs.unet)
    latent = (LATENT_CHANNELS, "h", "w")
    image = (3, "8*h", "8*w")

    def denoiser(name: str, halves: int) -> Graph:
        return Graph(
            name,
            "denoiser",
            lambda c: Denoiser.from_state_dict(
                c.networks.unet, c.networks.motion, c.denoising_unet, guided=halves == 2
            ),
            (
                Tensor("latents", ("B", "F", *latent)),
                Tensor("timestep", ("B",)),
                Tensor("tokens", ("B", "F", projection.queries, cross), typed=True),
                Tensor("kps_feature", ("B", "F", width, "h", "w"), typed=True),
                *pairs,
                Tensor("reference_weight", (1,)),
                Tensor("audio_weight", (1,)),
            ),
            (Tensor("prediction", ("B", halves, "F", *latent)),),
            {"B": 3, "F": 4, "h": 12, "w": 20},
            {"B": 2, "F": 3, "h": 6, "w": 10},
        )

    return (
        Graph(
            "audio_encoder",
            "audio_encoder",
            lambda c: AudioEncoder.from_state_dict(c.wav2vec2_config, c.wav2vec2),
            (Tensor("waveform", (1, "S")),),
            (Tensor("hidden", (1, audio_rows(checkpoints.wav2vec2_config), hidden)),),
            {"S": 3217},
            {"S": 6543},
        ),
        Graph(
            "audio_projection",
            "audio_projection",
            lambda c: AudioProjection.from_state_dict(c.networks.projection, c.audio_projection),
            (Tensor("windows", ("N", projection.max_seq_len, projection.embedding_dim)),),
            (Tensor("tokens", ("N", projection.queries, cross), typed=True),),
            {"N": 2},
            {"N": 3},
        ),
        Graph(
            "kps_guider",
            "kps_guider",
            lambda c: KpsGuider.from_state_dict(c.networks.guider, c.v_kps_guider),
            (Tensor("rgb", ("N", *image)),),
            (Tensor("feature", ("N", width, "h", "w"), typed=True),),
            {"N": 2, "h": 9, "w": 11},
            {"N": 3, "h": 5, "w": 7},
        ),
        Graph(
            "vae_encoder",
            "vae_encoder",
            lambda c: VaeEncoder.from_state_dict(c.vae_config, c.vae),
            (Tensor("image", (1, *image)),),
            (Tensor("latent", (1, *latent)),),
            {"h": 9, "w": 11},
            {"h": 5, "w": 7},
        ),
        Graph(
            "reference",
            "reference",
            lambda c: Reference.from_state_dicts(c.networks.unet, c.reference_net, c.denoising_unet),
            (Tensor("latent", (1, *latent)),),
            pairs,
            {"h": 12, "w": 20},
            # Not smaller: with two pixels left at the deepest level, a narrow network's groups there have two values
            # to normalise, which magnifies BF16's rounding beyond what a check can tell from an error.
            {"h": 10, "w": 14},
        ),
        denoiser("denoiser_guided", 2),
        denoiser("denoiser_single", 1),
        Graph(
            "vae_decoder",
            "vae_decoder",
            lambda c: VaeDecoder.from_state_dict(c.vae_config, c.vae),
            (Tensor("latents", ("N", *latent)),),
            (Tensor("image", ("N", *image)),),
            {"N": 3, "h": 9, "w": 11},
            {"N": 2, "h": 5, "w": 7},
        ),
    )


def traced_ranges(checkpoints: Checkpoints) -> dict[str, tuple[int | None, int | None]]:
    """{symbol: (smallest, largest size)} within which the modules are one and the same program for torch.

    Axes of one element (a row of audio, a frame, a pixel at the lowest resolution) would be traced apart, and the
    upsampler of diffusers takes another, equivalent path for 64 images or more. The graphs run outside of these ranges
    all the same, except that no window is longer than the motion modules' position tables.
    """
    reach, step = _reach_and_step(checkpoints.wav2vec2_config)
    deepest = len(checkpoints.networks.unet.block_out_channels) - 1
    return {
        "N": (None, 63),
        "F": (2, checkpoints.networks.motion.max_length),
        "S": (reach + step, None),
        "h": (2**deepest + 1, None),
        "w": (2**deepest + 1, None),
    }


def keys_and_values(config: UNetConfig) -> tuple[Tensor, ...]:
    """key_00, value_00, key_01, ... [1, heads, tokens, channels of a head], in the denoiser's execution order."""
    tensors: list[Tensor] = []
    stages = config.stages()
    deepest = len(config.block_out_channels) - 1
    for position, stage in enumerate(stages):
        # Blocks go down, once through the middle, and up again: the level mirrors around the middle.
        level = min(position, deepest, len(stages) - 1 - position)
        shape = (1, stage.heads, tokens_of_level(level), stage.channels // stage.heads)
        for _ in range(stage.attentions):
            number = len(tensors) // 2
            tensors += [Tensor(f"key_{number:02d}", shape, True), Tensor(f"value_{number:02d}", shape, True)]
    return tuple(tensors)


def tokens_of_level(level: int) -> str:
    """The number of pixels after `level` halvings, each rounded up, of an h x w latent."""
    if level == 0:
        return "h*w"
    factor = 2**level
    return f"((h + {factor - 1})//{factor})*((w + {factor - 1})//{factor})"


def audio_rows(config: Mapping[str, Any]) -> str:
    """The number of rows wav2vec 2.0's strided convolutions make of S samples (400 in, 320 apart for the base model).

    Each convolution takes n to (n - kernel) // stride + 1; such floors combine into one.
    """
    reach, step = _reach_and_step(config)
    difference = reach - step
    return f"(S - {difference})//{step}" if difference >= 0 else f"(S + {-difference})//{step}"


def _reach_and_step(config: Mapping[str, Any]) -> tuple[int, int]:
    """The samples that one row sees, and those from one row to the next."""
    strides = config["conv_stride"]
    reach = 1 + sum((kernel - 1) * prod(strides[:i]) for i, kernel in enumerate(config["conv_kernel"]))
    return reach, prod(strides)
