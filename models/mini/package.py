"""The stage `package`: trained weights as the official checkpoints folder, in half precision."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vexpress_trt.engines.files import atomic_path
from vexpress_trt.export import checkpoints as official
from vexpress_trt.export.nets.layout import is_motion_key
from vexpress_trt.models.mini.autoencoder import load_autoencoder
from vexpress_trt.models.mini.listening import audio_config, load_listener
from vexpress_trt.models.mini.networks import SmallVExpress
from vexpress_trt.models.mini.sizes import MINI
from vexpress_trt.models.mini.training import averaged_weights

_POSITIONS = ".pos_encoder.pe"  # computed, not trained: kept in full precision


def write_checkpoints(folder: Path, stage: str, target: Path) -> official.Checkpoints:
    """Writes the runs below `folder`, with the denoiser of `stage`, to the new folder `target`, and loads it again.

    Raises FileExistsError where the target is not empty, UserError where the loader does not accept it.
    """
    if target.is_dir() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty; remove it or name another folder")
    model = SmallVExpress()
    model.load_state_dict(averaged_weights(folder / stage))
    denoising = model.denoising_unet.state_dict()
    tensors = {
        official.REFERENCE_NET: model.reference_net.state_dict(),
        official.DENOISING_UNET: {name: tensor for name, tensor in denoising.items() if not is_motion_key(name)},
        official.MOTION_MODULE: {name: tensor for name, tensor in denoising.items() if is_motion_key(name)},
        official.KPS_GUIDER: model.v_kps_guider.state_dict(),
        official.AUDIO_PROJECTION: model.audio_projection.state_dict(),
        official.VAE_WEIGHTS[0]: load_autoencoder(folder / "vae").official_state(),
        official.AUDIO_WEIGHTS[0]: load_listener(folder).official_state(),
    }
    configs = {
        official.UNET_CONFIG: MINI.unet_json(),
        official.VAE_CONFIG: MINI.vae_json(),
        official.AUDIO_CONFIG: audio_config(),
        official.AUDIO_PREPROCESSOR: MINI.preprocessor_json(),
    }
    with atomic_path(target, directory=True) as fresh:
        for name, config in configs.items():
            path = _prepared(fresh / name)
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name, state in tensors.items():
            path, half = _prepared(fresh / name), _halved(state)
            if path.suffix == ".bin":
                torch.save(half, path)
            else:
                save_file(half, path, metadata={"format": "pt"})
    return official.load_checkpoints(target)


def _halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone() if name.endswith(_POSITIONS) else tensor.detach().half()
        for name, tensor in state.items()
    }


def _prepared(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
