"""The tiny golden model: weights cast to float32 as all goldens use them, and the arrays the original computed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import torch
from safetensors.torch import load_file
from torch import Tensor

from vexpress_trt.export.nets.configs import NetworkConfigs
from vexpress_trt.export.nets.reference import Reference

State = dict[str, Tensor]
PARTS = ("reference_net", "denoising_unet", "motion_module", "v_kps_guider", "audio_projection")


@pytest.fixture(scope="module", autouse=True)
def _all_on(one_thread: None) -> None:
    """The networks are so small that threads cost more than they bring, much more where cores are shared."""


@pytest.fixture(scope="session")
def checkpoints(golden_dir: Path) -> Path:
    return golden_dir / "model_ckpts"


@pytest.fixture(scope="session")
def unet_json(checkpoints: Path) -> dict:
    return json.loads((checkpoints / "stable-diffusion-v1-5" / "unet" / "config.json").read_text())


@pytest.fixture(scope="session")
def weights(checkpoints: Path) -> dict[str, State]:
    """{part: state dict} of V-Express's own networks."""

    def load(part: str) -> State:
        state = torch.load(checkpoints / "v-express" / f"{part}.bin", weights_only=True)
        return {key: tensor.float() for key, tensor in state.items()}

    return {part: load(part) for part in PARTS}


@pytest.fixture(scope="session")
def denoiser_weights(weights: dict[str, State]) -> State:
    return weights["denoising_unet"] | weights["motion_module"]


@pytest.fixture(scope="session")
def shapes(weights: dict[str, State]) -> dict[str, dict[str, tuple[int, ...]]]:
    return {part: {key: tuple(tensor.shape) for key, tensor in state.items()} for part, state in weights.items()}


@pytest.fixture(scope="session")
def configs(unet_json: dict, shapes: dict) -> NetworkConfigs:
    return NetworkConfigs.from_parts(unet_json, shapes)


@pytest.fixture(scope="session")
def library_weights(checkpoints: Path) -> Callable[[str], tuple[dict, State]]:
    """Folder of a library's model -> its config.json and weights."""

    def load(folder: str) -> tuple[dict, State]:
        (file,) = (checkpoints / folder).glob("*.safetensors")
        return json.loads((checkpoints / folder / "config.json").read_text()), load_file(file)

    return load


@pytest.fixture(scope="session")
def golden(golden_dir: Path) -> Callable[[str], dict[str, Tensor]]:
    """Name of a file in golden/modules -> its arrays as float32 tensors."""

    def load(name: str) -> dict[str, Tensor]:
        with np.load(golden_dir / "modules" / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(np.asarray(array, dtype=np.float32)) for key, array in arrays.items()}

    return load


@pytest.fixture(scope="session")
def trace(golden_dir: Path) -> Callable[[str], list[dict]]:
    """Name of a trace -> per submodule: name, shape, flat indices and the values there."""
    return lambda name: json.loads((golden_dir / "modules" / f"{name}_trace.json").read_text())


@pytest.fixture
def assert_golden() -> Callable[[Tensor, Tensor], None]:
    """Asserts equality within the tolerance that the golden data suggests for single modules."""
    return lambda actual, expected: torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@pytest.fixture(scope="module")
def reference(configs: NetworkConfigs, weights: dict[str, State]) -> Reference:
    """The reference network of the tiny golden model."""
    return Reference.from_state_dicts(configs.unet, weights["reference_net"], weights["denoising_unet"])


@pytest.fixture
def assert_golden_at_odd_size(
    golden: Callable, reference: Reference, assert_golden: Callable
) -> Callable[[torch.nn.Module], None]:
    """Asserts that a denoiser without guidance predicts what the original did for five frames of 20x12 latents."""

    def check(denoiser: torch.nn.Module) -> None:
        arrays = golden("denoising_unet_nocfg_oddsize")
        prediction = denoiser(
            arrays["latents"].transpose(1, 2),
            arrays["timestep"].reshape(1),
            arrays["audio_tokens"][None],
            arrays["kps_features"].transpose(1, 2),
            reference(arrays["ref_latents"]),
            torch.tensor([0.95]),
            torch.tensor([3.0]),
        )
        assert prediction.shape == (1, 1, 5, 4, 12, 20)
        assert_golden(prediction[:, 0].transpose(1, 2), arrays["out"])

    return check


@pytest.fixture
def record_outputs() -> Callable[[torch.nn.Module, dict], None]:
    """Makes a module write the outputs of all its submodules into a dictionary {path: output}."""

    def attach(module: torch.nn.Module, outputs: dict) -> None:
        for name, submodule in module.named_modules():
            submodule.register_forward_hook(lambda _module, _args, output, name=name: outputs.__setitem__(name, output))

    return attach
