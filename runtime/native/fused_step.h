// Guidance, mean over overlapping windows and the solver's step of one frame, in one pass and in float32.
//
// A frame is stepped when the last of the windows that contain it has been predicted. Until then a window's share waits
// in `pending`; shares are added in window order, whatever order they came in.
#pragma once

#include <cmath>
#include <cstddef>

#if defined(__CUDACC__)
#define VEXPRESS_INLINE __host__ __device__ __forceinline__
#else
#define VEXPRESS_INLINE inline
#endif

namespace vexpress {

// next = sample * x + prediction * v + history * h, with x the frame's latent, v the mean of its windows' predictions and
// h the noise-free latent signal * x - noise * v of the step before.
struct StepWeights {
    float guidance;
    float sample;
    float prediction;
    float history;
    float signal;
    float noise;
};

struct FrameStep {
    const float *unconditional;  // null: the conditional prediction is taken as it is
    const float *conditional;
    float *sample;   // stepped in place when `complete`
    float *history;  // null where the solver needs none
    float *pending;  // [windows, size]: one share per window that contains the frame
    int windows;
    int rank;  // this window's place among them
    bool complete;
};

VEXPRESS_INLINE float guided(const FrameStep &frame, float guidance, std::ptrdiff_t i) {
    const float conditional = frame.conditional[i];
    if (!frame.unconditional) return conditional;
    const float unconditional = frame.unconditional[i];
    return unconditional + guidance * (conditional - unconditional);
}

// Element i; returns whether the prediction there is finite.
VEXPRESS_INLINE bool step_element(const FrameStep &frame, const StepWeights &weights, std::ptrdiff_t size,
                                  std::ptrdiff_t i) {
    const float prediction = guided(frame, weights.guidance, i);
    const float share = prediction / static_cast<float>(frame.windows);
    if (frame.complete) {
        float mean = frame.rank == 0 ? share : frame.pending[i];
        for (int window = 1; window < frame.windows; ++window)
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
    return std::fabs(prediction) <= 3.4028234664e38f;  // false for NaN too
}

// All elements of one frame, on the CPU; returns whether every prediction is finite.
bool step_frame(const FrameStep &frame, const StepWeights &weights, std::ptrdiff_t size);

}  // namespace vexpress
