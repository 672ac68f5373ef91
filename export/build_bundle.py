"""Checkpoints to a bundle: every graph in every asked precision, checked against the torch modules."""

import logging
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from vexpress_trt.engines.bundle import Bundle, BundleWriter, write_bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import PRECISION_DTYPE, GraphSpec, Manifest, ModelConfig, Precision, SchedulerConfig
from vexpress_trt.engines.verify import ParityResult, vector_inputs, vector_path, verify_bundle, write_vectors
from vexpress_trt.export.checkpoints import Checkpoints
from vexpress_trt.export.graphs import LATENT_CHANNELS, Graph, graphs
from vexpress_trt.export.onnx_export import TORCH_DTYPES, export_onnx
from vexpress_trt.export.weight_file import WeightFile, weight_file

log = logging.getLogger("vexpress")
AUDIO_SAMPLE_RATE = 16_000
PRODUCER = "vexpress-trt"
LICENCE_OFFICIAL = "weights of V-Express, published by their authors for non-commercial research only"
LICENCE_RANDOM = "random weights, no rights are claimed"

# What checks a precision on the CPU: onnxruntime is the numeric reference, but cannot run BF16 convolutions.
PARITY_BACKEND = {"fp32": "onnxruntime", "fp16": "onnxruntime", "bf16": "openvino"}


@dataclass(frozen=True)
class ExportedGraph:
    """How long one graph took and what it weighs."""

    graph: str
    precision: str
    seconds: float
    graph_bytes: int


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
    precisions: tuple[Precision, ...] = ("fp32", "fp16"),
    image_width: int = 512,
    image_height: int = 512,
    context_frames: int = 24,
    force: bool = False,
) -> ExportReport:
    """Export all graphs and write the bundle; it appears at `target` only when every graph passed its parity check.

    A bundle of the same checkpoints at `target` keeps its other precisions; anything else there is refused unless
    `force` replaces it. Sizes are the defaults that `generate` uses; the graphs themselves run at any size.

    Raises UserError for sizes the model cannot have, a target in the way, and a graph that fails its check.
    """
    model = _model_config(checkpoints, image_width, image_height, context_frames)
    keep = _previous(Path(target), checkpoints, model, force)
    with write_bundle(target, keep=keep) as writer:
        exported, specs = _export_graphs(checkpoints, writer, precisions)
        _finish(writer, checkpoints, model, specs)
        parity = _check(Bundle(writer.root, writer.manifest), precisions)
        by_graph = {(result.graph, result.precision): result for result in parity}
        checked = tuple(replace(spec, parity=asdict(by_graph[spec.name, spec.precision])) for spec in specs)
        manifest = _finish(writer, checkpoints, model, checked)
    return ExportReport(exported, parity, sum(record.size for record in manifest.files.values()))


def _export_graphs(
    checkpoints: Checkpoints, writer: BundleWriter, precisions: tuple[Precision, ...]
) -> tuple[tuple[ExportedGraph, ...], tuple[GraphSpec, ...]]:
    exported: list[ExportedGraph] = []
    specs: list[GraphSpec] = []
    producer = f"{PRODUCER} {metadata.version('vexpress-trt')}"
    with ExitStack() as stack:
        weights: dict[str, WeightFile] = {}
        for graph in graphs(checkpoints):
            vectors = vector_path(graph.name)
            _write_vectors(graph, checkpoints, writer.path(vectors))
            for precision in precisions:
                began = perf_counter()
                spec = graph.spec(precision, files=(vectors,))
                path, data = writer.path(spec.path), writer.path(spec.files[1])
                if str(data) not in weights:
                    weights[str(data)] = stack.enter_context(weight_file(data))
                module = _module(graph, checkpoints, PRECISION_DTYPE[precision])
                arguments = graph.arguments(_tensors(spec, graph))
                export_onnx(module, spec, arguments, path, weights[str(data)], producer=producer)
                del module
                seconds = perf_counter() - began
                exported.append(ExportedGraph(graph.name, precision, round(seconds, 2), path.stat().st_size))
                specs.append(spec)
                log.info(f"exported {graph.name} {precision} in {seconds:.1f} s")
    return tuple(exported), tuple(specs)


