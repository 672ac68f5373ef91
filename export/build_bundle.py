"""Checkpoints to a bundle: every graph in every asked precision, checked against the torch modules."""

import gc
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any

from vexpress_trt.engines.bundle import Bundle, BundleWriter, write_bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import looking
from vexpress_trt.engines.manifest import SCHEMA_VERSION, GraphSpec, Manifest, ModelConfig, SchedulerConfig
from vexpress_trt.engines.memory import peak_memory_mib
from vexpress_trt.engines.precision import Precision
from vexpress_trt.engines.verify import ParityResult, vector_path
from vexpress_trt.export import parity
from vexpress_trt.export.checkpoints import Checkpoints
from vexpress_trt.export.graphs import LATENT_CHANNELS, Graph, graphs, traced_ranges
from vexpress_trt.export.onnx_export import export_onnx
from vexpress_trt.export.weight_file import weight_file

log = logging.getLogger("vexpress")

PRODUCER = f"vexpress-trt {metadata.version('vexpress-trt')}"
AUDIO_SAMPLE_RATE = 16_000
LICENCE_OFFICIAL = "weights of V-Express, published by their authors for non-commercial research only"
LICENCE_RANDOM = "random weights, no rights are claimed"


@dataclass(frozen=True)
class ExportedGraph:
    """What one graph took and weighs.

    `seconds` are those of building the module, tracing and writing, `check_seconds` those of the parity check;
    `weights_bytes` is the size of its weight file, which the two denoisers share. `peak_memory_mib` is the process's
    peak so far, pages mapped from the checkpoints included (0 where the system does not tell).
    """

    graph: str
    precision: str
    seconds: float
    check_seconds: float
    graph_bytes: int
    weights_bytes: int
    peak_memory_mib: int


@dataclass(frozen=True)
class ExportReport:
    """What `export_bundle` did: graphs in order, parity results, and the size of the whole bundle in bytes."""

    graphs: tuple[ExportedGraph, ...]
    parity: tuple[ParityResult, ...]
    bundle_bytes: int


def export_bundle(
    checkpoints: Checkpoints,
    target: Path,
    *,
    precisions: Sequence[Precision] = ("fp32", "fp16"),
    image_width: int = 512,
    image_height: int = 512,
    context_frames: int = 24,
    plain: bool = False,
    force: bool = False,
) -> ExportReport:
    """Export all graphs and write the bundle; it appears at `target` only when every graph passed its parity check.

    A bundle of the same checkpoints and settings at `target` keeps its precisions and gets the missing ones; anything
    else there is refused unless `force` replaces it. The image size (pixels) and the frames per window are the
    defaults of `generate`; the graphs themselves run at any size.

    `plain` exports the graphs without the exact savings, to compare with (see `graphs`).

    Every graph is exported in every precision, the audio encoder too: with 12 layers of random weights it keeps 59 dB
    in FP16, no less than the others.

    Raises UserError for sizes the model cannot have, a target in the way, and a graph that fails its check.
    """
    target = Path(target)
    model = model_config(checkpoints, image_width, image_height, context_frames)
    keep = None if force else _previous(target, checkpoints, model, plain)
    if keep is not None:
        there = [precision for precision in precisions if precision in keep.precisions]
        precisions = [precision for precision in precisions if precision not in there]
        if not precisions:
            raise UserError(f"{target} already holds {' and '.join(there)}: nothing to add, or replace it with --force")
    with write_bundle(target, keep=keep) as writer:
        exporter = _Exporter(checkpoints, writer, model, plain)
        for _, sharing in groupby(graphs(checkpoints, plain=plain), key=lambda graph: graph.weights):
            exporter.export(tuple(sharing), list(dict.fromkeys(precisions)))
        manifest = exporter.finish()
    return ExportReport(tuple(exporter.exported), tuple(exporter.parity), sum(f.size for f in manifest.files.values()))


