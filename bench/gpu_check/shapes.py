"""What one denoiser call computes and what its passes between products move, by shapes alone: nothing is allocated."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from vexpress_trt.bench.gpu_check.networks import TORCH, arguments, denoiser, denoiser_spec
from vexpress_trt.engines.dims import evaluate
from vexpress_trt.export.nets.configs import NetworkConfigs
from vexpress_trt.export.nets.fused import operations
from vexpress_trt.export.nets.fused.denoiser import FusedDenoiser

_PASSES = ("add_rows", "group_norm", "add_group_norm", "layer_norm", "add_layer_norm", "gated_gelu")
_PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "convolution"}
# {counted operation: its kind}; without a device an attention is two products of batches, which are nothing else here
_KIND = {"mm": "products", "addmm": "products", "convolution": "convolutions", "bmm": "attention"}
_FREE = {"_unsafe_view", "detach", "empty", "new_empty"}


def count_flop(networks: NetworkConfigs, sizes: dict[str, int], *, plain: bool) -> dict[str, int]:
    """{kind: operations} of a guided call, two for each multiply-add."""
    from torch.utils.flop_counter import FlopCounterMode

    module, given = _on_meta(networks, sizes, "fp32", plain=plain)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*given)
    kinds = dict.fromkeys(("products", "convolutions", "attention"), 0)
    for operation, count in counter.get_flop_counts()["Global"].items():
        kinds[_KIND[operation.__name__]] += count
    return kinds


def count_bytes(networks: NetworkConfigs, sizes: dict[str, int], precision: str, *, fused: bool) -> dict[str, int]:
    """{kind of pass: bytes read and written} in a guided call, without products, convolutions and attentions.

    A pass reads each of its tensors once, a group norm those that it takes statistics of twice; the bias of a
    convolution is a pass, as torch has it on a GPU. Changes of layout inside of libraries are not seen.
    """
    module, given = _on_meta(networks, sizes, precision)
    module = FusedDenoiser(module) if fused else module
    traffic = _Traffic()
    with torch.no_grad(), traffic.watched():
        module(*given)
    return dict(traffic.bytes.most_common())


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of what passes torch's dispatcher, and of the fused form's operations as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = Counter[str]()
        self._inside = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name in _PASSES:
                stack.enter_context(mock.patch.object(operations, name, self._operation(getattr(operations, name))))
            temporal = self._apart(operations.temporal_attention)
            stack.enter_context(mock.patch.object(operations, "temporal_attention", temporal))
            stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _attention))
            stack.enter_context(self)
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        result = func(*args, **kwargs)
        if self._inside or func.is_view or name in _FREE:
            return result
        if name == "convolution":
            self.bytes["bias of a convolution"] += 2 * _bytes(result) if args[2] is not None else 0
            if args[0].is_contiguous(memory_format=torch.channels_last):
                return torch.empty_like(result, memory_format=torch.channels_last)  # tensors without a device forget it
        elif name not in _PRODUCTS:
            read = args[1:] if name == "copy_" else args
            twice = _bytes(args[0]) if name == "native_group_norm" else 0
            self.bytes[name] += _bytes(read) + twice + _bytes(result)
        return result

    def _operation(self, plain: Callable) -> Callable:
        def as_kernels_give(rows: Tensor, *given: Any, **named: Any) -> Any:
            return tree_map(torch.Tensor.contiguous, plain(rows, *given, **named))

        apart, name = self._apart(as_kernels_give), plain.__name__

        def operation(rows: Tensor, *given: Any, **named: Any) -> Any:
            results = apart(rows, *given, **named)
            if not self._inside:
                named.pop("out", None)
                twice = {"group_norm": rows, "add_group_norm": results[0]}.get(name)
                self.bytes[name] += _bytes((rows, given, named, results, twice))
            return results

        return operation

    def _apart(self, work: Callable) -> Callable:
        def unseen(*given: Any, **named: Any) -> Any:
            before, self._inside = self._inside, True
            try:
                return work(*given, **named)
            finally:
                self._inside = before

        return unseen


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What fused attentions give, [N, heads, T, D], heads of a token side by side."""
    count, heads, tokens, _ = query.shape
    return query.new_empty(count, tokens, heads, value.shape[-1]).transpose(1, 2)


def _bytes(values: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _on_meta(
    networks: NetworkConfigs, sizes: dict[str, int], precision: str, *, plain: bool = False
) -> tuple[nn.Module, list[object]]:
    """A guided denoiser without memory, and arguments for it."""
    spec = denoiser_spec(networks, guided=True, precision=precision, plain=plain)
    with torch.device("meta"):
        module = denoiser(networks, guided=True, plain=plain).to(TORCH[precision]).requires_grad_(False)
        given = {
            tensor.name: torch.empty(
                [evaluate(dimension, sizes) for dimension in tensor.shape], dtype=getattr(torch, tensor.dtype)
            )
            for tensor in spec.inputs
        }
    return module, arguments(spec, given)
