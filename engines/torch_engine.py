"""Graphs as torch modules, on the CPU or a CUDA GPU: rebuilt from the bundle's configurations and ONNX weights."""

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vexpress_trt.engines.backend_name import split_backend
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import usable_cores
from vexpress_trt.engines.engine import Engine, out_of_memory
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import PRECISION_DTYPE, GraphSpec, TensorSpec, is_reference_tensor
from vexpress_trt.engines.onnx_files import load_structure
from vexpress_trt.engines.onnx_weights import initializer_arrays

if TYPE_CHECKING:
    import torch
    from torch import nn


class TorchEngine(Engine):
    """One graph in torch, computing in `dtype` ("fp32", "bf16" or "fp16"; None: the graph's precision).

    On the CPU inputs are used in place; on a GPU they are copied when bound, so that keys and values cross the bus
    once. `threads` is torch's setting for the whole process, applied before every run.
    """

    def __init__(
        self,
        bundle: Bundle | None,
        spec: GraphSpec,
        *,
        backend: str = "torch",
        threads: int | None = None,
        dtype: str | None = None,
        module: "nn.Module | None" = None,
    ) -> None:
        """`module`: the network, where it is there already and no bundle is needed.

        Raises UserError when torch or the export extra is missing or the bundle does not hold this network.
        """
        super().__init__(spec)
        torch = _torch()
        self.backend = backend
        self._threads = threads or usable_cores()
        self._device = device_of(backend)
        chosen = dtype or spec.precision
        if chosen not in PRECISION_DTYPE:
            raise UserError(f"torch computes in {', '.join(PRECISION_DTYPE)}, not in {chosen}: choose one of these")
        self._dtype = getattr(torch, PRECISION_DTYPE[chosen])
        self._tensors: dict[str, torch.Tensor] = {}
        if module is None:
            module = _load_module(bundle, spec)
        try:
            layout = torch.channels_last if self._device == "cpu" else torch.contiguous_format  # as measured on each
            self._module = module.to(self._device, self._dtype, memory_format=layout)
        except RuntimeError as problem:
            raise out_of_memory(problem, spec.name) or problem from None

    def _bind(self, name: str, array: np.ndarray) -> None:
        tensor = to_torch(array).to(self._device)
        # The modules convert their other inputs themselves; the reference's go straight into an attention.
        self._tensors[name] = tensor.to(self._dtype) if is_reference_tensor(name) else tensor

    def _execute(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:
        import torch

        torch.set_num_threads(self._threads)
        results = self._results(lambda tensor, result: _to_numpy(result.to(getattr(torch, tensor.dtype))))
        return {tensor.name: result for tensor, result in zip(self.spec.outputs, results, strict=True)}

    def _results(self, taken: "Callable[[TensorSpec, torch.Tensor], Any]") -> list[Any]:
        """Run the module on what is bound: for each output what `taken` makes of it."""
        import torch

        try:
            with torch.inference_mode():
                results = self._module(*module_arguments(self.spec, self._tensors))
                results = results if isinstance(results, (tuple, list)) else (results,)
                return [taken(tensor, result) for tensor, result in zip(self.spec.outputs, results, strict=True)]
        except RuntimeError as problem:
            raise out_of_memory(problem, self.spec.name) or problem from None

    def _renew(self) -> None:
        self._tensors.clear()
        self._cancelled = False  # a run that is cancelled goes on to its end: nothing was broken off

    def _release(self) -> None:
        self._tensors.clear()
        self._module = None
        if self._device != "cpu":
            import torch

            torch.cuda.empty_cache()


def _torch() -> Any:
    try:
        import torch
    except ImportError as problem:
        raise UserError(
            f"torch cannot be imported here ({problem}): install it with `pip install 'vexpress-trt[export]'` or "
            "choose --backend onnxruntime"
        ) from None
    return torch


def device_of(backend: str) -> str:
    """torch's name of the device behind a backend's name. Raises UserError where torch finds no GPU there."""
    kind, gpu = split_backend(backend)
    if kind == "torch":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"torch {torch.__version__} finds no GPU it can use: leave out --device cuda to run on the CPU, or install "
            "a torch that is built for this driver's CUDA"
        )
    return f"cuda:{gpu or 0}"


