"""What is in a bundle, read from its manifest and the structure of its graphs; no weights are loaded."""

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.manifest import GraphSpec, is_reference_tensor
from vexpress_trt.engines.onnx_files import external_location, load_structure

_COMMON_OPS = 6
_FLOATING = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Everything `vexpress inspect` shows, ready for JSON.

    Per graph: bindings, files, parameters (elements of floating-point initializers), nodes, operator set, the most
    frequent operators and the parity that the exporter measured. Raises UserError when a graph is not readable.
    """
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.root),
        "producer": manifest.producer,
        "schema_version": manifest.schema_version,
        "licence": manifest.licence,
        "random_weights": manifest.random_weights,
        "bytes": sum(record.size for record in manifest.files.values()),
        "model": asdict(manifest.model),
        "scheduler": asdict(manifest.scheduler),
        "precisions": list(bundle.precisions),
        "graphs": [_describe_graph(bundle, spec) for spec in manifest.graphs],
        "files": {path: record.size for path, record in manifest.files.items()},
        "provenance": manifest.provenance,
        "networks": sorted(manifest.networks),
    }


def format_description(description: dict[str, Any]) -> str:
    """The description as text for a terminal."""
    model = description["model"]
    weights = "random weights" if description["random_weights"] else "weights from checkpoints"
    size = f"{model['image_width']} x {model['image_height']} pixels"
    lines = [
        f"{description['bundle']}: {_size(description['bytes'])}, {weights}, by {description['producer']}",
        f"licence: {description['licence']}",
        f"made for {size}, windows of {model['context_frames']} frames (up to {model['max_context_frames']})",
        f"precisions: {', '.join(description['precisions'])}",
    ]
    for graph in description["graphs"]:
        lines += ["", *_graph_lines(graph)]
    lines += ["", "files"]
    width = max((len(path) for path in description["files"]), default=0)
    lines += [f"  {path:<{width}}  {_size(size):>9}" for path, size in description["files"].items()]
    checkpoints = description["provenance"].get("checkpoints", {})
    if isinstance(checkpoints, dict) and checkpoints:
        lines += ["", "made from"]
        width = max(map(len, checkpoints))
        lines += [f"  {name:<{width}}  sha256 {str(digest)[:16]}" for name, digest in checkpoints.items()]
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    """What a bundle says of itself, without the characters by which it could command the terminal."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in line)


def _describe_graph(bundle: Bundle, spec: GraphSpec) -> dict[str, Any]:
    import onnx

    model = load_structure(bundle, spec)
    floating = {onnx.TensorProto.DataType.Value(name) for name in _FLOATING}
    weights = [tensor for tensor in model.graph.initializer if tensor.data_type in floating]
    operators = Counter(node.op_type for node in model.graph.node)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    return {
        "name": spec.name,
        "precision": spec.precision,
        "path": spec.path,
        "inputs": [asdict(tensor) for tensor in spec.inputs],
        "outputs": [asdict(tensor) for tensor in spec.outputs],
        "files": list(spec.files),
        "parameters": sum(math.prod(tensor.dims) for tensor in weights),
        "external_weights": sum(external_location(tensor) is not None for tensor in weights),
        "opset": opset,
        "nodes": len(model.graph.node),
        "common_ops": dict(operators.most_common(_COMMON_OPS)),
        "parity": spec.parity,
    }


def _graph_lines(graph: dict[str, Any]) -> list[str]:
    operators = ", ".join(f"{name} {count}" for name, count in graph["common_ops"].items())
    lines = [
        f"{graph['name']} {graph['precision']}: {_count(graph['parameters'])} parameters, {graph['nodes']} nodes "
        f"(opset {graph['opset']}): {operators}",
        *_binding_lines("in ", graph["inputs"]),
        *_binding_lines("out", graph["outputs"]),
    ]
    parity = graph["parity"]
    if parity and isinstance(parity.get("snr_db"), (int, float)):
        worst = f", largest error {parity['max_abs']:.2g}" if isinstance(parity.get("max_abs"), (int, float)) else ""
        lines.append(f"  {parity['snr_db']:.0f} dB to the torch module on {parity.get('backend', '?')}{worst}")
    return lines


def _binding_lines(side: str, tensors: list[dict[str, Any]]) -> list[str]:
    """One line per tensor; what goes from the reference to the denoiser is one line."""
    pairs = [tensor for tensor in tensors if is_reference_tensor(tensor["name"])]
    lines = [f"  {side} {_binding(tensor)}" for tensor in tensors if tensor not in pairs]
    if pairs:
        first, last = pairs[0], pairs[-1]
        lines.append(f"  {side} {first['name']} ... {last['name']}: {len(pairs)} tensors, first {_shape(first)}")
    return lines


def _binding(tensor: dict[str, Any]) -> str:
    return f"{tensor['name']}: {_shape(tensor)}"


def _shape(tensor: dict[str, Any]) -> str:
    return f"{tensor['dtype']} [{', '.join(map(str, tensor['shape']))}]"


def _size(count: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def _count(number: int) -> str:
    for unit, scale in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}".replace(" ", "")
    return str(number)
