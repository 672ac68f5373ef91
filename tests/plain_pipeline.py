"""The whole of V-Express as upstream runs it, in plain PyTorch: no savings, step by step, with diffusers' scheduler.

An independent second way to the same numbers, for sizes that no golden array has.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler

from vexpress_trt.export.checkpoints import load_checkpoints
from vexpress_trt.export.nets.audio_projection import AudioProjection
from vexpress_trt.export.nets.guider import KpsGuider
from vexpress_trt.export.nets.library import AudioEncoder, VaeDecoder, VaeEncoder
from vexpress_trt.export.nets.plain import PlainDenoiser
from vexpress_trt.export.nets.reference import ReferenceNet


@dataclass(frozen=True, eq=False)
class PlainInputs:
    """What the networks are given: image [1, 3, H, W] in [-1, 1], waveform [S] normalised, guide images uint8
    [L, H, W, 3], noise [L, 4, h, w], and windows as (start, stop)."""

    image: np.ndarray
    waveform: np.ndarray
    guides: np.ndarray
    noise: np.ndarray
    windows: list[tuple[int, int]]


@torch.inference_mode()
def run(
    checkpoints: Path, inputs: PlainInputs, steps: int, guidance: float, reference_weight: float, audio_weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Final latents [L, 4, h, w] and images [L, H, W, 3] in [0, 1], with audio stretched over the clip as upstream."""
    loaded = load_checkpoints(checkpoints, hash_files=False)
    own = loaded.networks

    def ready(module: torch.nn.Module) -> torch.nn.Module:
        return module.float().eval()

    frames = len(inputs.noise)
    latent = ready(VaeEncoder.from_state_dict(loaded.vae_config, loaded.vae))(torch.from_numpy(inputs.image)) * 0.18215
    taps = ready(ReferenceNet.from_state_dict(own.unet, loaded.reference_net))(latent)
    encoder = ready(AudioEncoder.from_state_dict(loaded.wav2vec2_config, loaded.wav2vec2))
    hidden = encoder(torch.from_numpy(inputs.waveform)[None])
    rows = torch.nn.functional.interpolate(hidden.transpose(1, 2), size=2 * frames, mode="linear")[0].T
    rows = torch.cat([torch.zeros(4, rows.shape[1]), rows, torch.zeros(4, rows.shape[1])])
    windows = torch.stack([rows[2 * frame : 2 * frame + 10] for frame in range(frames)])
    tokens = ready(AudioProjection.from_state_dict(own.projection, loaded.audio_projection))(windows)
    rgb = torch.from_numpy(inputs.guides).permute(0, 3, 1, 2).float() / 255
    features = ready(KpsGuider.from_state_dict(own.guider, loaded.v_kps_guider))(rgb)

    denoiser = ready(PlainDenoiser.from_state_dict(own.unet, own.motion, loaded.denoising_unet, guided=guidance > 1))
    weights = torch.tensor([reference_weight]), torch.tensor([audio_weight])
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    latents = torch.from_numpy(inputs.noise)
    count = torch.zeros(frames, 1, 1, 1)
    for start, stop in inputs.windows:
        count[start:stop] += 1
    for timestep in scheduler.timesteps:
        mean = torch.zeros_like(latents)
        for start, stop in inputs.windows:
            part = slice(start, stop)
            prediction = denoiser(
                latents[part][None], timestep[None].float(), tokens[part][None], features[part][None], taps, *weights
            )[0]
            guided = prediction[0] + guidance * (prediction[1] - prediction[0]) if guidance > 1 else prediction[0]
            mean[part] += guided / count[part]
        latents = scheduler.step(mean, timestep, latents).prev_sample
    decoder = ready(VaeDecoder.from_state_dict(loaded.vae_config, loaded.vae))
    images = torch.cat([decoder(frame[None] / 0.18215) for frame in latents])
    return latents.numpy(), (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
