"""The description of a small model for bundles that tests make up."""

from vexpress_trt.engines.manifest import ModelConfig

SMALL_MODEL = ModelConfig(
    image_width=64,
    image_height=64,
    context_frames=12,
    max_context_frames=32,
    latent_channels=4,
    vae_scale_factor=8,
    latent_scaling=0.18215,
    feature_channels=32,
    cross_attention_dim=48,
    audio_hidden_dim=64,
    audio_window_rows=10,
    audio_tokens=5,
    audio_encoder_layers=2,
    audio_sample_rate=16000,
    attention_blocks=1,
)
