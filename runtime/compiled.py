"""The C++ part of the runtime, see runtime/native/."""

from types import ModuleType

from vexpress_trt.engines.errors import UserError


def native_module() -> ModuleType:
    """The compiled module. Raises UserError where it is missing or does not load."""
    try:
        from vexpress_trt.runtime import _native
    except ImportError as error:
        raise UserError(
            f"the native module vexpress_trt.runtime._native does not load ({error}): "
            "reinstall the package where a C++17 compiler is present (pip install .)"
        ) from error
    return _native
