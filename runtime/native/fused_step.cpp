#include "fused_step.h"

namespace vexpress {

bool step_frame(const FrameStep<float> &frame, const StepWeights &weights, Index size) {
    bool finite = true;
    for (Index i = 0; i < size; ++i) finite &= step_element(frame, weights, size, i);
    return finite;
}

}  // namespace vexpress