def _write_vectors(graph: Graph, checkpoints: Checkpoints, path: Path) -> None:
    """Outputs of the FP32 module on the graph's test inputs: what every engine is compared with."""
    spec = graph.spec("fp32")
    module = _module(graph, checkpoints, "float32")
    with torch.inference_mode():
        outputs = module(*graph.arguments(_tensors(spec, graph)))
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    named = {tensor.name: output.numpy() for tensor, output in zip(spec.outputs, outputs, strict=True)}
    write_vectors(path, graph.sizes, named)


def _module(graph: Graph, checkpoints: Checkpoints, dtype: str) -> nn.Module:
    return graph.build(checkpoints).to(TORCH_DTYPES[dtype])


def _tensors(spec: GraphSpec, graph: Graph) -> list[torch.Tensor]:
    """The graph's test inputs as torch tensors, in the order of its inputs."""
    return [_tensor(array) for array in vector_inputs(spec, graph.sizes).values()]


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":  # unknown to torch.from_numpy
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _check(bundle: Bundle, precisions: tuple[Precision, ...]) -> tuple[ParityResult, ...]:
    """Compare every new graph with its module. Raises UserError that names those that differ."""
    results: list[ParityResult] = []
    for precision in precisions:
        results += verify_bundle(bundle, PARITY_BACKEND[precision], precision, report=_log_parity)
    failed = [f"{result.graph} {result.precision} ({result.snr_db:.1f} dB)" for result in results if not result.passed]
    if failed:
        raise UserError(f"the export differs from the torch modules in {', '.join(failed)}: no bundle was written.")
    return tuple(results)


def _log_parity(result: ParityResult) -> None:
    log.info(
        f"checked {result.graph} {result.precision} on {result.backend}: {result.snr_db:.1f} dB, largest error "
        f"{result.max_abs:.2g}"
    )


def _finish(
    writer: BundleWriter, checkpoints: Checkpoints, model: ModelConfig, specs: tuple[GraphSpec, ...]
) -> Manifest:
    return writer.finish(
        producer=f"{PRODUCER} {metadata.version('vexpress-trt')}",
        model=model,
        graphs=specs,
        scheduler=SchedulerConfig(),
        licence=LICENCE_RANDOM if checkpoints.random_weights else LICENCE_OFFICIAL,
        provenance=_provenance(checkpoints),
        networks=_networks(checkpoints),
        random_weights=checkpoints.random_weights,
    )


def _provenance(checkpoints: Checkpoints) -> dict[str, Any]:
    """Names and hashes of the checkpoint files."""
    return {"checkpoints": {name: record.sha256 for name, record in checkpoints.files.items()}}


def _networks(checkpoints: Checkpoints) -> dict[str, dict[str, Any]]:
    """What rebuilds the torch modules: the checkpoints' own configurations and the sizes read off the weights."""
    own = checkpoints.networks
    return {
        "unet": checkpoints.unet_config,
        "vae": checkpoints.vae_config,
        "wav2vec2": checkpoints.wav2vec2_config,
        "motion": asdict(own.motion),
        "guider": asdict(own.guider),
        "projection": asdict(own.projection),
    }


def _model_config(checkpoints: Checkpoints, width: int, height: int, context_frames: int) -> ModelConfig:
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


def _previous(target: Path, checkpoints: Checkpoints, model: ModelConfig, force: bool) -> Bundle | None:
    """The bundle at `target` to add to, or None to write a new one. Raises UserError for anything else in the way."""
    if force or not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    bundle = Bundle.open(target)
    same = bundle.manifest.provenance.get("checkpoints") == _provenance(checkpoints)["checkpoints"]
    if not same or bundle.manifest.model != model:
        difference = "other settings" if same else "other checkpoints"
        raise UserError(f"{target} is a bundle of {difference}: choose another name, or replace it with --force.")
    return bundle
