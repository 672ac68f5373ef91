// Python bindings of the native helpers: what NumPy cannot do fast.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

NB_MODULE(_native, m) {
    m.doc() = "Native helpers of the vexpress_trt runtime.";
}
