"""Networks taken from libraries: the audio encoder (transformers) and the image autoencoder (diffusers)."""

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import Wav2Vec2Config, Wav2Vec2Model

from vexpress_trt.engines.errors import UserError
from vexpress_trt.export.nets.state import materialise, module_shapes

_POSITION_CONV = "encoder.pos_conv_embed.conv"
_WEIGHT_NORM_NAMES = (
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ("weight_g", "weight_v"),
)


class AudioEncoder(nn.Module):
    """wav2vec 2.0 without attention mask; the positional convolution has a plain weight in place of a normed one.

    In the base model the first convolution's output is normalised by its mean and variance over the whole clip. They
    follow from the mean m and the covariance C of the windows of samples that this convolution sees: w m + b and
    w C w^T for a filter w. Given as m and a factor R with R^T R = C, they let a part of a clip be encoded as it is
    within the whole.
    """

    def __init__(self, config: Mapping):
        super().__init__()
        self.model = _audio_model(config)
        self.norm_last = self.model.config.do_stable_layer_norm
        parametrize.remove_parametrizations(self.model.encoder.pos_conv_embed.conv, "weight")

    def forward(
        self, waveform: Tensor, window_mean: Tensor | None = None, window_factor: Tensor | None = None
    ) -> Tensor:
        """waveform: [1, S] float32 of zero mean and unit variance -> last hidden state [1, T, D] float32.

        window_mean: [K] float32 and window_factor: [K, K] float32 for K samples in the first convolution's kernel; left
        out, the waveform is the whole clip.
        """
        model, encoder = self.model, self.model.encoder
        features = waveform.to(encoder.layer_norm.weight.dtype)[:, None]
        first, *others = model.feature_extractor.conv_layers
        if window_mean is None or window_factor is None:
            features = first(features)
        else:
            features = first.activation(_normalised(first, features, window_mean, window_factor))
        for layer in others:
            features = layer(features)
        features = features.transpose(1, 2)
        hidden, _ = model.feature_projection(features)
        hidden = hidden + encoder.pos_conv_embed(hidden)
        hidden = hidden if self.norm_last else encoder.layer_norm(hidden)
        # The layers are called one by one because the library's loop adds a mask of ones when it is traced.
        for layer in encoder.layers:
            hidden = layer(hidden, attention_mask=None)
        return (encoder.layer_norm(hidden) if self.norm_last else hidden).float()

    @classmethod
    def from_state_dict(cls, config: Mapping, state: Mapping[str, Tensor]) -> "AudioEncoder":
        """From the dictionary of `config.json` and weights without the prefix `wav2vec2.`, weight norm not folded."""
        state = fold_weight_norm(state)
        return materialise(lambda: cls(config), {f"model.{key}": tensor for key, tensor in state.items()})


def _normalised(layer: nn.Module, waveform: Tensor, window_mean: Tensor, window_factor: Tensor) -> Tensor:
    """The first convolution's output under a group norm of one channel per group: [1, 1, S] -> [1, C, T].

    Statistics stay in float32: the variance of a filter that cancels most of the sound is small against its terms.
    """
    norm, filters = layer.layer_norm, layer.conv.weight[:, 0].float()
    mean = filters @ window_mean
    if layer.conv.bias is not None:
        mean = mean + layer.conv.bias.float()
    variance = (filters @ window_factor.T).square().sum(dim=1)
    scale = norm.weight.float() * torch.rsqrt(variance + norm.eps)
    shift = norm.bias.float() - mean * scale
    hidden = layer.conv(waveform)
    return hidden * scale[:, None].to(hidden.dtype) + shift[:, None].to(hidden.dtype)


class VaeEncoder(nn.Module):
    """Image to the mean of its latent distribution."""

    def __init__(self, config: Mapping):
        super().__init__()
        vae = _autoencoder(config)
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, image: Tensor) -> Tensor:
        """image: [N, 3, 8h, 8w] float32 in [-1, 1] -> latent mean [N, 4, h, w] float32, not scaled."""
        moments = self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype)))
        return moments.chunk(2, dim=1)[0].float()

    @classmethod
    def from_state_dict(cls, config: Mapping, state: Mapping[str, Tensor]) -> "VaeEncoder":
        """From the dictionary of `config.json` and the weights under diffusers' present attention names (to_q, ...)."""
        return materialise(lambda: cls(config), state)


class VaeDecoder(nn.Module):
    """Latent to image, without any scaling on either side."""

    def __init__(self, config: Mapping):
        super().__init__()
        vae = _autoencoder(config)
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latents: Tensor) -> Tensor:
        """latents: [N, 4, h, w] float32, not scaled -> image [N, 3, 8h, 8w] float32, nominally in [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents.to(self.post_quant_conv.weight.dtype))).float()

    @classmethod
    def from_state_dict(cls, config: Mapping, state: Mapping[str, Tensor]) -> "VaeDecoder":
        """From the dictionary of `config.json` and the weights under diffusers' present attention names (to_q, ...)."""
        return materialise(lambda: cls(config), state)


def vae_shapes(config: Mapping) -> dict[str, tuple[int, ...]]:
    """{key: shape} of an autoencoder's weights under diffusers' present attention names."""
    return module_shapes(lambda: _autoencoder(config))


def audio_encoder_shapes(config: Mapping) -> dict[str, tuple[int, ...]]:
    """{key: shape} of the audio encoder's weights, without prefix and with the weight norm in its present names.

    Checkpoints may hold `masked_spec_embed` and heads such as `lm_head.*` besides, which do not act.
    """
    return module_shapes(lambda: _audio_model(config))


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replaces scale and direction of the positional convolution by their product, a plain weight.

    The direction is normed per tap, over both channel axes (golden README, section 1). The state's own tensors are
    not changed; a state without weight norm is returned as it is.
    """
    state = dict(state)
    for scale_name, direction_name in _WEIGHT_NORM_NAMES:
        scale = state.pop(f"{_POSITION_CONV}.{scale_name}", None)
        direction = state.pop(f"{_POSITION_CONV}.{direction_name}", None)
        if scale is not None and direction is not None:
            norm = torch.linalg.vector_norm(direction.float(), dim=(0, 1), keepdim=True)
            state[f"{_POSITION_CONV}.weight"] = (direction.float() * (scale.float() / norm)).to(direction.dtype)
    return state


def _autoencoder(config: Mapping) -> AutoencoderKL:
    return AutoencoderKL.from_config(dict(config))


def _audio_model(config: Mapping) -> Wav2Vec2Model:
    # Without masking in training the model has no masked_spec_embed, which never acts here.
    if config.get("add_adapter"):
        raise UserError("audio encoder: add_adapter is not supported; use wav2vec2-base-960h")
    options = {**config, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "attn_implementation": "sdpa"}
    return Wav2Vec2Model(Wav2Vec2Config.from_dict(options))
