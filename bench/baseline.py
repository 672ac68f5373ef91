"""The baseline: the original's order of work, in eager PyTorch and float32.

Every step goes over all windows of the clip; each window projects the reference for all of its frames in both halves
and computes both halves whole; frames are decoded one by one when the last step is done, then the whole clip is median
filtered and written. Attention is PyTorch's fused one, which diffusers takes by default; tensors are contiguous.
Nothing is left out that the original computes and nothing is added: a denoiser call has its FLOPs, and the numbers are
the original's. The tests use this as an independent second way to them, with the scheduler of diffusers.

The speech is encoded whole and the key points go through the guider 16 frames at a time, as in the original. Only the
video is written differently: once, by our own writer, where the original encodes it twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from vexpress_trt.engines.manifest import ModelConfig
from vexpress_trt.export.checkpoints import load_checkpoints
from vexpress_trt.export.nets.audio_projection import AudioProjection
from vexpress_trt.export.nets.guider import KpsGuider
from vexpress_trt.export.nets.library import AudioEncoder, VaeDecoder, VaeEncoder
from vexpress_trt.export.nets.plain import PlainDenoiser
from vexpress_trt.export.nets.reference import ReferenceNet
from vexpress_trt.runtime.clip import Clip
from vexpress_trt.runtime.keypoints import draw_keypoints
from vexpress_trt.runtime.noise import upstream_noise
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.runtime.summary import Stopwatch

LATENT_SCALING = 0.18215
GUIDER_FRAMES = 16
_VARIANCE_EPSILON = 1e-7  # of wav2vec2's feature extractor


@dataclass(frozen=True, eq=False)
class BaselineInputs:
    """What the networks are given: image float32 [1, 3, H, W] in [-1, 1], waveform float32 [S] normalised, guide
    images uint8 RGB [L, H, W, 3], noise float32 [L, 4, h, w], and windows as (first frame, frame behind the last)."""

    image: np.ndarray
    waveform: np.ndarray
    guides: np.ndarray
    noise: np.ndarray
    windows: list[tuple[int, int]]

    @classmethod
    def of(cls, request: GenerationRequest, clip: Clip, model: ModelConfig) -> "BaselineInputs":
        """Those that `generate` makes of the same request with `--compat upstream`."""
        size = (model.latent_channels, clip.height // model.vae_scale_factor, clip.width // model.vae_scale_factor)
        noise = upstream_noise(request.seed, model.audio_encoder_layers, clip.plan.frames, size)
        return cls(
            image=clip.image,
            waveform=normalised(clip.audio.waveform.read()),
            guides=np.stack([draw_keypoints(points, clip.width, clip.height) for points in clip.points]),
            noise=np.ascontiguousarray(noise),
            windows=[clip.plan.span(window) for window in range(clip.plan.windows)],
        )


@dataclass(frozen=True)
class Sampling:
    """Settings of the denoising loop; a guidance of 1 or less runs the conditional half only."""

    steps: int
    guidance: float
    reference_weight: float
    audio_weight: float

    @classmethod
    def of(cls, request: GenerationRequest) -> "Sampling":
        return cls(
            request.num_inference_steps,
            request.guidance_scale,
            request.reference_attention_weight,
            request.audio_attention_weight,
        )


class Baseline:
    """All networks in memory, as the original holds them; `watch` gets the seconds of each stage."""

    def __init__(self, checkpoints: Path, *, guided: bool, watch: Stopwatch | None = None) -> None:
        """Raises UserError for a checkpoints folder that cannot be used."""
        self.watch = watch or Stopwatch()
        with self.watch.stage("load"):
            loaded = load_checkpoints(checkpoints, hash_files=False)
            own = loaded.networks
            self.vae_encoder = _ready(VaeEncoder.from_state_dict(loaded.vae_config, loaded.vae))
            self.vae_decoder = _ready(VaeDecoder.from_state_dict(loaded.vae_config, loaded.vae))
            self.reference = _ready(ReferenceNet.from_state_dict(own.unet, loaded.reference_net))
            self.audio_encoder = _ready(AudioEncoder.from_state_dict(loaded.wav2vec2_config, loaded.wav2vec2))
            self.projection = _ready(AudioProjection.from_state_dict(own.projection, loaded.audio_projection))
            self.guider = _ready(KpsGuider.from_state_dict(own.guider, loaded.v_kps_guider))
            denoiser = PlainDenoiser.from_state_dict(own.unet, own.motion, loaded.denoising_unet, guided=guided)
            self.denoiser = _ready(denoiser)

    @torch.inference_mode()
    def latents(self, inputs: BaselineInputs, sampling: Sampling, on_step: Callable[[], None] = lambda: None) -> Tensor:
        """Final latents float32 [L, 4, h, w]; `on_step` is called after each step over the whole clip."""
        frames = len(inputs.noise)
        with self.watch.stage("portrait"):
            portrait = self.vae_encoder(torch.from_numpy(inputs.image)) * LATENT_SCALING
        with self.watch.stage("key points"):
            features = self._key_point_features(inputs.guides)
        with self.watch.stage("speech"):
            tokens = self._audio_tokens(inputs.waveform, frames)
        with self.watch.stage("portrait"):
            taps = self.reference(portrait)
        with self.watch.stage("denoise"):
            return self._denoise(inputs, sampling, features, tokens, taps, on_step)

    @torch.inference_mode()
    def images(self, latents: Tensor) -> Tensor:
        """Images float32 [L, 3, H, W] in [0, 1] of final latents, decoded one by one and kept as a whole clip."""
        with self.watch.stage("decode"):
            decoded = [self.vae_decoder(latent[None] / LATENT_SCALING) for latent in latents]
            return torch.cat([(image / 2 + 0.5).clamp(0, 1) for image in decoded])

    def finished(self, images: Tensor) -> np.ndarray:
        """Frames uint8 RGB [L, H, W, 3]: truncated to bytes and median filtered over time, rows and columns."""
        from scipy.ndimage import median_filter

        with self.watch.stage("median"):
            clip = (images.permute(0, 2, 3, 1) * 255).numpy().astype(np.uint8)
            return median_filter(clip, size=(3, 3, 3, 1), mode="mirror")

    def _key_point_features(self, guides: np.ndarray) -> Tensor:
        """Features [L, C0, h, w] of guide images uint8 [L, H, W, 3]."""
        rgb = torch.from_numpy(guides).permute(0, 3, 1, 2)
        return torch.cat([self.guider(part.float() / 255) for part in rgb.split(GUIDER_FRAMES)])

    def _audio_tokens(self, waveform: np.ndarray, frames: int) -> Tensor:
        """Tokens [L, 5, C]: hidden states stretched to two rows a frame, ten of them around each frame."""
        hidden = self.audio_encoder(torch.from_numpy(waveform)[None])
        rows = F.interpolate(hidden.transpose(1, 2), size=2 * frames, mode="linear")[0].T
        rows = F.pad(rows, (0, 0, 4, 4))
        return self.projection(torch.stack([rows[2 * frame : 2 * frame + 10] for frame in range(frames)]))

    def _denoise(
        self,
        inputs: BaselineInputs,
        sampling: Sampling,
        features: Tensor,
        tokens: Tensor,
        taps: list[Tensor],
        on_step: Callable[[], None],
    ) -> Tensor:
        scheduler = original_scheduler(sampling.steps)
        weights = torch.tensor([sampling.reference_weight]), torch.tensor([sampling.audio_weight])
        latents = torch.from_numpy(inputs.noise)
        shares = torch.zeros(len(latents), 1, 1, 1)
        for start, stop in inputs.windows:
            shares[start:stop] += 1
        for timestep in scheduler.timesteps:
            mean = torch.zeros_like(latents)
            for start, stop in inputs.windows:
                part = slice(start, stop)
                prediction = self.denoiser(
                    latents[part][None],
                    timestep[None].float(),
                    tokens[part][None],
                    features[part][None],
                    taps,
                    *weights,
                )[0]
                mean[part] += _guided(prediction, sampling.guidance) / shares[part]
            latents = scheduler.step(mean, timestep, latents).prev_sample
            on_step()
        return latents


def original_scheduler(steps: int) -> DDIMScheduler:
    """The original's sampler (golden README, section 4, "Scheduler"), from the library it takes it from."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def normalised(samples: np.ndarray) -> np.ndarray:
    """Samples [S] with zero mean and unit variance over the whole clip, float32, as wav2vec2's feature extractor."""
    return ((samples - samples.mean()) / np.sqrt(samples.var() + _VARIANCE_EPSILON)).astype(np.float32)


def _guided(prediction: Tensor, guidance: float) -> Tensor:
    """[2 or 1, F, 4, h, w] -> [F, 4, h, w]."""
    if len(prediction) == 1:
        return prediction[0]
    return prediction[0] + guidance * (prediction[1] - prediction[0])


def _ready(module: nn.Module) -> nn.Module:
    return module.float().eval()