def _load_module(bundle: Bundle, spec: GraphSpec) -> "nn.Module":
    """The network of a graph with its weights, which are mapped from the bundle's files."""
    try:
        from vexpress_trt.export.nets.state import materialise
    except ImportError as problem:
        raise _needs_export(problem) from None
    plain = any(tensor.name.startswith("tap_") for tensor in (*spec.inputs, *spec.outputs))
    build = _builders(bundle.manifest.networks, plain).get(spec.name)
    if build is None:
        raise UserError(f"the torch backend has no network for {spec.name}: choose --backend onnxruntime")
    arrays = initializer_arrays(bundle, spec, load_structure(bundle, spec))
    state = {name: to_torch(array) for name, array in arrays.items()}
    try:
        return materialise(build, state)
    except ImportError as problem:
        raise _needs_export(problem) from None
    except KeyError as problem:
        raise UserError(
            f"{bundle.root} has no configuration {problem} in its manifest, so torch cannot rebuild {spec.name}: "
            "export it again, or choose --backend onnxruntime"
        ) from None
    except RuntimeError as problem:
        first = str(problem).strip().splitlines()[-1].strip()
        raise UserError(
            f"{bundle.path(spec.path)} does not hold the weights of {spec.name} as configured ({first}): export the "
            "bundle again"
        ) from None


def _needs_export(problem: ImportError) -> UserError:
    return UserError(f"the torch backend needs the export extra ({problem}): `pip install 'vexpress-trt[export]'`")


def _builders(networks: Mapping[str, Mapping[str, Any]], plain: bool) -> dict[str, Callable[[], "nn.Module"]]:
    """{graph: what makes its module without weights}; the manifest's configurations are read when one is called."""
    from vexpress_trt.export.nets.audio_projection import AudioProjection
    from vexpress_trt.export.nets.configs import GuiderConfig, MotionConfig, ProjectionConfig, UNetConfig
    from vexpress_trt.export.nets.denoiser import Denoiser
    from vexpress_trt.export.nets.guider import KpsGuider
    from vexpress_trt.export.nets.plain import PlainDenoiser
    from vexpress_trt.export.nets.reference import Reference, ReferenceNet

    def own(kind: type, name: str) -> Any:
        values = networks[name].items()  # JSON has lists where the configurations have tuples
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values})

    def library(kind: str, name: str) -> "nn.Module":
        from vexpress_trt.export.nets import library  # diffusers and transformers, which the other networks do without

        return getattr(library, kind)(networks[name])

    def denoiser(guided: bool) -> "nn.Module":
        kind = PlainDenoiser if plain else Denoiser
        return kind(UNetConfig.from_json(networks["unet"]), own(MotionConfig, "motion"), guided=guided)

    return {
        "audio_encoder": lambda: library("AudioEncoder", "wav2vec2"),
        "audio_projection": lambda: AudioProjection(own(ProjectionConfig, "projection")),
        "kps_guider": lambda: KpsGuider(own(GuiderConfig, "guider")),
        "vae_encoder": lambda: library("VaeEncoder", "vae"),
        "reference": lambda: (ReferenceNet if plain else Reference)(UNetConfig.from_json(networks["unet"])),
        "denoiser_guided": lambda: denoiser(True),
        "denoiser_single": lambda: denoiser(False),
        "vae_decoder": lambda: library("VaeDecoder", "vae"),
    }


def module_arguments(spec: GraphSpec, tensors: Mapping[str, "torch.Tensor"]) -> list[Any]:
    """Arguments of the module's `forward`, in the manifest's order; the reference's become one list."""
    arguments: list[Any] = []
    reference: list[torch.Tensor] = []
    for tensor in spec.inputs:
        if not is_reference_tensor(tensor.name):
            arguments.append(tensors[tensor.name])
            continue
        if not reference:
            arguments.append(reference)
        reference.append(tensors[tensor.name])
    return arguments


def to_torch(array: np.ndarray) -> "torch.Tensor":
    import torch

    with warnings.catch_warnings():
        # Arrays mapped from a file are read-only, of which torch warns; nothing here writes to its inputs.
        warnings.filterwarnings("ignore", message=".*not writable")
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)


def _to_numpy(tensor: "torch.Tensor") -> np.ndarray:
    import torch

    tensor = tensor.cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
