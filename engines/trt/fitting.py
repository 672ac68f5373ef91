"""Which of a bundle's engines run on this machine: decided from their sidecars, nothing is deserialised."""

from dataclasses import dataclass

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.trt.flavour import TensorRt, load_tensorrt
from vexpress_trt.engines.trt.key import EngineKey
from vexpress_trt.engines.trt.preflight import targets_here
from vexpress_trt.engines.trt.profile import Profile
from vexpress_trt.engines.trt.store import EngineStore, StoredEngine

FASTEST_FIRST = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class Here:
    """What runs engines here: a TensorRT and the compute capability of a GPU, as "sm89"."""

    tensorrt: TensorRt
    target: str

    @classmethod
    def of(cls, backend: str, gpu_id: int = 0) -> "Here":
        """Raises UserError where the backend cannot be imported or has no such GPU."""
        tensorrt = load_tensorrt(backend)
        (target,) = targets_here(tensorrt, gpu_id)
        return cls(tensorrt, target)

    def unfit(self, key: EngineKey) -> str:
        """Why an engine of this key cannot run here, or ""."""
        ours, later = self.tensorrt.version, "version_compatible" in key.options
        if key.version != ours and not (later and _runs_older(ours, key.version)):
            return f"it is of {key.backend} {key.version}, installed is {ours}"
        if key.cuda_major != self.tensorrt.cuda_major:
            return f"it is for CUDA {key.cuda_major}, installed is CUDA {self.tensorrt.cuda_major}"
        if self.target not in key.targets and not (
            "hardware_compatible" in key.options and _number(self.target) >= max(80, *map(_number, key.targets))
        ):
            return f"it is for {', '.join(key.targets)}, this GPU is {self.target}"
        return ""


def fitting_plans(bundle: Bundle, here: Here, spec: GraphSpec) -> list[tuple[StoredEngine, Profile]]:
    """The engines of a graph that run here, with the sizes that they take; static ones first.

    Raises UserError where there is none, with the reason of one that is there and the command that builds it.
    """
    store, reasons, found = EngineStore(bundle), [], []
    for stored in store.all():
        key = stored.sidecar.key if stored.sidecar else None
        if key is None or (key.backend, key.graph, key.precision) != (
            here.tensorrt.backend, spec.name, spec.precision
        ):  # fmt: skip
            continue
        reason = stored.problem or here.unfit(key) or store.outdated(stored)
        if reason:
            reasons.append(f"{stored.plan.relative_to(bundle.root)}: {reason}")
        else:
            found.append((stored, Profile.parse(key.profile)))
    if not found:
        there = f" ({reasons[0]})" if reasons else ""
        raise UserError(
            f"{bundle.root} has no {here.tensorrt.backend} engine of {spec.name} in {spec.precision} that runs here"
            f"{there}: {build_command(bundle, here, spec.precision)}"
        )
    return sorted(found, key=lambda pair: sum(r.smallest != r.largest for r in pair[1].ranges.values()))


def planned_precision(bundle: Bundle, here: Here, wanted: str | None = None) -> str:
    """The fastest precision in which every graph of the bundle has an engine that runs here, or `wanted` if it has.

    Raises UserError that names a graph without one where there is no such precision.
    """
    problem: UserError | None = None
    for precision in [each for each in FASTEST_FIRST if each in bundle.precisions and wanted in (None, each)]:
        try:
            for graph in dict.fromkeys(spec.name for spec in bundle.manifest.graphs):
                fitting_plans(bundle, here, bundle.graph(graph, precision))
            return precision
        except UserError as missing:
            problem = problem or missing
    raise problem or UserError(f"{bundle.root} has no graphs in {wanted or ', '.join(FASTEST_FIRST)}")


def build_command(bundle: Bundle, here: Here, precision: str) -> str:
    """What to do where an engine is missing."""
    return f"build with `vexpress build {bundle.root} --backend {here.tensorrt.backend} --precision {precision}`"


def _runs_older(ours: str, theirs: str) -> bool:
    """Whether a version runs what an older one built as compatible with later ones: of its own major version."""
    new, old = ([int(part) for part in version.split(".")[:2]] for version in (ours, theirs))
    return new[0] == old[0] and new >= old


def _number(target: str) -> int:
    return int(target.removeprefix("sm"))
