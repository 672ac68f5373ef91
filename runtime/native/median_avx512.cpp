#include "median.h"

namespace vexpress::avx512 {
#include "median_kernel.h"
}
