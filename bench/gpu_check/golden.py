"""The networks against the oracle's committed arrays in FP32, and FP16 and BF16 against that FP32.

Denoisers in their fused form as well, in FP32 only: a GPU's kernels take seconds to compile for each type.
"""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vexpress_trt.bench.gpu_check.networks import TORCH
from vexpress_trt.bench.gpu_check.parts import CheckFailed, Faults, Record, Setting
from vexpress_trt.export.nets.audio_projection import AudioProjection
from vexpress_trt.export.nets.configs import GuiderConfig, MotionConfig, ProjectionConfig, UNetConfig
from vexpress_trt.export.nets.denoiser import Denoiser
from vexpress_trt.export.nets.fused.denoiser import FusedDenoiser
from vexpress_trt.export.nets.guider import KpsGuider
from vexpress_trt.export.nets.reference import Reference
from vexpress_trt.export.tensor_files import read_tensors

FOLDER = Path("tests/golden")
Expected = tuple[Any, np.ndarray]
Case = tuple[nn.Module, list[Any], list[Expected]]
TOLERANCE = {"rtol": 1e-3, "atol": 2e-4}  # ten times the CPU's: sums are added in another order, of other sizes


def check(setting: Setting, record: Record) -> None:
    """Raises CheckFailed naming the graphs whose FP32 result is not the oracle's."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    cases = Cases(setting.repository / FOLDER, setting.device)
    faults = Faults()
    for name, case in cases.all().items():
        with faults.of(name):
            found = compared(*case(), setting.device)
            record(name, found)
            if not found["agrees"]:
                raise CheckFailed(f"differs by up to {found['largest_difference']:.2g}")
    if not find_spec("diffusers"):
        record("skipped", "vae_encoder and vae_decoder: diffusers is not installed")
    faults.tell()


def compared(module: nn.Module, inputs: list[Any], expected: list[Expected], device: str) -> dict[str, Any]:
    """How a module's outputs differ from what is expected, and those in half precision from those in FP32."""
    exact = [tensor.float().cpu().numpy() for tensor in outputs(module, inputs, "fp32", device)]
    pairs = [(mine[where], wanted) for mine, (where, wanted) in zip(exact, expected, strict=False)]
    found: dict[str, Any] = {
        "agrees": all(np.allclose(mine, wanted, **TOLERANCE) for mine, wanted in pairs),
        "largest_difference": max(float(np.abs(mine - wanted).max()) for mine, wanted in pairs),
        "largest_value": max(float(np.abs(wanted).max()) for _, wanted in pairs),
    }
    rough_too = device == "cuda" and not isinstance(module, FusedDenoiser)
    for precision in ("fp16", "bf16") if rough_too else ():
        rough = [tensor.float().cpu().numpy() for tensor in outputs(module, inputs, precision, device)]
        found[f"{precision}_snr_db"] = min(signal_to_noise(a, b) for a, b in zip(exact, rough, strict=True))
    return found


