"""The keys and shapes that official checkpoints have, including those that do not act."""

from diffusers import UNet2DConditionModel

from vexpress_trt.export.nets.audio_projection import AudioProjection
from vexpress_trt.export.nets.configs import NetworkConfigs, UNetConfig
from vexpress_trt.export.nets.guider import KpsGuider
from vexpress_trt.export.nets.plain import PlainDenoiser
from vexpress_trt.export.nets.reference import ReferenceNet
from vexpress_trt.export.nets.state import module_shapes

Shapes = dict[str, tuple[int, ...]]

REFERENCE_NET, DENOISING_UNET, MOTION_MODULE = "reference_net", "denoising_unet", "motion_module"
KPS_GUIDER, AUDIO_PROJECTION = "v_kps_guider", "audio_projection"


def is_motion_key(key: str) -> bool:
    """Whether a key of the whole denoising network belongs to the motion_module file."""
    return "motion_module" in key


def expected_shapes(configs: NetworkConfigs) -> dict[str, Shapes]:
    """{part: {key: shape}} of the official checkpoint files for networks of these sizes; allocates no weights.

    The denoising_unet file may also hold the motion module's keys: those are listed under motion_module only.
    """
    denoiser = module_shapes(lambda: PlainDenoiser(configs.unet, configs.motion, guided=True))
    return {
        REFERENCE_NET: _reference_net_shapes(configs.unet),
        DENOISING_UNET: {key: shape for key, shape in denoiser.items() if not is_motion_key(key)},
        MOTION_MODULE: {key: shape for key, shape in denoiser.items() if is_motion_key(key)},
        KPS_GUIDER: module_shapes(lambda: KpsGuider(configs.guider)),
        AUDIO_PROJECTION: module_shapes(lambda: AudioProjection(configs.projection)),
    }


def reference_net_unused_keys(config: UNetConfig) -> set[str]:
    """Keys of the reference_net file that cannot act: all after the last tap, and attention to the zero text."""
    return set(_reference_net_shapes(config)) - set(module_shapes(lambda: ReferenceNet(config)))


def _reference_net_shapes(config: UNetConfig) -> Shapes:
    # The file is a stock Stable Diffusion UNet whose conv_norm_out was deleted (golden README, section 4).
    stock = module_shapes(lambda: UNet2DConditionModel(**config.to_diffusers()))
    return {key: shape for key, shape in stock.items() if not key.startswith("conv_norm_out.")}
