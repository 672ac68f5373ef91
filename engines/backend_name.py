"""The name of a backend with the number of a GPU behind it: "torch-cuda:1" is torch on the second one."""

from vexpress_trt.engines.errors import UserError

PLANNED = ("tensorrt", "tensorrt-rtx")  # the kinds that run what `vexpress build` has made


def split_backend(name: str) -> tuple[str, int | None]:
    """A backend's kind and its GPU's number, which is None where the name has none.

    Raises UserError where what stands behind the colon is no number.
    """
    kind, colon, number = name.partition(":")
    if not colon:
        return kind, None
    if not number.isdecimal():
        raise UserError(f"there is no backend {name!r}: the number of a GPU stands behind a colon")
    return kind, int(number)


def on_gpu(kind: str, gpu: int) -> str:
    """The name of a backend on the GPU of this number."""
    return f"{kind}:{gpu}" if gpu else kind
