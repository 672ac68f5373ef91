"""What the networks look like: sizes read from a diffusers UNet configuration and from the shapes of the weights."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vexpress_trt.engines.errors import UserError

Shape = Sequence[int]

_DOWN_TYPES = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP_TYPES = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}

# Options of a diffusers UNet whose only supported value is the one of Stable Diffusion 1.5 (also meant when absent).
_FIXED_OPTIONS: dict[str, tuple] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "transformer_layers_per_block": (1,),
    "use_linear_projection": (False,),
}


@dataclass(frozen=True)
class Stage:
    """One block of a UNet: resnets in a row, the first `attentions` of them followed by a spatial transformer.

    `resnets` holds (input, output) channels of each; those of up blocks take a skip connection, which is counted in
    their input channels. `resample` says whether a down- or up-sampler ends the block.
    """

    kind: str  # "down", "mid" or "up"
    resnets: tuple[tuple[int, int], ...]
    heads: int
    attentions: int
    motions: int
    resample: bool

    @property
    def channels(self) -> int:
        """Channels of everything after the first resnet."""
        return self.resnets[0][1]


@dataclass(frozen=True)
class UNetConfig:
    """Sizes shared by the reference network and the denoising network (both have the layout of Stable Diffusion 1.5).

    `heads`, `down_attention` and `up_attention` have one entry per level, in the order of the configuration's
    `block_out_channels` (`up_attention`: in execution order of the up blocks).
    """

    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    heads: tuple[int, ...]
    cross_attention_dim: int
    norm_num_groups: int
    norm_eps: float
    down_attention: tuple[bool, ...]
    up_attention: tuple[bool, ...]

    @property
    def time_embedding_dim(self) -> int:
        return 4 * self.block_out_channels[0]

    @classmethod
    def from_json(cls, config: Mapping) -> "UNetConfig":
        """Reads the dictionary of a diffusers `unet/config.json`.

        Raises UserError naming the first option that this layout does not cover.
        """
        for option, accepted in _FIXED_OPTIONS.items():
            value = config.get(option, accepted[0])
            if value not in accepted:
                raise UserError(
                    f"UNet config: {option} = {value!r} is not supported, only {accepted[0]!r}; "
                    "use the unet/config.json of Stable Diffusion 1.5"
                )
        channels = tuple(_integer(c, "block_out_channels") for c in _required(config, "block_out_channels"))
        levels = len(channels)
        heads = config.get("num_attention_heads")
        if heads is None:
            heads = config.get("attention_head_dim", 8)  # the number of heads, in spite of its name
        layers = _required(config, "layers_per_block")
        if not isinstance(layers, int) and len(set(layers)) == 1:
            layers = layers[0]
        result = cls(
            in_channels=_integer(config.get("in_channels", 4), "in_channels"),
            out_channels=_integer(config.get("out_channels", 4), "out_channels"),
            block_out_channels=channels,
            layers_per_block=_integer(layers, "layers_per_block"),
            heads=(heads,) * levels if isinstance(heads, int) else tuple(heads),
            cross_attention_dim=_integer(_required(config, "cross_attention_dim"), "cross_attention_dim"),
            norm_num_groups=_integer(config.get("norm_num_groups", 32), "norm_num_groups"),
            norm_eps=float(config.get("norm_eps", 1e-5)),
            down_attention=_attention_flags(config, "down_block_types", _DOWN_TYPES),
            up_attention=_attention_flags(config, "up_block_types", _UP_TYPES),
        )
        result._validate()
        return result

    def to_diffusers(self) -> dict:
        """The same sizes as keyword arguments of `diffusers.UNet2DConditionModel`."""
        down = {flag: name for name, flag in _DOWN_TYPES.items()}
        up = {flag: name for name, flag in _UP_TYPES.items()}
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "block_out_channels": self.block_out_channels,
            "layers_per_block": self.layers_per_block,
            "attention_head_dim": self.heads,
            "cross_attention_dim": self.cross_attention_dim,
            "norm_num_groups": self.norm_num_groups,
            "norm_eps": self.norm_eps,
            "down_block_types": tuple(down[flag] for flag in self.down_attention),
            "up_block_types": tuple(up[flag] for flag in self.up_attention),
        }

    def stages(self) -> tuple[Stage, ...]:
        """All blocks in execution order: down, mid, up."""
        channels, layers, last = self.block_out_channels, self.layers_per_block, len(self.block_out_channels) - 1
        down, skips, width = [], [channels[0]], channels[0]
        for level, out in enumerate(channels):
            resnets = ((width, out),) + ((out, out),) * (layers - 1)
            attentions = layers if self.down_attention[level] else 0
            down.append(Stage("down", resnets, self.heads[level], attentions, layers, level < last))
            skips += [out] * (layers + (level < last))
            width = out
        mid = Stage("mid", ((width, width),) * 2, self.heads[-1], 1, 1, False)
        up = []
        for index, out in enumerate(reversed(channels)):
            inputs = [width] + [out] * layers
            resnets = tuple((size + skips.pop(), out) for size in inputs)
            attentions = layers + 1 if self.up_attention[index] else 0
            up.append(Stage("up", resnets, self.heads[last - index], attentions, layers + 1, index < last))
            width = out
        return (*down, mid, *up)

    def _validate(self) -> None:
        levels = len(self.block_out_channels)
        for name in ("heads", "down_attention", "up_attention"):
            if len(getattr(self, name)) != levels:
                raise UserError(
                    f"UNet config: {levels} block_out_channels but {len(getattr(self, name))} entries for {name}; "
                    "give one per level"
                )
        for width, heads in zip(self.block_out_channels, self.heads, strict=True):
            if not isinstance(heads, int) or heads < 1 or width % heads or width % self.norm_num_groups or width % 2:
                raise UserError(
                    f"UNet config: {width} channels cannot be divided into {heads!r} heads and "
                    f"{self.norm_num_groups} norm groups; use multiples of both"
                )


def up_to_last_attention(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The part of a UNet that runs up to and including its last spatial transformer."""
    last = max(index for index, stage in enumerate(stages) if stage.attentions)
    final = stages[last]
    return (*stages[:last], replace(final, resnets=final.resnets[: final.attentions], resample=False))


