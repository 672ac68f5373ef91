"""The official checkpoints folder: all of it, validated as a whole, or a list of everything that is wrong with it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import looking, sha256_file
from vexpress_trt.engines.manifest import FileRecord
from vexpress_trt.export import layouts
from vexpress_trt.export.layouts import Renamed, StateDict
from vexpress_trt.export.nets.configs import GuiderConfig, MotionConfig, NetworkConfigs, ProjectionConfig, UNetConfig
from vexpress_trt.export.nets.layout import expected_shapes, reference_net_unused_keys
from vexpress_trt.export.nets.library import audio_encoder_shapes, fold_weight_norm, vae_shapes
from vexpress_trt.export.sizes import guider_config, motion_config, projection_config
from vexpress_trt.export.tensor_files import first_line, read_json, read_tensors
from vexpress_trt.export.validation import FileProblems, compare, refuse

UNET_CONFIG = "stable-diffusion-v1-5/unet/config.json"
REFERENCE_NET = "v-express/reference_net.bin"
DENOISING_UNET = "v-express/denoising_unet.bin"
MOTION_MODULE = "v-express/motion_module.bin"
KPS_GUIDER = "v-express/v_kps_guider.bin"
AUDIO_PROJECTION = "v-express/audio_projection.bin"
VAE_CONFIG = "sd-vae-ft-mse/config.json"
VAE_WEIGHTS = ("sd-vae-ft-mse/diffusion_pytorch_model.safetensors", "sd-vae-ft-mse/diffusion_pytorch_model.bin")
AUDIO_CONFIG = "wav2vec2-base-960h/config.json"
AUDIO_WEIGHTS = ("wav2vec2-base-960h/model.safetensors", "wav2vec2-base-960h/pytorch_model.bin")
AUDIO_PREPROCESSOR = "wav2vec2-base-960h/preprocessor_config.json"
RANDOM_MARK = "random_weights.json"  # beside the folders, where the weights were made here and mean nothing

# One entry per file of the layout; where there are several names, the first that exists is taken.
LAYOUT: tuple[tuple[str, ...], ...] = (
    (UNET_CONFIG,),
    (REFERENCE_NET,),
    (DENOISING_UNET,),
    (MOTION_MODULE,),
    (KPS_GUIDER,),
    (AUDIO_PROJECTION,),
    (VAE_CONFIG,),
    VAE_WEIGHTS,
    (AUDIO_CONFIG,),
    AUDIO_WEIGHTS,
    (AUDIO_PREPROCESSOR,),
)
_SAMPLE_RATE = 16000
_AUDIO_SIZES = ("hidden_size", "num_hidden_layers", "conv_kernel", "conv_stride")  # read from the configuration itself
Result = TypeVar("Result")


@dataclass(frozen=True)
class Checkpoints:
    """A validated checkpoints folder.

    State dicts have the official names, the dtypes of the files, and are mapped from them (reading costs memory only
    when a tensor is used). `denoising_unet` includes the motion module; `vae` has diffusers' present attention names;
    `wav2vec2` has no prefix, no head and a plain weight in its positional convolution. `files` holds size and SHA-256
    of every file that was read, by path relative to `folder` (empty where hashing was declined).
    """

    folder: Path
    networks: NetworkConfigs
    unet_config: dict[str, Any]
    vae_config: dict[str, Any]
    wav2vec2_config: dict[str, Any]
    reference_net: StateDict = field(repr=False)
    denoising_unet: StateDict = field(repr=False)
    v_kps_guider: StateDict = field(repr=False)
    audio_projection: StateDict = field(repr=False)
    vae: StateDict = field(repr=False)
    wav2vec2: StateDict = field(repr=False)
    files: dict[str, FileRecord] = field(repr=False)
    random_weights: bool = False


@looking()
def load_checkpoints(folder: Path, *, hash_files: bool = True) -> Checkpoints:
    """Read the official layout below `folder` (see `LAYOUT`); sizes come from the configurations and the weights.

    Accepts a denoising_unet file with or without the motion module's keys (motion_module.bin wins), either naming of
    the autoencoder's attention, `.safetensors` or `.bin` for autoencoder and audio encoder, an audio encoder with or
    without head, and a reference net with or without the weights that do not act. Nothing in the files is executed.

    Raises UserError that lists all missing files, or all missing, unexpected and mis-shaped tensors by file, or names
    the file that cannot be read.
    """
    folder = Path(folder)
    names = _locate(folder)
    vae_file, audio_file = names[VAE_WEIGHTS], names[AUDIO_WEIGHTS]
    configs = {name: read_json(folder / name) for name in names.values() if name.endswith(".json")}
    unet = _understood(folder / UNET_CONFIG, configs[UNET_CONFIG], UNetConfig.from_json)
    expected_vae = _understood(folder / VAE_CONFIG, configs[VAE_CONFIG], vae_shapes)
    expected_audio = _understood(folder / AUDIO_CONFIG, configs[AUDIO_CONFIG], audio_encoder_shapes)

    stored = {name: read_tensors(folder / name) for name in names.values() if not name.endswith(".json")}
    vae = layouts.autoencoder_layout(stored[vae_file])
    audio = layouts.audio_encoder_layout(stored[audio_file])
    if layouts.has_plain_position_weight(audio.tensors):
        expected_audio = layouts.plain_position_shapes(expected_audio)
    refuse(
        folder,
        [
            *_compare_networks(unet, configs[AUDIO_CONFIG], stored),
            compare(vae_file, vae, expected_vae),
            compare(audio_file, audio, expected_audio),
            *_compare_configs(unet, configs),
        ],
    )
    own, motion = layouts.split_motion(stored[DENOISING_UNET])
    motion |= stored[MOTION_MODULE]
    return Checkpoints(
        folder=folder,
        networks=NetworkConfigs.from_parts(
            configs[UNET_CONFIG],
            {
                "motion_module": _shapes(motion),
                "v_kps_guider": _shapes(stored[KPS_GUIDER]),
                "audio_projection": _shapes(stored[AUDIO_PROJECTION]),
            },
        ),
        unet_config=configs[UNET_CONFIG],
        vae_config=configs[VAE_CONFIG],
        wav2vec2_config=configs[AUDIO_CONFIG],
        reference_net=stored[REFERENCE_NET],
        denoising_unet=own | motion,
        v_kps_guider=stored[KPS_GUIDER],
        audio_projection=stored[AUDIO_PROJECTION],
        vae=vae.tensors,
        wav2vec2=fold_weight_norm(audio.tensors),
        files={name: _record(folder / name) for name in names.values()} if hash_files else {},
        random_weights=(folder / RANDOM_MARK).is_file(),
    )


def _locate(folder: Path) -> dict[tuple[str, ...], str]:
    """The file that serves each entry of `LAYOUT`."""
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; give the folder of the official checkpoints, or make it with "
            f"`vexpress fetch --checkpoints {folder}`"
        )
    found = {entry: next((name for name in entry if (folder / name).is_file()), "") for entry in LAYOUT}
    missing = [" or ".join(str(folder / name) for name in entry) for entry, name in found.items() if not name]
    if missing:
        raise UserError(
            "\n".join(
                [f"{len(missing)} of {len(LAYOUT)} checkpoint files are missing:", *(f"  {path}" for path in missing)]
                + [f"Get them with `vexpress fetch --checkpoints {folder}`"]
            )
        )
    return found


def _compare_networks(
    unet: UNetConfig, audio_config: dict[str, Any], stored: dict[str, StateDict]
) -> list[FileProblems]:
    """Problems of V-Express's own five files."""
    _, motion = layouts.split_motion(stored[DENOISING_UNET])
    sizes = {
        MOTION_MODULE: motion_config(_shapes(motion | stored[MOTION_MODULE])),
        KPS_GUIDER: guider_config(_shapes(stored[KPS_GUIDER])),
        AUDIO_PROJECTION: projection_config(_shapes(stored[AUDIO_PROJECTION])),
    }
    unreadable = {file: reason for file, reason in sizes.items() if isinstance(reason, str)}
    audio_dim = audio_config.get("hidden_size", 768)
    expected = expected_shapes(
        NetworkConfigs(  # what the files have must fit the UNet and the audio encoder, so their sizes go in here
            unet,
            MotionConfig() if MOTION_MODULE in unreadable else sizes[MOTION_MODULE],
            replace(
                GuiderConfig() if KPS_GUIDER in unreadable else sizes[KPS_GUIDER],
                out_channels=unet.block_out_channels[0],
            ),
            replace(
                ProjectionConfig() if AUDIO_PROJECTION in unreadable else sizes[AUDIO_PROJECTION],
                output_dim=unet.cross_attention_dim,
                embedding_dim=audio_dim,
            ),
        )
    )
    expected_motion = {} if MOTION_MODULE in unreadable else expected["motion_module"]
    reference = expected["reference_net"] | {
        f"conv_norm_out.{name}": unet.block_out_channels[:1] for name in ("weight", "bias")
    }
    checks = (
        (REFERENCE_NET, reference, reference_net_unused_keys(unet) | (reference.keys() - expected["reference_net"])),
        (DENOISING_UNET, expected["denoising_unet"] | expected_motion, expected_motion.keys()),
        (MOTION_MODULE, expected_motion, motion.keys()),
        (KPS_GUIDER, expected["v_kps_guider"], frozenset()),
        (AUDIO_PROJECTION, expected["audio_projection"], frozenset()),
    )
    return [
        FileProblems(file, remarks=(unreadable[file],))
        if file in unreadable
        else compare(file, Renamed.unchanged(stored[file]), shapes, may_lack=may_lack)
        for file, shapes, may_lack in checks
    ]


