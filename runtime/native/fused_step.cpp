#include "fused_step.h"

namespace vexpress {

bool step_frame(const FrameStep &frame, const StepWeights &weights, std::ptrdiff_t size) {
    bool finite = true;
    for (std::ptrdiff_t i = 0; i < size; ++i) finite &= step_element(frame, weights, size, i);
    return finite;
}

}  // namespace vexpress