@dataclass(frozen=True)
class MotionConfig:
    """Temporal transformers of the denoising network. `max_length` is the longest window in frames."""

    max_length: int = 32
    heads: int = 8
    attention_blocks: int = 2
    norm_num_groups: int = 32

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Shape]) -> "MotionConfig":
        """Reads the sizes off {key: shape} of the motion module's weights; UserError if they are something else."""
        tables = [shape for key, shape in shapes.items() if key.endswith(".pos_encoder.pe")]
        if not tables or len(tables[0]) != 3:
            raise UserError(
                "motion module: no position tables (…pos_encoder.pe); is this a V-Express motion_module.bin?"
            )
        blocks = {int(match[1]) for key in shapes if (match := re.search(r"\.attention_blocks\.(\d+)\.", key))}
        return cls(max_length=int(tables[0][1]), attention_blocks=len(blocks))


@dataclass(frozen=True)
class GuiderConfig:
    """The key-point guider: channels of its (same-size, stride-2) convolution pairs and of its output."""

    in_channels: int = 3
    block_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    out_channels: int = 320

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Shape]) -> "GuiderConfig":
        """Reads the sizes off {key: shape} of the guider's weights; UserError if they are something else."""
        part = "kps guider"
        first, last = _shape(shapes, "conv_in.weight", part), _shape(shapes, "conv_out.weight", part)
        pairs = sum(re.fullmatch(r"blocks\.\d+\.weight", key) is not None for key in shapes) // 2
        if not pairs:
            raise UserError(f"{part}: blocks.0.weight is missing; is this the V-Express checkpoint of that part?")
        widths = [_shape(shapes, f"blocks.{2 * pair + 1}.weight", part)[0] for pair in range(pairs)]
        return cls(int(first[1]), (int(first[0]), *map(int, widths)), int(last[0]))


