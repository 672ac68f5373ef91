"""The graphs of a bundle: which module each is made from, and the names, dtypes and shapes of its tensors."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vexpress_trt.engines.audio_geometry import AudioGeometry
from vexpress_trt.engines.manifest import PRECISION_DTYPE, DType, GraphSpec, TensorSpec, is_reference_tensor
from vexpress_trt.engines.precision import Precision
from vexpress_trt.export.checkpoints import Checkpoints
from vexpress_trt.export.graph_shapes import Shape, audio_rows, key_value_shapes, tap_shapes
from vexpress_trt.export.nets.audio_projection import AudioProjection
from vexpress_trt.export.nets.configs import UNetConfig
from vexpress_trt.export.nets.denoiser import Denoiser
from vexpress_trt.export.nets.guider import KpsGuider
from vexpress_trt.export.nets.library import AudioEncoder, VaeDecoder, VaeEncoder
from vexpress_trt.export.nets.plain import PlainDenoiser
from vexpress_trt.export.nets.reference import Reference, ReferenceNet

LATENT_CHANNELS = 4


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
        """Arguments of the module's `forward` from one value per input: the reference's go in as one sequence."""
        named = dict(zip((tensor.name for tensor in self.inputs), values, strict=True))
        arguments: list[Any] = []
        reference: list[Any] = []
        for name, value in named.items():
            if is_reference_tensor(name):
                if not reference:
                    arguments.append(reference)
                reference.append(value)
            else:
                arguments.append(value)
        return tuple(arguments)


def graphs(checkpoints: Checkpoints, *, plain: bool = False) -> tuple[Graph, ...]:
    """All graphs for networks of these sizes, in the order in which they run.

    `plain` gives those without savings under the same names: the reference's taps in place of keys and values, which
    the denoiser projects for every frame of every call, and both of its halves computed whole.
    """
    configs = checkpoints.networks
    width, cross = configs.unet.block_out_channels[0], configs.unet.cross_attention_dim
    projection = configs.projection
    hidden = checkpoints.wav2vec2_config["hidden_size"]
    reference = taps(configs.unet) if plain else keys_and_values(configs.unet)
    samples = sample_statistics(checkpoints.wav2vec2_config)
    latent = (LATENT_CHANNELS, "h", "w")
    image = (3, "8*h", "8*w")

    def reference_module(c: Checkpoints) -> nn.Module:
        if plain:
            return ReferenceNet.from_state_dict(c.networks.unet, c.reference_net)
        return Reference.from_state_dicts(c.networks.unet, c.reference_net, c.denoising_unet)

    def denoiser(name: str, halves: int) -> Graph:
        return Graph(
            name,
            "denoiser",
            lambda c: (PlainDenoiser if plain else Denoiser).from_state_dict(
                c.networks.unet, c.networks.motion, c.denoising_unet, guided=halves == 2
            ),
            (
                Tensor("latents", ("B", "F", *latent)),
                Tensor("timestep", ("B",)),
                Tensor("tokens", ("B", "F", projection.queries, cross), typed=True),
                Tensor("kps_feature", ("B", "F", width, "h", "w"), typed=True),
                *reference,
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
            (Tensor("waveform", (1, "S")), *samples),
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
            reference_module,
            (Tensor("latent", (1, *latent)),),
            reference,
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
    audio = AudioGeometry.of(checkpoints.wav2vec2_config)
    deepest = len(checkpoints.networks.unet.block_out_channels) - 1
    return {
        "N": (None, 63),
        "F": (2, checkpoints.networks.motion.max_length),
        "S": (audio.reach + audio.step, None),
        "h": (2**deepest + 1, None),
        "w": (2**deepest + 1, None),
    }


def keys_and_values(config: UNetConfig) -> tuple[Tensor, ...]:
    """key_00, value_00, key_01, ... in the denoiser's execution order."""
    return tuple(
        Tensor(f"{kind}_{number:02d}", shape, typed=True)
        for number, shape in enumerate(key_value_shapes(config))
        for kind in ("key", "value")
    )


def taps(config: UNetConfig) -> tuple[Tensor, ...]:
    """tap_00, tap_01, ... in the denoiser's execution order."""
    return tuple(Tensor(f"tap_{number:02d}", shape, typed=True) for number, shape in enumerate(tap_shapes(config)))


def sample_statistics(config: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The inputs of the audio encoder that describe the whole clip, see `AudioEncoder`; none where it needs none."""
    if config.get("feat_extract_norm", "group") != "group":
        return ()
    kernel = AudioGeometry.of(config).kernel
    return Tensor("window_mean", (kernel,)), Tensor("window_factor", (kernel, kernel))
