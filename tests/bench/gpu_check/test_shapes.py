"""Operations and bytes of a denoiser, which the GPU check counts from shapes."""

import pytest

pytest.importorskip("torch", reason="needs the export extra")

from vexpress_trt.bench.gpu_check.networks import MINI
from vexpress_trt.bench.gpu_check.shapes import count_bytes, count_flop

pytestmark = pytest.mark.usefixtures("one_thread")


def test_operations_are_counted_from_shapes_and_the_plain_network_has_more() -> None:
    networks, sizes = MINI.networks(), {"B": 1, "F": 2, "h": 8, "w": 8}
    exact, plain, longer = (
        count_flop(networks, {**sizes, "F": frames}, plain=plain)
        for frames, plain in ((2, False), (2, True), (4, False))
    )
    for kind in ("products", "attention"):
        assert 0 < exact[kind] < plain[kind]
    assert 0 < exact["convolutions"] == plain["convolutions"] == longer["convolutions"] / 2
    assert sum(longer.values()) > 1.9 * sum(exact.values())


def test_bytes_are_counted_from_shapes_and_the_fused_form_moves_fewer() -> None:
    networks, sizes = MINI.networks(), {"B": 1, "F": 2, "h": 8, "w": 8}
    fused, unfused = (count_bytes(networks, sizes, "fp16", fused=form) for form in (True, False))
    images, pixels, channels, size = 4, 8 * 8, 32, 2
    first = images * pixels * channels * size
    # Feed-forwards: six in the first level, five in the second with twice the channels and a quarter of the pixels.
    assert fused["gated_gelu"] == (8 + 4) * (6 * first + 5 * first // 2)
    assert fused["bias of a convolution"] < unfused["bias of a convolution"] / 3
    assert sum(fused.values()) < 0.6 * sum(unfused.values())
    assert sum(count_bytes(networks, sizes, "fp32", fused=True).values()) == pytest.approx(
        2 * sum(fused.values()), rel=0.02
    )
