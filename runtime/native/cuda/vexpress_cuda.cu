// The C library over the kernels; see vexpress_cuda.h.
#define VEXPRESS_CUDA_BUILD
#include "vexpress_cuda.h"

#include <initializer_list>

#include "kernels.cu"

namespace {

constexpr Index kThreads = 256;
constexpr Index kMostColumns = 4096, kMostRows = 65535;  // blocks of a grid; what is beyond, their threads do in turn
constexpr Index kMostBytes = Index{1} << 48;             // of an array; so that no product of sizes overflows

// std::min would be a weak symbol that an unoptimized library shows.
Index least(Index one, Index other) {
    return one < other ? one : other;
}

// An array argument: where it lies, the bytes of an item (0: of an unknown type) and its sizes.
struct Array {
    const void *address;
    Index item;
    Index sizes[4];

    Array(const void *at, Index bytes, Index first = 1, Index second = 1, Index third = 1, Index fourth = 1)
        : address(at), item(bytes), sizes{first, second, third, fourth} {}

    bool fits() const {
        if (item < 1) return false;
        Index room = kMostBytes / item, count = 1;
        for (const Index size : sizes) {
            if (size < 0 || size > room) return false;
            room /= size > 0 ? size : 1;
            count *= size;
        }
        return count == 0 || (address && aligned(address, item));
    }
};

// Null, or `count` items.
Array optional(const void *address, Index bytes, Index count = 1) {
    return Array(address, bytes, address ? count : 0);
}

bool fit(std::initializer_list<Array> arrays) {
    for (const Array &array : arrays)
        if (!array.fits()) return false;
    return true;
}

Index bytes_of(vexpress_dtype dtype) {
    switch (dtype) {
        case VEXPRESS_FLOAT32: return 4;
        case VEXPRESS_FLOAT16:
        case VEXPRESS_BFLOAT16: return 2;
        case VEXPRESS_UINT8: return 1;
        default: return 0;
    }
}

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
    const dim3 grid(static_cast<unsigned>(least((columns + threads - 1) / threads, kMostColumns)),
                    static_cast<unsigned>(least(rows, kMostRows)));
    void *pointers[] = {&arguments...};
    return cudaLaunchKernel(reinterpret_cast<const void *>(kernel), grid, dim3(static_cast<unsigned>(threads)),
                            pointers, 0, static_cast<cudaStream_t>(stream));
}