@dataclass(frozen=True)
class ProjectionConfig:
    """The audio projection (a perceiver resampler): windows of `max_seq_len` audio rows to `queries` tokens."""

    dim: int = 768
    depth: int = 4
    dim_head: int = 64
    heads: int = 12
    queries: int = 5
    embedding_dim: int = 768
    output_dim: int = 768
    ff_mult: int = 4
    max_seq_len: int = 10

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Shape], *, dim_head: int = 64) -> "ProjectionConfig":
        """Reads the sizes off {key: shape} of the projection's weights.

        The width of a head is not visible in the weights: V-Express uses 64. Raises UserError if the shapes are
        something else.
        """
        part = "audio projection"
        _, queries, dim = _shape(shapes, "latents", part)
        inner, _ = _shape(shapes, "layers.0.0.to_q.weight", part)
        if inner % dim_head:
            raise UserError(
                f"{part}: attention width {inner} is not a multiple of {dim_head}; only such heads are known"
            )
        rows, embedding_dim = _shape(shapes, "pos_emb.weight", part)
        return cls(
            dim=int(dim),
            depth=len({key.split(".")[1] for key in shapes if key.startswith("layers.")}),
            dim_head=dim_head,
            heads=int(inner) // dim_head,
            queries=int(queries),
            embedding_dim=int(embedding_dim),
            output_dim=int(_shape(shapes, "proj_out.weight", part)[0]),
            ff_mult=int(_shape(shapes, "layers.0.1.1.weight", part)[0]) // int(dim),
            max_seq_len=int(rows),
        )


@dataclass(frozen=True)
class NetworkConfigs:
    """All of V-Express's own networks."""

    unet: UNetConfig
    motion: MotionConfig
    guider: GuiderConfig
    projection: ProjectionConfig

    @classmethod
    def from_parts(cls, unet_json: Mapping, shapes: Mapping[str, Mapping[str, Shape]]) -> "NetworkConfigs":
        """From `unet/config.json` and {part: {key: shape}} of motion_module, v_kps_guider and audio_projection."""
        configs = cls(
            UNetConfig.from_json(unet_json),
            MotionConfig.from_shapes(shapes["motion_module"]),
            GuiderConfig.from_shapes(shapes["v_kps_guider"]),
            ProjectionConfig.from_shapes(shapes["audio_projection"]),
        )
        for width in configs.unet.block_out_channels:
            if width % configs.motion.heads or width % configs.motion.norm_num_groups:
                raise UserError(
                    f"UNet config: {width} channels cannot be divided into the motion module's "
                    f"{configs.motion.heads} heads and {configs.motion.norm_num_groups} norm groups; "
                    "use multiples of both"
                )
        if configs.guider.out_channels != configs.unet.block_out_channels[0]:
            raise UserError(
                f"kps guider: its {configs.guider.out_channels} output channels do not match the UNet's first "
                f"{configs.unet.block_out_channels[0]}; take both from the same model"
            )
        if configs.projection.output_dim != configs.unet.cross_attention_dim:
            raise UserError(
                f"audio projection: its {configs.projection.output_dim} output channels do not match the UNet's "
                f"cross_attention_dim {configs.unet.cross_attention_dim}; take both from the same model"
            )
        return configs


def _required(config: Mapping, option: str):
    if option not in config:
        raise UserError(f"UNet config: {option} is missing; use the unet/config.json of the checkpoint")
    return config[option]


def _integer(value, option: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"UNet config: {option} = {value!r} is not supported; give one positive whole number")
    return value


def _attention_flags(config: Mapping, option: str, known: Mapping[str, bool]) -> tuple[bool, ...]:
    names = _required(config, option)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"UNet config: {option} contains {unknown[0]!r}; only {' and '.join(known)} are supported")
    return tuple(known[name] for name in names)


def _shape(shapes: Mapping[str, Shape], key: str, part: str) -> Shape:
    if key not in shapes:
        raise UserError(f"{part}: {key} is missing; is this the V-Express checkpoint of that part?")
    return shapes[key]
