"""What a part of the GPU check finds fault with."""

import pytest

from vexpress_trt.bench.gpu_check.parts import CheckFailed, Faults, Skipped


def test_one_fault_does_not_end_a_part() -> None:
    found = Faults()
    with found.of("first"):
        raise CheckFailed("too slow")
    with found.of("second"):
        raise ZeroDivisionError("by zero")
    with pytest.raises(CheckFailed, match="^first: too slow; second: ZeroDivisionError: by zero$"):
        found.tell()
    with pytest.raises(Skipped), found.of("third"):
        raise Skipped("nothing there")
