"""Which of a bundle's engines run on this machine: decided from their sidecars, nothing is deserialised."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.call_sizes import WHOLE_AUDIO_SECONDS, ClipSizes
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.trt.flavour import TensorRt, load_tensorrt
from vexpress_trt.engines.trt.host_code import distrust
from vexpress_trt.engines.trt.key import EngineKey
from vexpress_trt.engines.trt.preflight import targets_here
from vexpress_trt.engines.trt.profile import Profile, ProfileSettings
from vexpress_trt.engines.trt.store import EngineStore, StoredEngine
from vexpress_trt.engines.trt.wanted import SizeWords, outside

FASTEST_FIRST = ("fp16", "bf16", "fp32")
_AMPERE = 80  # the oldest compute capability that hardware compatibility is for
_ANY: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Here:
    """What runs engines here: a TensorRT and a GPU with its compute capability, as "sm89"."""

    tensorrt: TensorRt
    target: str
    gpu: int = 0

    @classmethod
    def of(cls, backend: str, gpu_id: int = 0) -> "Here":
        """Raises UserError where the backend cannot be imported or has no such GPU."""
        tensorrt = load_tensorrt(backend)
        (target,) = targets_here(tensorrt, gpu_id)
        return cls(tensorrt, target, gpu_id)

    def unfit(self, key: EngineKey) -> str:
        """Why an engine of this key cannot run here, or ""."""
        ours, later = self.tensorrt.version, "version_compatible" in key.options
        if key.version != ours and not (later and _runs_older(ours, key.version)):
            return f"it is of {key.backend} {key.version}, installed is {ours}"
        if key.cuda_major != self.tensorrt.cuda_major:
            return f"it is for CUDA {key.cuda_major}, installed is CUDA {self.tensorrt.cuda_major}"
        if self.target not in key.targets and not (
            "hardware_compatible" in key.options and min(map(_number, (self.target, *key.targets))) >= _AMPERE
        ):
            return f"it is for {', '.join(key.targets)}, this GPU is {self.target}"
        return ""

    def native(self, key: EngineKey) -> bool:
        """Whether an engine of this key was built for what is here, rather than for something compatible."""
        return key.version == self.tensorrt.version and self.target in key.targets


def fitting_plans(
    bundle: Bundle, here: Here, spec: GraphSpec, sizes: Mapping[str, int] = _ANY
) -> list[tuple[StoredEngine, Profile]]:
    """The engines of a graph that run here with symbols of these sizes, with all sizes they take.

    Those of the narrowest ranges come first, so static ones before all; of equals the ones of this version and GPU.

    Raises UserError where there is none, with what differs in the one that comes nearest, and the command that builds
    what is wanted; where one would fit that is not trusted, with what lets it run.
    """
    store, words = EngineStore(bundle), SizeWords(bundle.manifest.model)
    found: list[tuple[StoredEngine, Profile]] = []
    distrusted = ""
    others: list[tuple[tuple[int, bool], str, StoredEngine]] = []  # (how near, what differs, engine)
    for stored in store.all():
        key = stored.sidecar.key if stored.sidecar else None
        if key is None or (key.backend, key.graph) != (here.tensorrt.backend, spec.name):
            continue
        profile = Profile.parse(key.profile)
        precision = "" if key.precision == spec.precision else f"it is in {key.precision}, not {spec.precision}"
        unfit = here.unfit(key) or store.outdated(stored)
        size = words.difference(profile, sizes)
        if reason := stored.problem or precision or unfit or size:
            near = sum(not part for part in (stored.problem, precision, unfit)), not size
            others.append((near, reason, stored))
        elif reason := distrust(key.options):
            distrusted = f"{stored.plan}: {reason}"
        else:
            found.append((stored, profile))
    if not found and distrusted:
        raise UserError(distrusted)
    if not found:
        nearest = max(others, key=lambda other: other[0], default=None)
        there = "" if nearest is None else f" ({nearest[2].plan.relative_to(bundle.root)}: {nearest[1]})"
        remedy = build_command(bundle, here, spec, sizes, nearest and nearest[2].sidecar.key)
        raise UserError(
            f"{bundle.root} has no {here.tensorrt.backend} engine of {spec.name} in {spec.precision} that runs here"
            f"{there}: {remedy}"
        )
    return sorted(found, key=lambda pair: (pair[1].spread, not here.native(pair[0].sidecar.key)))


def planned_precision(bundle: Bundle, here: Here, wanted: str | None = None, clip: ClipSizes | None = None) -> str:
    """The fastest precision in which every graph has an engine that runs here, or `wanted` if it has.

    With `clip`, every graph that the clip needs, for the sizes that it gives them. Raises UserError that names a graph
    without one where there is no such precision.
    """
    names = dict.fromkeys(spec.name for spec in bundle.manifest.graphs)
    graphs = [name for name in names if clip is None or clip.needs(name)]
    problems: dict[str, UserError] = {}
    for precision in [each for each in FASTEST_FIRST if each in bundle.precisions and wanted in (None, each)]:
        try:
            for graph in graphs:
                fitting_plans(bundle, here, bundle.graph(graph, precision), _ANY if clip is None else clip.of(graph))
            return precision
        except UserError as missing:
            problems[precision] = missing
    if not problems:
        raise UserError(f"{bundle.root} has no graphs in {wanted or ', '.join(FASTEST_FIRST)}")
    keys = [stored.sidecar.key for stored in EngineStore(bundle).all() if stored.sidecar]
    built = {key.precision for key in keys if key.backend == here.tensorrt.backend}
    raise problems[next((precision for precision in problems if precision in built), next(iter(problems)))]


def build_command(
    bundle: Bundle, here: Here, spec: GraphSpec, sizes: Mapping[str, int] = _ANY, like: EngineKey | None = None
) -> str:
    """What to do where an engine of a graph for these sizes is missing: build one with the options of `like`, and for
    its sizes where those would do."""
    words, profile = SizeWords(bundle.manifest.model), Profile.parse(like.profile) if like else None
    settings = None
    if profile is not None and not outside(profile, sizes):
        settings = words.settings_of(spec.name, profile, sizes)
    if settings is None or settings.problem(bundle.manifest.model):
        settings = words.settings_for(spec, sizes)
    if settings is None:
        return _other_speech(spec, bundle, sizes) or "no build takes these sizes; use another --backend"
    return _command(bundle, here, spec.precision, words.flags(settings), like.options if like else ())


def rebuild_command(bundle: Bundle, here: Here, stored: StoredEngine) -> str:
    """What to do about an engine that is there and damaged."""
    key, words = stored.sidecar.key, SizeWords(bundle.manifest.model)
    options = key.options
    if here.tensorrt.is_rtx and key.targets != (here.target,):
        here, options = replace(here, gpu=0), (f"target={','.join(key.targets)}", *options)
    settings = words.settings_of(key.graph, Profile.parse(key.profile))
    return _command(bundle, here, key.precision, words.flags(settings), options, "--force")


def _command(bundle: Bundle, here: Here, precision: str, flags: list[str], options: tuple[str, ...], *more: str) -> str:
    command = ["vexpress", "build", str(bundle.root), "--backend", here.tensorrt.backend, "--precision", precision]
    command += flags + [word for option in options for word in f"--{option}".split("=")]
    command += ["--gpu_id", str(here.gpu)] if here.gpu else []
    return f"build with `{shlex.join([*command, *more])}`"


def _other_speech(spec: GraphSpec, bundle: Bundle, sizes: Mapping[str, int]) -> str:
    """What to do where no engine can be built for so much speech at once, or ""."""
    own = ProfileSettings().of(spec, bundle.manifest.model)
    if "S" not in outside(own, sizes):
        return ""
    if sizes["S"] < own.ranges["S"].smallest:
        return "no build takes less; give longer speech, or use another --backend"
    return (
        f"no build takes more than {WHOLE_AUDIO_SECONDS:g} s; leave out --compat upstream, which encodes all at once, "
        "or use another --backend"
    )


def _runs_older(ours: str, theirs: str) -> bool:
    """Whether a version runs what an older one built as compatible with later ones: of its own major version."""
    new, old = ([int(part) for part in version.split(".")[:2]] for version in (ours, theirs))
    return new[0] == old[0] and new >= old


def _number(target: str) -> int:
    return int(target.removeprefix("sm"))
