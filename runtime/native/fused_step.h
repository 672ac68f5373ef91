// Guidance, mean over overlapping windows and the solver's step of one frame, in one pass and in float32.
//
// A frame is stepped when the last of the windows that contain it has been predicted. Until then a window's share waits
// in `pending`; shares are added in window order, whatever order they came in.
#pragma once

#include "small_floats.h"

namespace vexpress {

// next = sample * x + prediction * v + history * h, with x the frame's latent, v the mean of its windows' predictions
// and h the noise-free latent signal * x - noise * v of the step before.
struct StepWeights {
    float guidance;
    float sample;
    float prediction;
    float history;
    float signal;
    float noise;
};

template <typename Value>  // of the predictions: float, Float16 or BFloat16
struct FrameStep {
    const Value *unconditional;  // null: the conditional prediction is taken as it is
    const Value *conditional;
    float *sample;   // stepped in place when `complete`
    float *history;  // null where the solver needs none
    float *pending;  // [windows, size]: one share per window that contains the frame
    Int32 windows;
    Int32 rank;  // this window's place among them
    bool complete;
};

template <typename Value>
VEXPRESS_INLINE float guided(const FrameStep<Value> &frame, float guidance, Index i) {
    const float conditional = widened(frame.conditional[i]);
    if (!frame.unconditional) return conditional;
    const float unconditional = widened(frame.unconditional[i]);
    return unconditional + guidance * (conditional - unconditional);
}

// Element i; returns whether the prediction there is finite.
template <typename Value>
VEXPRESS_INLINE bool step_element(const FrameStep<Value> &frame, const StepWeights &weights, Index size, Index i) {
    const float prediction = guided(frame, weights.guidance, i);
    const float share = prediction / static_cast<float>(frame.windows);
    if (frame.complete) {
        float mean = frame.rank == 0 ? share : frame.pending[i];
        for (Int32 window = 1; window < frame.windows; ++window)
            mean += window == frame.rank ? share : frame.pending[window * size + i];
        const float sample = frame.sample[i];
        float next = weights.sample * sample + weights.prediction * mean;
        if (frame.history) {
            if (weights.history != 0.0f) next += weights.history * frame.history[i];
            frame.history[i] = weights.signal * sample - weights.noise * mean;
        }
        frame.sample[i] = next;
    } else {
        frame.pending[frame.rank * size + i] = share;
    }
    return is_finite(prediction);
}

#if !defined(__CUDACC__)
// All elements of one frame, on the CPU; returns whether every prediction is finite.
bool step_frame(const FrameStep<float> &frame, const StepWeights &weights, Index size);
#endif

}  // namespace vexpress
