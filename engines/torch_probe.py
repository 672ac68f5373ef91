"""The inside of a graph as torch computes it: outputs of the modules of the plain network, as far as they are tensors
of the graph."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.inside import Inside, Side
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.module_outputs import ModuleOutput
from vexpress_trt.engines.torch_cuda_engine import TorchDeviceEngine

if TYPE_CHECKING:
    import torch


class TorchModules(Inside):
    """torch on the CPU or a GPU: convolutions, linear layers and norms give what they return; nothing is fused.

    A tensor counts as a module's output where a node reads the module's weight (see `module_outputs`), its shape is
    known and the same, and the module is called once in a run.
    """

    def __init__(
        self, bundle: Bundle, spec: GraphSpec, side: Side, sizes: Mapping[str, int], threads: int | None
    ) -> None:
        super().__init__(bundle, spec, side, sizes)
        self._threads = threads
        own, modules = self.own_outputs(), self.probe.module_outputs
        told = {tensor.name: tensor.sized(sizes) for tensor in self.all if tensor.name in modules}
        self._shapes = {name: shape for name, shape in told.items() if shape is not None and name not in own}
        self.tensors = tuple(tensor for tensor in self.all if tensor.name in own or tensor.name in self._shapes)

    def run(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        modules = self.probe.module_outputs
        wanted = {name: modules[name] for name in names if name in self._shapes}
        with _Observed(
            self.bundle, self.spec, backend=self.side.backend, threads=self._threads, dtype=self.side.dtype, fused=False
        ) as engine:
            with engine.observe(wanted) as seen:
                outputs = self.outputs_of(engine)
            return outputs | {name: array for name, array in seen.items() if array.shape == self._shapes[name]}


class _Observed(TorchDeviceEngine):
    """An engine whose modules can be listened to."""

    @contextmanager
    def observe(self, wanted: Mapping[str, ModuleOutput]) -> Iterator[dict[str, np.ndarray]]:
        """{name: what its module returned, float32}, filled while the context lasts by a run; without modules that are
        called again. What is not wanted of a module's output is not kept."""
        seen: dict[str, np.ndarray] = {}
        calls: Counter[str] = Counter()

        def keep(module: str) -> Callable[..., None]:
            pieces = {name: output for name, output in wanted.items() if output.module == module}

            def hook(_module: Any, _inputs: Any, returned: "torch.Tensor") -> None:
                calls[module] += 1
                for name, output in pieces.items():
                    if calls[module] == 1:
                        piece = returned.chunk(output.pieces, dim=-1)[output.piece]
                        seen[name] = np.array(piece.detach().float().cpu().numpy())
                    else:
                        seen.pop(name, None)

            return hook

        names = dict.fromkeys(output.module for output in wanted.values())
        hooks = [self._module.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()