class _Exporter:
    """One network after another, one precision after another: never more than one module and one engine in memory."""

    def __init__(self, checkpoints: Checkpoints, writer: BundleWriter, model: ModelConfig, plain: bool):
        self.checkpoints = checkpoints
        self.writer = writer
        self.exported: list[ExportedGraph] = []
        self.parity: list[ParityResult] = []
        self._specs: list[GraphSpec] = []
        self._model = model
        self._plain = plain

    def export(self, sharing: tuple[Graph, ...], precisions: Sequence[Precision]) -> None:
        """Export graphs that share their weights."""
        for graph in sharing:
            self._store_vectors(graph)
        for precision in precisions:
            written = list(self._write(sharing, precision))
            for spec, seconds, module_db in written:
                self._check(spec, seconds, module_db)

    def finish(self) -> Manifest:
        return self.writer.finish(
            producer=PRODUCER,
            model=self._model,
            graphs=tuple(self._specs),
            **_description(self.checkpoints, self._plain),
        )

    def _store_vectors(self, graph: Graph) -> None:
        path = self.writer.path(vector_path(graph.name))
        if not path.exists():  # one that is kept belongs to the bundle it is linked from as well
            module = parity.module_of(graph, self.checkpoints, "fp32")
            parity.store_outputs(graph, module, path)
            del module
            gc.collect()

    def _write(self, sharing: tuple[Graph, ...], precision: Precision) -> Iterator[tuple[GraphSpec, float, float]]:
        """Write the ONNX files; yields (specification, seconds, SNR of the torch module in this precision)."""
        with weight_file(self.writer.path(sharing[0].spec(precision).files[1])) as weights:
            for graph in sharing:
                began = perf_counter()
                vectors = vector_path(graph.name)
                spec = graph.spec(precision, files=(vectors,))
                module = parity.module_of(graph, self.checkpoints, precision)
                module_db = parity.module_snr_db(graph, module, precision, self.writer.path(vectors))
                arguments = parity.example_arguments(graph, precision, graph.traced)
                path, ranges = self.writer.path(spec.path), traced_ranges(self.checkpoints)
                export_onnx(module, spec, arguments, path, weights, producer=PRODUCER, ranges=ranges)
                del module
                gc.collect()
                yield spec, perf_counter() - began, module_db

    def _check(self, spec: GraphSpec, seconds: float, module_db: float) -> None:
        began = perf_counter()
        bundle = Bundle(self.writer.root, _provisional(self.checkpoints, self._model, self._plain))
        result = parity.check_graph(bundle, spec)
        self.parity.append(result)
        self._specs.append(replace(spec, parity=parity.record(result, module_db)))
        sizes = [bundle.path(file).stat().st_size for file in spec.files[:2]]
        checking = perf_counter() - began
        self.exported.append(
            ExportedGraph(
                spec.name, spec.precision, round(seconds, 2), round(checking, 2), *sizes, round(peak_memory_mib())
            )
        )
        log.info(
            f"exported {spec.name} {spec.precision}: {seconds:.1f} s, {sum(sizes) / 2**20:.1f} MiB; "
            f"checked on {result.backend}: {result.snr_db:.1f} dB, largest error {result.max_abs:.2g}"
        )


def model_config(checkpoints: Checkpoints, width: int, height: int, context_frames: int) -> ModelConfig:
    """The sizes of the model. Raises UserError for image sizes and frames per window that it cannot have."""
    own, vae, audio = checkpoints.networks, checkpoints.vae_config, checkpoints.wav2vec2_config
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    for name, value in (("image_width", width), ("image_height", height)):
        if value < factor or value % factor:
            raise UserError(f"--{name} {value}: must be a positive multiple of {factor}.")
    longest = own.motion.max_length
    if not 1 <= context_frames <= longest:
        raise UserError(f"--context_frames {context_frames}: the motion modules of this model take 1 to {longest}.")
    return ModelConfig(
        image_width=width,
        image_height=height,
        context_frames=context_frames,
        max_context_frames=longest,
        latent_channels=LATENT_CHANNELS,
        vae_scale_factor=factor,
        latent_scaling=vae.get("scaling_factor", 0.18215),
        feature_channels=own.unet.block_out_channels[0],
        cross_attention_dim=own.unet.cross_attention_dim,
        audio_hidden_dim=audio["hidden_size"],
        audio_window_rows=own.projection.max_seq_len,
        audio_tokens=own.projection.queries,
        audio_encoder_layers=audio["num_hidden_layers"],
        audio_sample_rate=AUDIO_SAMPLE_RATE,
        attention_blocks=sum(stage.attentions for stage in own.unet.stages()),
    )


@looking()
def _previous(target: Path, checkpoints: Checkpoints, model: ModelConfig, plain: bool) -> Bundle | None:
    """The bundle at `target` to add to, or None where there is nothing. Raises UserError for anything else there."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    bundle = Bundle.open(target)
    same = bundle.manifest.provenance == _description(checkpoints, plain)["provenance"]
    if not same or bundle.manifest.model != model:
        size = f"{bundle.manifest.model.image_width}x{bundle.manifest.model.image_height}"
        settings = f"other settings ({size}, {bundle.manifest.model.context_frames} frames per window)"
        difference = settings if same else "other checkpoints or another form"
        raise UserError(f"{target} is a bundle of {difference}: choose another name, or replace it with --force.")
    return bundle


def _description(checkpoints: Checkpoints, plain: bool) -> dict[str, Any]:
    """The parts of the manifest that are the checkpoints' own: where they are from and what rebuilds their modules."""
    own = checkpoints.networks
    return {
        "scheduler": SchedulerConfig(),
        "licence": LICENCE_RANDOM if checkpoints.random_weights else LICENCE_OFFICIAL,
        "provenance": {
            "checkpoints": {name: file.sha256 for name, file in checkpoints.files.items()},
            **({"form": "plain"} if plain else {}),
        },
        "random_weights": checkpoints.random_weights,
        "networks": {
            "unet": checkpoints.unet_config,
            "vae": checkpoints.vae_config,
            "wav2vec2": checkpoints.wav2vec2_config,
            "motion": asdict(own.motion),
            "guider": asdict(own.guider),
            "projection": asdict(own.projection),
        },
    }


def _provisional(checkpoints: Checkpoints, model: ModelConfig, plain: bool) -> Manifest:
    """A manifest without graphs, for opening engines on files that are not yet listed anywhere."""
    return Manifest(SCHEMA_VERSION, PRODUCER, model, graphs=(), files={}, **_description(checkpoints, plain))
