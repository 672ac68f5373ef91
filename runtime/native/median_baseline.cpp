#include "median.h"

namespace vexpress::baseline {
#include "median_kernel.h"
}