// CUDA loads a kernel where its attributes are asked for.
template <typename... Kernels>
int load(Kernels *...kernels) {
    const void *const addresses[] = {reinterpret_cast<const void *>(kernels)...};
    for (const void *const address : addresses) {
        cudaFuncAttributes attributes;
        const cudaError_t error = cudaFuncGetAttributes(&attributes, address);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
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

#define VEXPRESS_REQUIRE(holds) \
    if (!(holds)) return cudaErrorInvalidValue

int vexpress_gather_latents(const float *ring, const int32_t *table, const int32_t *cursor, void *out, int64_t frames,
                            int64_t size, int64_t slots, vexpress_dtype out_dtype, void *stream) {
    VEXPRESS_REQUIRE(slots > 0 && fit({{ring, 4, slots, size},
                                       {table, 4, frames},
                                       {cursor, 4},
                                       {out, bytes_of(out_dtype), frames, size}}));
    VEXPRESS_LAUNCH_OF(out_dtype, gather_latents, frames, size, stream, ring, table, cursor, Pointer{out}, frames, size,
                       slots);
}

int vexpress_gather_rows(const void *ring, const int32_t *table, const int32_t *cursor, void *out, int64_t frames,
                         int64_t row_bytes, void *stream) {
    VEXPRESS_REQUIRE(fit({{ring, 1, row_bytes}, {table, 4, frames}, {cursor, 4}, {out, 1, frames, row_bytes}}));
    return launch(vx_gather_rows, frames, (row_bytes + 3) / 4, stream, ring, table, cursor, out, frames, row_bytes);
}

int vexpress_step_window(const void *prediction, vexpress_dtype prediction_dtype, int64_t halves, int64_t frames,
                         int64_t size, float *ring, float *pending, int64_t most, float *history, const int32_t *places,
                         const float *weights, const int32_t *cursor, int32_t *status, void *stream) {
    VEXPRESS_REQUIRE((halves == 1 || halves == 2) && most > 0 &&
                     fit({{prediction, bytes_of(prediction_dtype), halves, frames, size},
                          {ring, 4, frames, size},
                          {pending, 4, frames, most, size},
                          optional(history, 4, size),
                          {places, 4, frames, 4},
                          {weights, 4, 6},
                          {cursor, 4},
                          {status, 4}}));
    VEXPRESS_LAUNCH_OF(prediction_dtype, step_window, frames, size, stream, Pointer{prediction}, halves, frames, size,
                       ring, pending, most, history, Pointer{places}, Pointer{weights}, cursor, status);
}

int vexpress_advance(int32_t *cursor, void *stream) {
    VEXPRESS_REQUIRE(fit({{cursor, 4}}));
    return launch<1>(vx_advance, 1, 1, stream, cursor);
}

int vexpress_noise(float *out, uint64_t seed, uint32_t frame, int64_t size, void *stream) {
    VEXPRESS_REQUIRE(size <= Index{1} << 34 && fit({{out, 4, size}}));  // four values per 32-bit counter
    return launch(vx_noise, 1, (size + 3) / 4, stream, out, seed, frame, size);
}

int vexpress_unscale(const float *latents, float scaling, float *out, int64_t size, void *stream) {
    VEXPRESS_REQUIRE(fit({{latents, 4, size}, {out, 4, size}}));
    return launch(vx_unscale, 1, size, stream, latents, scaling, out, size);
}

int vexpress_median(const uint8_t *previous, const uint8_t *current, const uint8_t *next, uint8_t *out, int64_t height,
                    int64_t width, void *stream) {
    VEXPRESS_REQUIRE(fit({{previous, 1, height, width, 3},
                          {current, 1, height, width, 3},
                          {next, 1, height, width, 3},
                          {out, 1, height, width, 3}}));
    const bool in_place = out == previous || out == current || out == next;
    VEXPRESS_REQUIRE(height == 0 || width == 0 || !in_place);
    return launch(vx_median, height, 3 * width, stream, previous, current, next, out, height, width);
}

int vexpress_to_rgb8(const void *decoded, vexpress_dtype dtype, int64_t height, int64_t width, uint8_t *out,
                     int32_t *status, void *stream) {
    VEXPRESS_REQUIRE(fit({{decoded, bytes_of(dtype), 3, height, width}, {out, 1, height, width, 3},
                          optional(status, 4)}));
    VEXPRESS_LAUNCH_OF(dtype, to_rgb8, height, width, stream, Pointer{decoded}, out, height, width, status);
}

int vexpress_rgb_to_nv12(const uint8_t *rgb, uint8_t *out, int64_t height, int64_t width, void *stream) {
    VEXPRESS_REQUIRE(fit({{rgb, 1, height, width, 3}, {out, 1, height, width, 3}}));
    return launch(vx_rgb_to_nv12, (height + 1) / 2, (width + 1) / 2, stream, rgb, out, height, width);
}

int vexpress_draw_keypoints(const void *points, int points_float64, int64_t count, int64_t height, int64_t width,
                            void *out, vexpress_dtype out_dtype, void *stream) {
    VEXPRESS_REQUIRE(height <= INT32_MAX && width <= INT32_MAX &&
                     fit({{points, points_float64 ? 8 : 4, count, 3, 2},
                          {out, bytes_of(out_dtype), count, height, width, 3}}));
    if (width == 0) return cudaSuccess;
    return launch<guide::kThreads>(vx_draw_keypoints, count, height, stream, points, points_float64, out,
                                   out_dtype, count, height, width);
}

#define VEXPRESS_OF_EACH(kernel) vx_##kernel##_float32, vx_##kernel##_float16, vx_##kernel##_bfloat16

int vexpress_cuda_prepare(void) {
    return load(VEXPRESS_OF_EACH(gather_latents), VEXPRESS_OF_EACH(step_window), VEXPRESS_OF_EACH(to_rgb8),
                vx_gather_rows, vx_advance, vx_noise, vx_unscale, vx_median, vx_rgb_to_nv12, vx_draw_keypoints);
}

int vexpress_cuda_version(void) {
    return VEXPRESS_CUDA_VERSION;
}

const char *vexpress_cuda_error_string(int code) {
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}
