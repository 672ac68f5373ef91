"""Where the official weights come from, under which licence, and where each file goes in the checkpoints folder."""

from dataclasses import dataclass

AUTHORS = "tk93/V-Express"  # the authors' repository; it carries copies of the other models too


@dataclass(frozen=True)
class Source:
    """One repository that has a part.

    `files` are pairs (path in the repository, path in the checkpoints folder). A source serves its part only if it has
    all of `files`; those of `optional` are taken where they exist.
    """

    repository: str
    files: tuple[tuple[str, str], ...]
    optional: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Part:
    """One of the models. Sources are tried in order."""

    name: str
    licence: str
    sources: tuple[Source, ...]


def _files(folder: str, names: tuple[str, ...], prefix: str = "") -> tuple[tuple[str, str], ...]:
    return tuple((prefix + name, f"{folder}/{name}") for name in names)


_NETWORKS = ("reference_net.bin", "denoising_unet.bin", "motion_module.bin", "v_kps_guider.bin", "audio_projection.bin")
_VAE = "sd-vae-ft-mse"
_WAV2VEC2 = "wav2vec2-base-960h"
_UNET = "stable-diffusion-v1-5/unet"
_FACE = "insightface_models/models/buffalo_l"
_FACE_EXTRAS = ("1k3d68.onnx", "2d106det.onnx", "genderage.onnx", "w600k_r50.onnx")

PARTS: tuple[Part, ...] = (
    Part(
        "v-express",
        "non-commercial research only (README of tencent-ailab/V-Express, for the released checkpoints)",
        (
            # The networks lie at the repository's root today and lay in the second folder in its first releases.
            Source(AUTHORS, _files("v-express", _NETWORKS)),
            Source(AUTHORS, _files("v-express", _NETWORKS, "model_ckpts/v-express/")),
        ),
    ),
    Part(
        "unet-config",
        "CreativeML Open RAIL-M (Stable Diffusion 1.5; the configuration file only)",
        (
            Source(AUTHORS, _files(_UNET, ("config.json",), f"model_ckpts/{_UNET}/")),
            Source("stable-diffusion-v1-5/stable-diffusion-v1-5", _files(_UNET, ("config.json",), "unet/")),
        ),
    ),
    Part(
        "vae",
        "MIT (stabilityai/sd-vae-ft-mse)",
        (
            Source(AUTHORS, _files(_VAE, ("config.json", "diffusion_pytorch_model.bin"), f"model_ckpts/{_VAE}/")),
            Source("stabilityai/sd-vae-ft-mse", _files(_VAE, ("config.json", "diffusion_pytorch_model.safetensors"))),
        ),
    ),
    Part(
        "wav2vec2",
        "Apache-2.0 (facebook/wav2vec2-base-960h)",
        (
            Source(
                AUTHORS,
                _files(
                    _WAV2VEC2,
                    ("config.json", "preprocessor_config.json", "pytorch_model.bin"),
                    f"model_ckpts/{_WAV2VEC2}/",
                ),
            ),
            Source(
                "facebook/wav2vec2-base-960h",
                _files(_WAV2VEC2, ("config.json", "preprocessor_config.json", "model.safetensors")),
            ),
        ),
    ),
    Part(
        "face",
        "non-commercial research only (insightface's buffalo_l models)",
        (
            Source(
                AUTHORS,
                _files(_FACE, ("det_10g.onnx",), f"model_ckpts/{_FACE}/"),
                _files(_FACE, _FACE_EXTRAS, f"model_ckpts/{_FACE}/"),
            ),
            Source(
                "public-data/insightface",
                _files(_FACE, ("det_10g.onnx",), "models/buffalo_l/"),
                _files(_FACE, _FACE_EXTRAS, "models/buffalo_l/"),
            ),
        ),
    ),
)

PART_NAMES: tuple[str, ...] = tuple(part.name for part in PARTS)
