#include "median.h"

namespace vexpress::avx2 {
#include "median_kernel.h"
}
