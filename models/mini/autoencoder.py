"""The autoencoder: images to 4 x 16 x 16 latents and back; trained while the clips are being drawn."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from vexpress_trt.models.mini.clips import CLIP_FRAMES
from vexpress_trt.models.mini.pool import Pool, pixel_weights
from vexpress_trt.models.mini.sizes import LATENT_SCALE, MINI
from vexpress_trt.models.mini.training import Plan, Run, averaged_weights, generator

PLAN = Plan(rate=2e-3, average=0.998)
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
    return scaled(torch.from_numpy(np.ascontiguousarray(frames)))


def scaled(frames: Tensor) -> Tensor:
    """As `to_tensor`, on the frames' device."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_frames(images: Tensor) -> np.ndarray:
    """The inverse of `to_tensor`, truncated to bytes as the runtime does."""
    return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def train_autoencoder(folder: Path, pool: Pool, plan: Plan, images: int, seconds: float, *, graphs: bool) -> bool:
    """Trains on `images` frames a step, of the clips that are there by then; says whether the plan was done."""
    torch.manual_seed(1)
    model = Autoencoder().to(pool.device)
    run = Run(folder, model, plan)

    def draw(step: int) -> tuple[Tensor, ...]:
        pool.receive()
        return _batch(pool, images, generator(1, step, pool.device))

    test = torch.arange(pool.held, device=pool.device)
    frames, boxes = pool.frames[test, test % CLIP_FRAMES], pool.boxes[test, test % CLIP_FRAMES]

    def measure() -> dict[str, float]:
        square = torch.cat([(model.decode(model.encode(scaled(f))) - scaled(f)).square() for f in frames.split(8)])
        square = square.mean(dim=1) / 4  # of a range of 1
        mouth = pixel_weights(boxes, 1, 2) - 1
        inside = (square * mouth).sum(dim=(1, 2)) / mouth.sum(dim=(1, 2))
        whole, part = (-10 * torch.log10(error + 1e-9) for error in (square.mean(dim=(1, 2)), inside))
        return {
            "psnr": whole.mean().item(), "psnr_worst": whole.min().item(), "psnr_mouth": part.mean().item(),
            "clips": pool.count,
        }  # fmt: skip

    return run.train(draw, autoencoder_loss(model), ("loss", "l1", "mse"), measure, seconds, graphs=graphs)


def autoencoder_loss(model: Autoencoder) -> Callable[..., Tensor]:
    """The loss of frames uint8 [N, 128, 128, 3] with boxes int16 [N, 2, 4] and noise [N, 4, 16, 16] for the latents."""

    def loss(frames: Tensor, boxes: Tensor, noise: Tensor) -> Tensor:
        images = scaled(frames)
        weights = pixel_weights(boxes, _EYE_WEIGHT, _MOUTH_WEIGHT)[:, None]
        weights = weights / weights.mean(dim=(1, 2, 3), keepdim=True)
        with torch.autocast(images.device.type, torch.bfloat16):
            output = model.decode(model.encode(images) + noise)
        error = output - images
        edges = sum((weights.narrow(axis, 1, 127) * error.diff(dim=axis).abs()).mean() for axis in (2, 3))
        plain, square = (weights * error.abs()).mean(), (weights * error.square()).mean()
        total = plain + 2 * square + 0.5 * edges + _tint_error(error)
        return torch.stack([total, plain, error.square().mean()])

    return loss


def example_images(count: int, seed: int, device: str) -> tuple[Tensor, ...]:
    """A batch of noise, to try `autoencoder_loss` with."""
    random = generator(seed, 0, device)
    frames = torch.randint(0, 256, (count, 128, 128, 3), generator=random, device=device, dtype=torch.uint8)
    boxes = torch.tensor([[40, 60, 40, 90], [70, 90, 50, 80]], dtype=torch.int16, device=device)
    noise = 0.1 * torch.randn(count, 4, 16, 16, generator=random, device=device)
    return frames, boxes.expand(count, 2, 4).contiguous(), noise


def load_autoencoder(folder: Path) -> Autoencoder:
    """The trained autoencoder, averaged weights, for use without gradients."""
    model = Autoencoder()
    model.load_state_dict(averaged_weights(folder))
    return model.eval().requires_grad_(False)


def _batch(pool: Pool, images: int, random: torch.Generator) -> tuple[Tensor, ...]:
    """Random frames and portraits, and noise of random strength."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random, device=pool.device)

    clips = pool.held + (uniform(images) * (pool.count - pool.held)).long()
    frames = (uniform(images) * (CLIP_FRAMES + 1)).long()
    deviation = _LATENT_NOISE * uniform(images, 1, 1, 1)
    noise = deviation * torch.randn(images, 4, 16, 16, generator=random, device=pool.device)
    return pool.frames[clips, frames], pool.boxes[clips, frames], noise


def _tint_error(error: Tensor) -> Tensor:
    """How wrong the colours of 8 x 8 pixels are on average, which single pixels tell only faintly.

    Faces and hair differ along red and blue: without a weight of its own, green against both is learned very late.
    """
    red, green, blue = F.avg_pool2d(error, 8).unbind(dim=1)
    return (red.abs() + green.abs() + blue.abs()).mean() / 3 + 4 * (green - (red + blue) / 2).abs().mean()
