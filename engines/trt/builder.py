"""One typed ONNX graph to one engine plan, with progress, a memory limit and an end when it is cancelled."""

import functools
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.trt.bindings import Binding, pin_shapes
from vexpress_trt.engines.trt.flavour import RTX_TARGETS, TensorRt, compute_capability
from vexpress_trt.engines.trt.parsing import parsed
from vexpress_trt.engines.trt.profile import Profile
from vexpress_trt.engines.trt.size_flags import smaller
from vexpress_trt.engines.trt.timing_cache import TimingCache

if TYPE_CHECKING:
    import onnx

_FLAGS = ("version_compatible", "hardware_compatible", "weight_streaming")
_NO_DRIVER = "cudaError 35"
_ONE_ELEMENT = "Total number of elements"
log = logging.getLogger("vexpress")
Progress = Callable[[str, float], None]  # (phase, share of it done)


@dataclass(frozen=True)
class BuildOptions:
    """Settings of the builder; `workspace` in bytes limits what it may try (None: 8 GiB, or what the GPU has free if
    that is less). It decides whether a build succeeds and is no part of the key.

    `weight_streaming` makes an engine whose weights can stay in the host's memory where the GPU's is short.

    `targets` are compute capabilities to build for ahead of time, which TensorRT-RTX can; none: this machine's GPU.
    """

    targets: tuple[str, ...] = ()
    workspace: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    weight_streaming: bool = False

    def names(self) -> tuple[str, ...]:
        """What of it changes the engine, as text for its key."""
        level = () if self.optimization_level is None else (f"optimization_level={self.optimization_level}",)
        flags = [name for name in _FLAGS if getattr(self, name)]
        return (*level, *flags)


@dataclass(frozen=True)
class Plan:
    """What a build made: `data`, a buffer of bytes, and its inputs and outputs."""

    data: Any
    bindings: tuple[Binding, ...]


class Build:
    """One build in progress; `cancel` from another thread ends it at the builder's next step."""

    def __init__(
        self,
        tensorrt: TensorRt,
        progress: Progress = lambda phase, share: None,
        timing_cache: TimingCache | None = None,
    ) -> None:
        self._tensorrt = tensorrt
        self._trt = tensorrt.module
        self._cancelled = threading.Event()
        self._progress = progress
        self._timing_cache = timing_cache
        self._log = shared_log(self._trt)
        self._log.lines.clear()

    def cancel(self) -> None:
        self._cancelled.set()

    def run(
        self,
        path: Path,
        spec: GraphSpec,
        profile: Profile,
        options: BuildOptions,
        model: "onnx.ModelProto | None" = None,
    ) -> Plan:
        """The plan of the ONNX file at `path`, or of `model`, whose weights lie beside that file.

        Raises UserError that says what to do when the graph does not parse, its bindings are not those of `spec`, or
        the builder fails; KeyboardInterrupt when it was cancelled.
        """
        trt = self._trt
        builder = started(self._tensorrt, trt.Builder, self._log)
        network = parsed(self._tensorrt, builder, self._log, spec, path, model)
        bindings = pin_shapes(trt, network, spec, profile)
        make_attention_decomposable(trt, network)
        config = builder.create_builder_config()
        self._configure(builder, config, spec, profile, options)
        if self._timing_cache is not None:
            self._timing_cache.attach(config)
            self._log.lines.clear()  # timings that do not fit are no reason for a failure
        plan = builder.build_serialized_network(network, config)
        if self._cancelled.is_set():
            raise KeyboardInterrupt
        if plan is None:
            reason = reason_of(self._log, options.workspace, profile.ranges)
            raise UserError(f"{self._tensorrt.backend} could not build {spec.name}: {reason}")
        if self._timing_cache is not None:
            self._keep_timings(self._timing_cache, config)
        return Plan(plan, bindings)

    def _keep_timings(self, cache: TimingCache, config: Any) -> None:
        """A place that cannot be written costs the next build its minutes, not this one its engine."""
        try:
            cache.keep(config)
        except UserError as problem:
            log.warning("what this build measured is not kept: %s", problem)

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
        if options.weight_streaming:
            config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
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


def make_attention_decomposable(trt: Any, network: Any) -> int:
    """Let the builder take an attention apart where it has no fused kernel for it: FP32, or heads of unusual width.

    Returns how many there are. Those that have a kernel (head widths 40, 80 and 160 in FP16) keep it.
    """
    count = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if is_attention(trt, layer):
            boundary = layer
            boundary.__class__ = trt.IAttentionInputLayer
            attention = boundary.attention
            attention.decomposable = True
            count += 1
    return count


