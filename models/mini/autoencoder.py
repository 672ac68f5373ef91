"""The autoencoder: images to 4 x 16 x 16 latents and back; trained on frames that are drawn as it goes."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from vexpress_trt.models.mini.features import Mouth
from vexpress_trt.models.mini.identity import FIRST_HELD_OUT, draw_identity
from vexpress_trt.models.mini.measure import mouth_box, psnr
from vexpress_trt.models.mini.pose import head_frame, head_path
from vexpress_trt.models.mini.sizes import LATENT_SCALE, MINI
from vexpress_trt.models.mini.training import Plan, Run, averaged_weights, generator
from vexpress_trt.models.mini.world import render

PLAN = Plan(steps=4500, rate=1.5e-3, average=0.998, measure_every=400)
_BATCH = 8
_LATENT_NOISE = 0.12  # largest deviation of the noise that the decoder has to bear, for latents of unit deviation
_MOUTH_WEIGHT, _EYE_WEIGHT = 4.0, 2.0
_FIRST_LOG_VARIANCE = -5.0  # of the exported latent distribution, whose mean alone is used


class Autoencoder(nn.Module):
    """Diffusers' autoencoder whose latents are normed by their running statistics instead of a prior."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = AutoencoderKL.from_config(MINI.vae_json())
        self.norm = nn.BatchNorm2d(4, affine=False, momentum=0.01)

    def encode(self, images: Tensor) -> Tensor:
        """images: [N, 3, 128, 128] in -1..1 -> [N, 4, 16, 16] of about unit variance."""
        moments = self.vae.quant_conv(self.vae.encoder(images))
        return self.norm(moments.chunk(2, dim=1)[0].float())

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse: float32 [N, 3, 128, 128] in about -1..1."""
        return self.vae.decoder(self.vae.post_quant_conv(latents)).float()

    def official_state(self) -> dict[str, Tensor]:
        """The weights of a plain AutoencoderKL whose latents have unit variance after scaling by 0.18215.

        The statistics and the scale go into the convolutions on both sides of the latents.
        """
        state = {name: tensor.detach().clone() for name, tensor in self.vae.state_dict().items()}
        deviation = torch.sqrt(self.norm.running_var + self.norm.eps)
        gain = 1 / (deviation * LATENT_SCALE)
        weight, bias = state["quant_conv.weight"], state["quant_conv.bias"]
        weight[:4] *= gain[:, None, None, None]
        bias[:4] = (bias[:4] - self.norm.running_mean) * gain
        weight[4:], bias[4:] = 0, _FIRST_LOG_VARIANCE
        state["post_quant_conv.weight"] *= LATENT_SCALE
        return state


def to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_frames(images: Tensor) -> np.ndarray:
    """The inverse of `to_tensor`, truncated to bytes as the runtime does."""
    return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def train_autoencoder(folder: Path, plan: Plan, minutes: float) -> bool:
    torch.manual_seed(1)
    model = Autoencoder()
    run = Run(folder, model, plan)
    held_out = [_random_frame(FIRST_HELD_OUT + index, index) for index in range(64)]

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        # One new identity per step; each comes up in eight steps, so that painting it is worth its time.
        frames = [_random_frame(step + 7 * slot, step * _BATCH + slot) for slot in range(_BATCH)]
        images = to_tensor(np.stack([frame for frame, _ in frames]))
        weights = torch.from_numpy(np.stack([_weights(keypoints) for _, keypoints in frames]))[:, None]
        random = generator(1, step)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(images)
            deviation = _LATENT_NOISE * torch.rand(len(images), 1, 1, 1, generator=random)
            noisy = latents + deviation * torch.randn(latents.shape, generator=random)
            output = model.decode(noisy)
        error = output - images
        edges = sum((weights.narrow(axis, 1, 127) * error.diff(dim=axis).abs()).mean() for axis in (2, 3))
        plain, square = (weights * error.abs()).mean(), (weights * error.square()).mean()
        tint = _tint_error(error)
        numbers = {"l1": plain.item(), "mse": error.detach().square().mean().item()}
        return plain + 2 * square + 0.5 * edges + tint, numbers

    def measure() -> dict[str, float]:
        truth = np.stack([frame for frame, _ in held_out])
        output = np.concatenate([to_frames(model.decode(model.encode(to_tensor(part)))) for part in np.split(truth, 8)])
        whole = [psnr(a, b) for a, b in zip(output, truth, strict=True)]
        boxes = [mouth_box(keypoints) for _, keypoints in held_out]
        mouths = [psnr(a[box], b[box]) for a, b, box in zip(output, truth, boxes, strict=True)]
        np.save(folder / "samples.npy", np.stack([truth[:16], output[:16]]))
        return {"psnr": float(np.mean(whole)), "psnr_worst": min(whole), "psnr_mouth": float(np.mean(mouths))}

    return run.train(loss_of, measure, minutes)


def load_autoencoder(folder: Path) -> Autoencoder:
    """The trained autoencoder, averaged weights, for use without gradients."""
    model = Autoencoder()
    model.load_state_dict(averaged_weights(folder))
    return model.eval().requires_grad_(False)


def _random_frame(identity: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame of an identity in a random state, and its key points."""
    rng = np.random.default_rng([seed, identity])
    keypoints = head_path(int(rng.integers(1 << 31)), 1, 25)[0]
    opening = 0.0 if rng.uniform() < 0.15 else rng.uniform()
    blink = rng.uniform() if rng.uniform() < 0.25 else 0.0
    return render(draw_identity(identity), keypoints, Mouth(opening, rng.uniform()), blink), keypoints


def _tint_error(error: Tensor) -> Tensor:
    """How wrong the colours of 8 x 8 pixels are on average, which single pixels tell only faintly.

    Faces and hair differ along red and blue: without a weight of its own, green against both is learned very late.
    """
    red, green, blue = F.avg_pool2d(error, 8).unbind(dim=1)
    return (red.abs() + green.abs() + blue.abs()).mean() / 3 + 4 * (green - (red + blue) / 2).abs().mean()


def _weights(keypoints: np.ndarray) -> np.ndarray:
    """How much each pixel counts, float32 [128, 128], 1 on average: mouth and eyes count most."""
    frame = head_frame(keypoints)
    weights = np.ones((128, 128), np.float32)
    (left, top), (right, _) = frame.to_image(np.array([[-0.85, -0.3], [0.85, -0.3]]))
    weights[int(top) : int(top + 0.6 * frame.unit), int(left) : int(right)] = _EYE_WEIGHT
    weights[mouth_box(keypoints)] = _MOUTH_WEIGHT
    return weights / weights.mean()