def _compare_configs(unet: UNetConfig, configs: dict[str, dict[str, Any]]) -> list[FileProblems]:
    """Values in which the configurations contradict each other or what the audio is prepared for."""
    latent_channels = configs[VAE_CONFIG].get("latent_channels", 4)
    rate = configs[AUDIO_PREPROCESSOR].get("sampling_rate", _SAMPLE_RATE)
    scaling = configs[VAE_CONFIG].get("scaling_factor", 1)
    lacking = [name for name in _AUDIO_SIZES if name not in configs[AUDIO_CONFIG]]
    problems = []
    if isinstance(scaling, bool) or not isinstance(scaling, int | float) or not 0 < scaling < math.inf:
        problems.append(FileProblems(VAE_CONFIG, remarks=(f"scaling_factor is {scaling!r}, not a positive number",)))
    if lacking:
        problems.append(FileProblems(AUDIO_CONFIG, remarks=(f"it does not say {', '.join(lacking)}",)))
    elif min(configs[AUDIO_CONFIG]["conv_kernel"] + configs[AUDIO_CONFIG]["conv_stride"]) < 1:
        problems.append(FileProblems(AUDIO_CONFIG, remarks=("conv_kernel and conv_stride are not all positive",)))
    if latent_channels != unet.in_channels:
        remark = f"latent_channels is {latent_channels}, the UNet's in_channels is {unet.in_channels}"
        problems.append(FileProblems(VAE_CONFIG, remarks=(remark,)))
    if rate != _SAMPLE_RATE or not configs[AUDIO_PREPROCESSOR].get("do_normalize", True):
        remark = f"only normalised audio of {_SAMPLE_RATE} Hz is supported (sampling_rate {rate!r})"
        problems.append(FileProblems(AUDIO_PREPROCESSOR, remarks=(remark,)))
    return problems


def _understood(path: Path, config: dict[str, Any], reader: Callable[[dict[str, Any]], Result]) -> Result:
    """`reader(config)`, with every complaint about the configuration turned into a sentence that names its file."""
    try:
        return reader(config)
    except UserError as problem:
        raise UserError(f"{path}: {problem}") from problem
    except Exception as problem:  # the libraries check little: a wrong value surfaces as any exception
        raise UserError(
            f"{path} does not describe a network of its kind ({first_line(problem)}); use the configuration that came "
            "with the weights"
        ) from problem


def _shapes(tensors: StateDict) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _record(path: Path) -> FileRecord:
    return FileRecord(sha256_file(path), path.stat().st_size)
