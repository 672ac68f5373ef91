// The C library over the kernels; see vexpress_cuda.h.
#define VEXPRESS_CUDA_BUILD
#include "vexpress_cuda.h"

#include <algorithm>

#include "kernels.cu"

namespace {

constexpr Index kThreads = 256;
constexpr Index kMostColumns = 4096, kMostRows = 65535;  // blocks of a grid; what is beyond, their threads do in turn

// A pointer that becomes one of whatever type a kernel takes.
struct Pointer {
    const void *address;
    template <typename Value>
    operator Value *() const {
        return static_cast<Value *>(const_cast<void *>(address));
    }
};

template <typename Value>
struct Same {
    using type = Value;
};

template <Index threads = kThreads, typename... Parameters>
int launch(void (*kernel)(Parameters...), Index rows, Index columns, void *stream,
           typename Same<Parameters>::type... arguments) {
    if (rows < 1 || columns < 1) return cudaSuccess;
    const dim3 grid(static_cast<unsigned>(std::min((columns + threads - 1) / threads, kMostColumns)),
                    static_cast<unsigned>(std::min(rows, kMostRows)));
    void *pointers[] = {&arguments...};
    return cudaLaunchKernel(reinterpret_cast<const void *>(kernel), grid, dim3(static_cast<unsigned>(threads)),
                            pointers, 0, static_cast<cudaStream_t>(stream));
}

}  // namespace

#define VEXPRESS_LAUNCH_OF(dtype, kernel, ...)                                      \
    switch (dtype) {                                                                \
        case VEXPRESS_FLOAT32: return launch(vx_##kernel##_float32, __VA_ARGS__);   \
        case VEXPRESS_FLOAT16: return launch(vx_##kernel##_float16, __VA_ARGS__);   \
        case VEXPRESS_BFLOAT16: return launch(vx_##kernel##_bfloat16, __VA_ARGS__); \
        default: break;                                                             \
    }                                                                               \
    return cudaErrorInvalidValue

int vexpress_gather_latents(const float *ring, const int32_t *table, const int32_t *cursor, void *out, int64_t frames,
                            int64_t size, int64_t slots, vexpress_dtype out_dtype, void *stream) {
    VEXPRESS_LAUNCH_OF(out_dtype, gather_latents, frames, size, stream, ring, table, cursor, Pointer{out}, frames, size,
                       slots);
}

int vexpress_gather_rows(const void *ring, const int32_t *table, const int32_t *cursor, void *out, int64_t frames,
                         int64_t row_bytes, void *stream) {
    return launch(vx_gather_rows, frames, (row_bytes + 3) / 4, stream, ring, table, cursor, out, frames, row_bytes);
}

int vexpress_step_window(const void *prediction, vexpress_dtype prediction_dtype, int64_t halves, int64_t frames,
                         int64_t size, float *ring, float *pending, int64_t most, float *history, const int32_t *places,
                         const float *weights, const int32_t *cursor, int32_t *status, void *stream) {
    VEXPRESS_LAUNCH_OF(prediction_dtype, step_window, frames, size, stream, Pointer{prediction}, halves, frames, size,
                       ring, pending, most, history, Pointer{places}, Pointer{weights}, cursor, status);
}

int vexpress_advance(int32_t *cursor, void *stream) {
    void *pointers[] = {&cursor};
    return cudaLaunchKernel(reinterpret_cast<const void *>(vx_advance), dim3(1), dim3(1), pointers, 0,
                            static_cast<cudaStream_t>(stream));
}

int vexpress_noise(float *out, uint64_t seed, uint32_t frame, int64_t size, void *stream) {
    return launch(vx_noise, 1, (size + 3) / 4, stream, out, seed, frame, size);
}

int vexpress_unscale(const float *latents, float scaling, float *out, int64_t size, void *stream) {
    return launch(vx_unscale, 1, size, stream, latents, scaling, out, size);
}

int vexpress_median(const uint8_t *previous, const uint8_t *current, const uint8_t *next, uint8_t *out, int64_t height,
                    int64_t width, void *stream) {
    return launch(vx_median, height, 3 * width, stream, previous, current, next, out, height, width);
}

int vexpress_to_rgb8(const void *decoded, vexpress_dtype dtype, int64_t height, int64_t width, uint8_t *out,
                     int32_t *status, void *stream) {
    VEXPRESS_LAUNCH_OF(dtype, to_rgb8, height, width, stream, Pointer{decoded}, out, height, width, status);
}

int vexpress_rgb_to_nv12(const uint8_t *rgb, uint8_t *out, int64_t height, int64_t width, void *stream) {
    return launch(vx_rgb_to_nv12, (height + 1) / 2, (width + 1) / 2, stream, rgb, out, height, width);
}

int vexpress_draw_keypoints(const void *points, int points_float64, int64_t count, int64_t height, int64_t width,
                            void *out, vexpress_dtype out_dtype, void *stream) {
    if (out_dtype < VEXPRESS_FLOAT32 || out_dtype > VEXPRESS_UINT8) return cudaErrorInvalidValue;
    return launch<guide::kThreads>(vx_draw_keypoints, count, height, stream, points, points_float64, out,
                                   static_cast<Int32>(out_dtype), count, height, width);
}

const char *vexpress_cuda_error_string(int code) {
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}
