"""Making modules from state dicts, and the key layout that official checkpoints must have."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def materialise(build: Callable[[], Module], state: Mapping[str, Tensor]) -> Module:
    """`build()` with its weights taken from `state` without a copy, in evaluation mode and without gradients.

    Entries of `state` that the module does not have are ignored. Raises RuntimeError (from torch) that lists all keys
    that are missing or have another shape.
    """
    with torch.device("meta"):
        module = build()
    wanted = {key: state[key] for key in module.state_dict() if key in state}
    module.load_state_dict(wanted, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def module_shapes(build: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """{key: shape} of `build()`'s state dict, without allocating its weights."""
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}
