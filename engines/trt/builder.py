"""One typed ONNX graph to one engine plan, with progress, a memory limit and an end when it is cancelled."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vexpress_trt.engines.dims import evaluate
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.trt.flavour import RTX_TARGETS, TensorRt, compute_capability
from vexpress_trt.engines.trt.profile import Profile

Progress = Callable[[str, float], None]  # (phase, share of it done)

_DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64"}


@dataclass(frozen=True)
class BuildOptions:
    """Settings of the builder; `workspace` in bytes limits what it may try (None: no limit of ours).

    `targets` are compute capabilities to build for ahead of time, which TensorRT-RTX can; none: this machine's GPU.
    """

    targets: tuple[str, ...] = ()
    workspace: int | None = 8 << 30
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False

    def names(self) -> tuple[str, ...]:
        """What of it changes the engine, as text for its key."""
        level = () if self.optimization_level is None else (f"optimization_level={self.optimization_level}",)
        flags = [name for name in ("version_compatible", "hardware_compatible") if getattr(self, name)]
        return (*level, *flags)


class Build:
    """One build in progress; `cancel` from another thread ends it at the builder's next step."""

    def __init__(self, tensorrt: TensorRt, progress: Progress = lambda phase, share: None) -> None:
        self._tensorrt = tensorrt
        self._trt = tensorrt.module
        self._cancelled = threading.Event()
        self._progress = progress
        self._log = _make_logger(self._trt)

    def cancel(self) -> None:
        self._cancelled.set()

    def run(self, path: Path, spec: GraphSpec, profile: Profile, options: BuildOptions) -> Any:
        """The plan of the ONNX file at `path`: a buffer of bytes.

        Raises UserError that says what to do when the graph does not parse, its bindings are not those of `spec`, or
        the builder fails; KeyboardInterrupt when it was cancelled.
        """
        trt = self._trt
        builder = trt.Builder(self._log)
        network = builder.create_network(self._network_flags())
        self._parse(network, path)
        check_bindings(trt, network, spec)
        make_attention_decomposable(trt, network)
        config = builder.create_builder_config()
        self._configure(builder, config, spec, profile, options)
        plan = builder.build_serialized_network(network, config)
        if self._cancelled.is_set():
            raise KeyboardInterrupt
        if plan is None:
            reason = f"{self._log.last()}{_remedy(self._log)}"
            raise UserError(f"{self._tensorrt.backend} could not build {spec.name}: {reason}")
        return plan

    def _network_flags(self) -> int:
        flag = getattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None or self._tensorrt.is_rtx else 1 << int(flag)

    def _parse(self, network: Any, path: Path) -> None:
        parser = self._trt.OnnxParser(network, self._log)
        if not parser.parse_from_file(str(path)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            first = errors[0].desc() if errors else self._log.last()
            raise UserError(f"{self._tensorrt.backend} {self._tensorrt.version} cannot read {path}: {first}")

    def _configure(self, builder: Any, config: Any, spec: GraphSpec, profile: Profile, options: BuildOptions) -> None:
        trt = self._trt
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.targets:
            config.num_compute_capabilities = len(options.targets)
            for index, target in enumerate(options.targets):
                config.set_compute_capability(compute_capability(trt, target), index)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        shapes = builder.create_optimization_profile()
        for tensor in spec.inputs:
            shapes.set_shape(tensor.name, *profile.shapes(tensor.shape))
        config.add_optimization_profile(shapes)
        config.progress_monitor = _make_monitor(trt, self._progress, self._cancelled)


def check_options(tensorrt: TensorRt, options: BuildOptions) -> None:
    """Refuse what this TensorRT cannot do. Raises UserError with the reason."""
    if tensorrt.is_rtx:
        if options.version_compatible:
            raise UserError("--version_compatible: TensorRT-RTX needs a lean runtime for it that has no package")
        if options.hardware_compatible:
            raise UserError("--hardware_compatible: TensorRT-RTX builds for several GPUs by --target instead")
        for target in options.targets:
            compute_capability(tensorrt.module, target)
    elif options.targets:
        raise UserError(
            f"--target: full TensorRT builds on the GPU it builds for; --backend tensorrt-rtx builds for "
            f"{', '.join(RTX_TARGETS)} anywhere"
        )


def check_bindings(trt: Any, network: Any, spec: GraphSpec) -> None:
    """Hold the names, types and fixed sizes of a parsed network to the manifest. Raises UserError that names one."""
    found = {
        "inputs": [network.get_input(index) for index in range(network.num_inputs)],
        "outputs": [network.get_output(index) for index in range(network.num_outputs)],
    }
    for side, tensors in found.items():
        wanted: tuple[TensorSpec, ...] = getattr(spec, side)
        names = [tensor.name for tensor in tensors]
        if names != [tensor.name for tensor in wanted]:
            raise UserError(f"{spec.path}: its {side} are {', '.join(names)}, unlike the manifest's: export again")
        for tensor, declared in zip(tensors, wanted, strict=True):
            dtype = getattr(trt.DataType, _DTYPES[declared.dtype])
            shape = [-1 if evaluate(dimension, {}) is None else dimension for dimension in declared.shape]
            actual = [size if fixed != -1 else -1 for size, fixed in zip(tensor.shape, shape, strict=False)]
            if tensor.dtype != dtype or actual != shape:
                raise UserError(
                    f"{spec.path}: {tensor.name} is {tensor.dtype} {list(tensor.shape)}, the manifest says "
                    f"{declared.dtype} {list(declared.shape)}: export the bundle again"
                )


def make_attention_decomposable(trt: Any, network: Any) -> int:
    """Let the builder take an attention apart where it has no fused kernel for it: FP32, or heads of unusual width.

    Returns how many there are. Those that have a kernel (head widths 40, 80 and 160 in FP16) keep it.
    """
    count = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
            count += 1
    return count


def _make_logger(trt: Any) -> Any:
    """A logger that keeps errors and warnings in place of printing them."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.lines.append(message.strip())

        def last(self) -> str:
            return self.lines[-1] if self.lines else "it gave no reason"

    return Log()


def _make_monitor(trt: Any, report: Progress, cancelled: threading.Event) -> Any:
    """Reports the outermost phases and asks the builder to stop once `cancelled` is set."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, count: int) -> None:
            self.steps[name] = max(1, count)

        def step_complete(self, name: str, step: int) -> bool:
            report(name, (step + 1) / self.steps.get(name, 1))
            return not cancelled.is_set()

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

    return Monitor()


def _remedy(log: Any) -> str:
    text = " ".join(log.lines).lower()
    if "memory" in text or "could not find any implementation" in text:
        return "; it may have too little memory: close other programs or lower --workspace"
    return ""