def is_attention(trt: Any, layer: Any) -> bool:
    """Whether a layer takes an attention's inputs; no layer does in TensorRT 10.12 and 10.13, which lack the kind."""
    return layer.type == getattr(trt.LayerType, "ATTENTION_INPUT", None)


def started(tensorrt: TensorRt, kind: Any, log: Any) -> Any:
    """A builder or a runtime; `kind` is its class. Raises UserError where there is none, as CUDA does not start."""
    try:
        return kind(log)
    except TypeError:  # what the bindings make of a null pointer
        raise UserError(
            f"{tensorrt.backend} {tensorrt.version} does not start ({reason_of(log)}): free memory on the GPU, or "
            "update its driver"
        ) from None


@functools.cache
def shared_log(trt: Any) -> Any:
    """The process's one logger, which keeps the last errors in `lines` in place of printing them.

    While any builder or runtime lives, TensorRT ignores the logger that another one is given. Clear `lines` before what
    may fail.
    """

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: deque[str] = deque(maxlen=100)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.lines.append(message.strip())

    return Log()


def _make_monitor(trt: Any, report: Progress, cancelled: threading.Event) -> Any:
    """Reports every step and asks the builder to stop once `cancelled` is set."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases = Phases()

        def phase_start(self, name: str, parent: str | None, count: int) -> None:
            self.phases.start(name, parent, count)

        def step_complete(self, name: str, step: int) -> bool:
            self.phases.step(name, step)
            report(name, self.phases.share())
            return not cancelled.is_set()

        def phase_finish(self, name: str) -> None:
            self.phases.finish(name)

    return Monitor()


class Phases:
    """The builder's phases, one inside another, as one share of work done.

    Steps count alike within their phase, since a builder does not tell what each will take. The builder may call from
    several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, tuple[str | None, int, int]] = {}  # {phase: (its parent, steps, steps done)}
        self._highest = 0.0

    def start(self, name: str, parent: str | None, count: int) -> None:
        with self._lock:
            self._open[name] = (parent, max(1, count), 0)

    def step(self, name: str, step: int) -> None:
        with self._lock:
            if name in self._open:
                parent, count, _ = self._open[name]
                self._open[name] = (parent, count, min(step + 1, count))

    def finish(self, name: str) -> None:
        with self._lock:
            self._open.pop(name, None)

    def share(self) -> float:
        """From 0 to 1, never falling."""
        with self._lock:
            outermost = [name for name, (parent, _, _) in self._open.items() if parent not in self._open]
            self._highest = max([self._highest, *map(self._share, outermost)])
            return self._highest

    def _share(self, name: str) -> float:
        _, count, done = self._open[name]
        children = [other for other, (parent, _, _) in self._open.items() if parent == name != other]
        inside = max(map(self._share, children), default=0.0)
        return min(1.0, (done + inside) / count)


def reason_of(log: Any, workspace: int | None = None, symbols: Collection[str] = ()) -> str:
    """The first error of TensorRT's log, which is the cause of later ones, and what may help.

    Errors about a missing driver, which it logs whenever it fails on a machine without a GPU, are the last resort. Of a
    build, `workspace` are the bytes of scratch that it was allowed, and `symbols` those of the graph's sizes: a request
    as large as that means that the engine needs more.
    """
    lines = [" ".join(line.split()) for line in list(log.lines)]
    causes = [line for line in lines if _NO_DRIVER not in line] or lines or ["it gave no reason"]
    text = " ".join(causes)
    if _ONE_ELEMENT in text:
        return (
            "a normalisation is left with one element in a group, as the deepest level of the network has one pixel: "
            "build for a larger image"
        )
    requested = re.search(r"Requested size was (\d+) bytes", text)
    if requested and workspace is not None and int(requested[1]) >= workspace:
        remedies = ["raise it to what the GPU can spare", smaller(symbols)]
        return (
            f"{causes[0]}; the engine needs more than --workspace {workspace / 2**30:g} GiB of scratch: "
            f"{', or '.join(filter(None, remedies))}"
        )
    if "memory" in text.lower() or "could not find any implementation" in text.lower():
        lower = "" if workspace is None else " or lower --workspace"
        return f"{causes[0]}; it may have too little memory: close other programs{lower}"
    return causes[0]
