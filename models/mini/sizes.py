"""Sizes of the small model's networks, in the terms in which checkpoints are described."""

from vexpress_trt.export.random_model import RandomModel

# Widths are multiples of 32 because of the motion modules' 32 groups; spatial heads are 32 to 48 wide. The audio
# projection's heads are 64 wide by definition.
MINI = RandomModel(
    block_out_channels=(64, 96, 64, 64),
    layers_per_block=1,
    heads=2,
    cross_attention_dim=64,
    attention=(True, True, False, False),
    max_context_frames=32,
    guider_channels=(16, 24, 32, 48),
    projection_dim=64,
    projection_depth=2,
    projection_heads=1,
    vae_channels=(16, 32, 64, 64),
    vae_layers=1,
    vae_groups=8,
    audio_channels=32,
    audio_hidden=64,
    audio_layers=2,
    audio_heads=4,
    audio_feed_forward=128,
)
LATENT_SCALE = 0.18215