class Cases:
    """{graph: its module, inputs, and pairs of (where in an output, what has to be there)}."""

    def __init__(self, folder: Path, device: str) -> None:
        self.modules = folder / "modules"
        self._device = device
        checkpoints = folder / "model_ckpts"
        own = {path.stem: read_tensors(path) for path in sorted((checkpoints / "v-express").glob("*.bin"))}
        self._checkpoints, self._own = checkpoints, own
        config = checkpoints / "stable-diffusion-v1-5/unet/config.json"
        self._unet = UNetConfig.from_json(json.loads(config.read_text()))
        self._denoising = {**own["denoising_unet"], **own["motion_module"]}
        self._motion = MotionConfig.from_shapes(_shapes(own["motion_module"]))

    def all(self) -> dict[str, Callable[[], Case]]:
        cases = {
            "audio_projection": self.projection,
            "kps_guider": self.guider,
            "reference": self.reference,
            "denoiser_guided": self.guided,
            "denoiser_single": self.single,
            "denoiser_guided, fused": lambda: fused(self.guided()),
            "denoiser_single, fused": lambda: fused(self.single()),
        }
        if find_spec("diffusers"):
            cases |= {"vae_encoder": self.vae_encoder, "vae_decoder": self.vae_decoder}
        return cases

    def projection(self) -> Case:
        golden, state = self._load("audio_projection"), self._own["audio_projection"]
        module = AudioProjection.from_state_dict(ProjectionConfig.from_shapes(_shapes(state)), state)
        return module, [self._tensor(golden["in_windows"])], [(..., golden["out"])]

    def guider(self) -> Case:
        golden, state = self._load("v_kps_guider"), self._own["v_kps_guider"]
        module = KpsGuider.from_state_dict(GuiderConfig.from_shapes(_shapes(state)), state)
        rgb = np.ascontiguousarray(golden["in_rgb"][0].swapaxes(0, 1), np.float32)
        return module, [self._tensor(rgb)], [(..., golden["out"][0].swapaxes(0, 1))]

    def reference(self) -> Case:
        golden = self._load("reference_net")
        order = {e["reader"]: e["index"] for e in json.loads((self.modules / "bank_order.json").read_text())}
        names = sorted(order, key=lambda name: (("down", "mid", "up").index(name.split("_")[0]), name))
        expected = []
        for name in names:
            bank = golden[f"bank_{order[name]:02d}"]
            for letter in ("k", "v"):
                weight = self._denoising[f"{name}.attn1_5.to_{letter}.weight"].float().numpy()
                projected = (bank[0] @ weight.T).reshape(bank.shape[1], self._unet.heads[0], -1).swapaxes(0, 1)
                expected.append((..., projected[None]))
        return self._reference(), [self._tensor(golden["in_latents"])], expected

    def guided(self) -> Case:
        golden = self._load("denoising_unet_cfg")
        module = Denoiser.from_state_dict(self._unet, self._motion, self._denoising, guided=True)
        inputs = [
            self._tensor(golden["latents"][1:].swapaxes(1, 2)),
            self._tensor(np.array([golden["timestep"]], np.float32)),
            self._tensor(golden["audio_tokens"].reshape(2, 12, 5, -1)[1:]),
            self._tensor(golden["kps_features"][1:].swapaxes(1, 2)),
            self._keys_values(self._load("reference_net")["in_latents"]),
            *(self._tensor(np.array([weight], np.float32)) for weight in (0.95, 3.0)),
        ]
        return module, inputs, [((0, 1), golden["out_w095_3"].swapaxes(1, 2)[1])]

    def single(self) -> Case:
        golden = self._load("denoising_unet_nocfg_oddsize")
        module = Denoiser.from_state_dict(self._unet, self._motion, self._denoising, guided=False)
        inputs = [
            self._tensor(golden["latents"].swapaxes(1, 2)),
            self._tensor(np.array([golden["timestep"]], np.float32)),
            self._tensor(golden["audio_tokens"][None]),
            self._tensor(golden["kps_features"].swapaxes(1, 2)),
            self._keys_values(golden["ref_latents"]),
            *(self._tensor(np.array([weight], np.float32)) for weight in (0.95, 3.0)),
        ]
        return module, inputs, [((0, 0), golden["out"][0].swapaxes(0, 1))]

    def vae_encoder(self) -> Case:
        golden = self._load("vae")
        return self._vae("VaeEncoder"), [self._tensor(golden["enc_image"])], [(..., golden["enc_mean"])]

    def vae_decoder(self) -> Case:
        golden = self._load("vae")
        return self._vae("VaeDecoder"), [self._tensor(golden["dec_latent"])], [(..., golden["dec_image"])]

    def _vae(self, kind: str) -> nn.Module:
        from vexpress_trt.export.layouts import autoencoder_layout
        from vexpress_trt.export.nets import library

        folder = self._checkpoints / "sd-vae-ft-mse"
        state = autoencoder_layout(read_tensors(folder / "diffusion_pytorch_model.safetensors")).tensors
        return getattr(library, kind).from_state_dict(json.loads((folder / "config.json").read_text()), state)

    def _reference(self) -> nn.Module:
        return Reference.from_state_dicts(self._unet, self._own["reference_net"], self._denoising)

    def _keys_values(self, latent: np.ndarray) -> list[Tensor]:
        return outputs(self._reference(), [self._tensor(latent)], "fp32", self._device)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self._device)

    def _load(self, name: str) -> dict[str, np.ndarray]:
        return dict(np.load(self.modules / f"{name}.npz"))


def fused(case: Case) -> Case:
    """The case of a denoiser, for the form that a GPU's engine takes."""
    module, inputs, expected = case
    return FusedDenoiser(module), inputs, expected


def outputs(module: nn.Module, inputs: list[Any], precision: str, device: str) -> list[Tensor]:
    """The module's results, computed in a precision; keys and values go in as such."""
    kind = TORCH[precision]
    given = [[tensor.to(kind) for tensor in value] if isinstance(value, list) else value for value in inputs]
    with torch.inference_mode():
        results = module.to(device, kind)(*given)
    return list(results) if isinstance(results, (tuple, list)) else [results]


def signal_to_noise(exact: np.ndarray, rough: np.ndarray) -> float:
    """In decibels."""
    noise = float(np.linalg.norm(rough.astype(np.float64) - exact))
    return float(20 * np.log10(np.linalg.norm(exact) / noise)) if noise else 300.0


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
