"""Sizes of a V-Express model that is made up rather than loaded, and its configuration files."""

from dataclasses import dataclass
from typing import Any

from vexpress_trt.export.nets.configs import GuiderConfig, MotionConfig, NetworkConfigs, ProjectionConfig, UNetConfig


@dataclass(frozen=True)
class RandomModel:
    """Sizes of all six networks; the defaults are the official ones.

    `attention` says for each level of the UNets whether it has transformers (None: all but the last, as the official
    model). `projection_heads` are 64 wide. `audio_channels` is the width of the audio encoder's convolutions.
    """

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    heads: int = 8
    cross_attention_dim: int = 768
    attention: tuple[bool, ...] | None = None
    unet_groups: int = 32
    max_context_frames: int = 32
    guider_channels: tuple[int, ...] = (16, 32, 96, 256)
    projection_dim: int = 768
    projection_depth: int = 4
    projection_heads: int = 12
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    vae_groups: int = 32
    audio_channels: int = 512
    audio_hidden: int = 768
    audio_layers: int = 12
    audio_heads: int = 12
    audio_feed_forward: int = 3072

    def networks(self) -> NetworkConfigs:
        """V-Express's own networks. Raises UserError for widths that do not divide into heads and groups."""
        return NetworkConfigs(
            UNetConfig.from_json(self.unet_json()),
            MotionConfig(max_length=self.max_context_frames),
            GuiderConfig(block_out_channels=self.guider_channels, out_channels=self.block_out_channels[0]),
            ProjectionConfig(
                dim=self.projection_dim,
                depth=self.projection_depth,
                heads=self.projection_heads,
                embedding_dim=self.audio_hidden,
                output_dim=self.cross_attention_dim,
            ),
        )

    def unet_json(self) -> dict[str, Any]:
        """`stable-diffusion-v1-5/unet/config.json` as Stable Diffusion 1.5 has it."""
        attention = self.attention or (True,) * (len(self.block_out_channels) - 1) + (False,)
        return {
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.6.0",
            "act_fn": "silu",
            "attention_head_dim": self.heads,  # the number of heads, in spite of its name
            "block_out_channels": list(self.block_out_channels),
            "center_input_sample": False,
            "cross_attention_dim": self.cross_attention_dim,
            "down_block_types": ["CrossAttnDownBlock2D" if there else "DownBlock2D" for there in attention],
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "in_channels": 4,
            "layers_per_block": self.layers_per_block,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-05,
            "norm_num_groups": self.unet_groups,
            "out_channels": 4,
            "sample_size": 64,
            "up_block_types": ["CrossAttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attention)],
        }

    def vae_json(self) -> dict[str, Any]:
        """`sd-vae-ft-mse/config.json`."""
        levels = len(self.vae_channels)
        return {
            "_class_name": "AutoencoderKL",
            "_diffusers_version": "0.4.2",
            "act_fn": "silu",
            "block_out_channels": list(self.vae_channels),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": self.vae_layers,
            "norm_num_groups": self.vae_groups,
            "out_channels": 3,
            "sample_size": 256,
            "scaling_factor": 0.18215,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        }

    def audio_json(self) -> dict[str, Any]:
        """`wav2vec2-base-960h/config.json`."""
        return {
            "activation_dropout": 0.1,
            "architectures": ["Wav2Vec2ForCTC"],
            "attention_dropout": 0.1,
            "conv_bias": False,
            "conv_dim": [self.audio_channels] * 7,
            "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
            "conv_stride": [5, 2, 2, 2, 2, 2, 2],
            "do_stable_layer_norm": False,
            "feat_extract_activation": "gelu",
            "feat_extract_norm": "group",
            "feat_proj_dropout": 0.1,
            "final_dropout": 0.1,
            "hidden_act": "gelu",
            "hidden_dropout": 0.1,
            "hidden_size": self.audio_hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.audio_feed_forward,
            "layer_norm_eps": 1e-05,
            "layerdrop": 0.1,
            "mask_time_length": 10,
            "mask_time_prob": 0.05,
            "model_type": "wav2vec2",
            "num_attention_heads": self.audio_heads,
            "num_conv_pos_embedding_groups": 16,
            "num_conv_pos_embeddings": 128,
            "num_feat_extract_layers": 7,
            "num_hidden_layers": self.audio_layers,
            "vocab_size": 32,
        }

    @staticmethod
    def preprocessor_json() -> dict[str, Any]:
        """`wav2vec2-base-960h/preprocessor_config.json`."""
        return {
            "do_normalize": True,
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "sampling_rate": 16000,
        }


TINY = RandomModel(
    block_out_channels=(32, 32, 32, 64),
    cross_attention_dim=48,
    projection_dim=48,
    vae_channels=(16, 16, 32, 32),
    vae_groups=16,
    audio_channels=32,
    audio_hidden=64,
    audio_layers=2,
    audio_heads=4,
    audio_feed_forward=128,
)
MID = RandomModel(block_out_channels=(128, 256, 512, 512), vae_channels=(64, 128, 256, 256))
HALF = RandomModel(block_out_channels=(160, 320, 640, 640), vae_channels=(64, 128, 256, 256))
FULL = RandomModel()

RANDOM_MODELS: dict[str, RandomModel] = {"tiny": TINY, "mid": MID, "half": HALF, "full": FULL}
