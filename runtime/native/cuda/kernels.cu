// The CUDA kernels: each is a function of a header that the CPU compiles too, over this thread's share of the work.
//
// Compiled as it is by NVRTC (runtime/cuda/nvrtc.py) and by nvcc for the C library (vexpress_cuda.cu). Multiply and add
// are rounded one by one (--fmad=false), as on the CPU: the results are the same bits.
#include "colour.h"
#include "guide_image.h"
#include "median_pixel.h"
#include "philox_noise.h"
#include "scheduled.h"

namespace {

using namespace vexpress;

__device__ __forceinline__ Share here() {
    return {blockIdx.y, gridDim.y, static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x,
            static_cast<Index>(gridDim.x) * blockDim.x};
}

}  // namespace

#define VEXPRESS_KERNEL extern "C" __global__ void

#define VEXPRESS_KERNELS_OF(dtype, Value)                                                                             \
    VEXPRESS_KERNEL vx_gather_latents_##dtype(const float *ring, const Int32 *table, const Int32 *cursor, Value *out, \
                                              Index frames, Index size, Index slots) {                                \
        gather_latents(here(), ring, table, cursor, out, frames, size, slots);                                        \
    }                                                                                                                 \
    VEXPRESS_KERNEL vx_step_window_##dtype(const Value *prediction, Index halves, Index frames, Index size,           \
                                           float *ring, float *pending, Index most, float *history,                   \
                                           const FramePlace *places, const StepWeights *weights, const Int32 *cursor, \
                                           Int32 *status) {                                                           \
        step_window(here(), prediction, halves, frames, size, ring, pending, most, history, places, weights, cursor,  \
                    status);                                                                                          \
    }                                                                                                                 \
    VEXPRESS_KERNEL vx_to_rgb8_##dtype(const Value *decoded, Byte *out, Index height, Index width, Int32 *status) {   \
        to_rgb8(here(), decoded, out, height, width, status);                                                         \
    }

VEXPRESS_KERNELS_OF(float32, float)
VEXPRESS_KERNELS_OF(float16, Float16)
VEXPRESS_KERNELS_OF(bfloat16, BFloat16)

VEXPRESS_KERNEL vx_gather_rows(const void *ring, const Int32 *table, const Int32 *cursor, void *out, Index frames,
                               Index row_bytes) {
    gather_rows(here(), ring, table, cursor, out, frames, row_bytes);
}

VEXPRESS_KERNEL vx_advance(Int32 *cursor) {
    ++*cursor;
}

VEXPRESS_KERNEL vx_noise(float *out, Word64 seed, Word32 frame, Index size) {
    frame_noise(here(), out, seed, frame, size);
}

VEXPRESS_KERNEL vx_unscale(const float *latents, float scaling, float *out, Index size) {
    unscale(here(), latents, scaling, out, size);
}

VEXPRESS_KERNEL vx_median(const Byte *previous, const Byte *current, const Byte *next, Byte *out, Index height,
                          Index width) {
    median_3x3x3(here(), previous, current, next, out, height, width);
}

VEXPRESS_KERNEL vx_rgb_to_nv12(const Byte *rgb, Byte *out, Index height, Index width) {
    rgb_to_nv12(here(), rgb, out, height, width);
}

VEXPRESS_KERNEL __launch_bounds__(guide::kThreads)
    vx_draw_keypoints(const void *points, Int32 wide, void *out, Int32 kind, Index count, Index height, Index width) {
    __shared__ guide::Polygon polygons[guide::kThreads];
    draw_keypoints(here(), points, wide, out, kind, count, height, width, polygons[threadIdx.x]);
}
