/* The kernels of the denoising loop for C and C++ hosts: the library vexpress_cuda.
 *
 * Every function but the last three enqueues one kernel on `stream` (a cudaStream_t, null for the default stream) and
 * returns at once: nothing waits, copies or allocates, and all can be captured into a CUDA graph. Only the first use of
 * a kernel on a GPU may do that, where CUDA loads it; vexpress_cuda_prepare loads all beforehand.
 *
 * Device: the calling thread's current one (cudaSetDevice), to which stream and arrays belong. The library keeps no
 * state of its own, so that every function may be called by several threads at once; who writes to an array that others
 * use orders that by streams and events, as with any kernel.
 *
 * Arrays: pointers to memory that the GPU reaches, C-contiguous, aligned to their element (one of bytes needs none).
 * They stay the caller's, and have to last until the enqueued work is done. The gathers read 16 bytes at once where
 * pointers and rows are multiples of 16 bytes. No array overlaps another unless that is said. What lies on the device
 * (cursor, table, places) is not checked unless that is said: it has to be within the arrays.
 *
 * Errors: 0, or a cudaError_t, which vexpress_cuda_error_string puts into words. An argument that cannot be right is
 * cudaErrorInvalidValue (1), and nothing is enqueued: null where null is not allowed, a pointer that is not aligned, a
 * type that the function does not take, a negative size, an array above 2^48 bytes. Without elements there is nothing
 * to do: 0. A GPU for which the library was not built is cudaErrorNoKernelImageForDevice (209). What goes wrong while a
 * kernel runs is told by CUDA later, where the stream is waited for or by any call after it.
 *
 * The schedule of a clip is known before it starts, so that it lies on the device in tables with one row per call, and
 * `cursor`, an int32 on the device, is the number of the call. The enqueued work of all calls is then alike:
 * gather, the denoiser, step, advance. Latents are float32.
 */
#ifndef VEXPRESS_CUDA_H
#define VEXPRESS_CUDA_H

#include <stdint.h>

/* The version of this header, as vexpress_cuda_version gives the library's. Before 1.0 functions may change with the
 * second number, and the name of the shared library with it; the third one changes none. */
#define VEXPRESS_CUDA_VERSION_MAJOR 0
#define VEXPRESS_CUDA_VERSION_MINOR 1
#define VEXPRESS_CUDA_VERSION_PATCH 0
#define VEXPRESS_CUDA_VERSION \
    (VEXPRESS_CUDA_VERSION_MAJOR * 10000 + VEXPRESS_CUDA_VERSION_MINOR * 100 + VEXPRESS_CUDA_VERSION_PATCH)

#if defined(VEXPRESS_CUDA_STATIC)
#define VEXPRESS_API
#elif defined(_WIN32)
#if defined(VEXPRESS_CUDA_BUILD)
#define VEXPRESS_API __declspec(dllexport)
#else
#define VEXPRESS_API __declspec(dllimport)
#endif
#else
#define VEXPRESS_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The type of an array's elements, one of the values below; more may be added. */
typedef int32_t vexpress_dtype;
enum {
    VEXPRESS_FLOAT32 = 0,
    VEXPRESS_FLOAT16 = 1,
    VEXPRESS_BFLOAT16 = 2,
    VEXPRESS_UINT8 = 3 /* of guide images only */
};

/* out [frames, size] of out_dtype: rows table[*cursor] of ring [slots, size], rounded to the nearest value, ties to
 * even. out_dtype: float32, float16 or bfloat16. table: int32 [calls, frames]. slots: at least 1. A slot that the ring
 * does not have gives NaN. */
VEXPRESS_API int vexpress_gather_latents(const float *ring, const int32_t *table, const int32_t *cursor, void *out,
                                         int64_t frames, int64_t size, int64_t slots, vexpress_dtype out_dtype,
                                         void *stream);

/* out [frames, row_bytes]: rows table[*cursor] of ring [slots, row_bytes], bytes as they are. table: int32
 * [calls, frames], slots that the ring has. */
VEXPRESS_API int vexpress_gather_rows(const void *ring, const int32_t *table, const int32_t *cursor, void *out,
                                      int64_t frames, int64_t row_bytes, void *stream);

/* Guidance, mean over overlapping windows and solver step of the window that call *cursor predicted, in place.
 *
 * prediction [halves, frames, size] in float32, float16 or bfloat16: one half or two, the first of two is the
 *   unconditional one.
 * ring float32 [slots, size]: the latents; history float32 [slots, size], or null where the solver needs none.
 * pending float32 [slots, most, size]: room for the shares of up to `most` windows, at least 1, that contain a frame;
 *   it need not be filled before.
 * places int32 [calls, frames, 4]: slot, windows that contain the frame, this one's place among them, whether it is
 *   the last one missing (the frame is stepped then).
 * weights float32 [calls, 6]: guidance, sample, prediction, history, signal, noise; with x the latent and v the mean
 *   prediction, x becomes sample x + prediction v + history h, and h becomes signal x - noise v.
 * status: an int32 that the caller sets to 0 and that becomes the first call whose guided prediction is not finite
 *   everywhere, plus 1.
 *
 * No two frames of a call share a slot. With one window per frame (places 1, 0, 1) and a cursor that stays at 0 this is
 * guidance and solver step alone. */
VEXPRESS_API int vexpress_step_window(const void *prediction, vexpress_dtype prediction_dtype, int64_t halves,
                                      int64_t frames, int64_t size, float *ring, float *pending, int64_t most,
                                      float *history, const int32_t *places, const float *weights,
                                      const int32_t *cursor, int32_t *status, void *stream);

/* *cursor += 1. */
VEXPRESS_API int vexpress_advance(int32_t *cursor, void *stream);

/* out [size]: the noise that frame `frame` starts from under `seed`, normally distributed, float32. Between processors
 * an element may differ by one unit in the last place. size: at most 2^34. */
VEXPRESS_API int vexpress_noise(float *out, uint64_t seed, uint32_t frame, int64_t size, void *stream);

/* out = latents / scaling, float32 [size]: what the decoder takes of a final latent. out may be latents. */
VEXPRESS_API int vexpress_unscale(const float *latents, float scaling, float *out, int64_t size, void *stream);

/* The 3x3x3 median (time, row, column) of three frames uint8 [height, width, 3], mirrored at the edges; out
 * is none of them, else cudaErrorInvalidValue. previous, current and next may be the same, as at a clip's ends. */
VEXPRESS_API int vexpress_median(const uint8_t *previous, const uint8_t *current, const uint8_t *next, uint8_t *out,
                                 int64_t height, int64_t width, void *stream);

/* The decoder's image [3, height, width] in -1 to 1, float32, float16 or bfloat16, as out uint8 [height, width, 3];
 * what is beyond is limited. status: null, or an int32 that becomes 1 where it is 0 and a value is not finite. */
VEXPRESS_API int vexpress_to_rgb8(const void *decoded, vexpress_dtype dtype, int64_t height, int64_t width,
                                  uint8_t *out, int32_t *status, void *stream);

/* NV12, BT.601 in limited range, of a frame uint8 [height, width, 3]. out: luma uint8 [height, width], then at once
 * blue and red chroma uint8 [ceil(height / 2), ceil(width / 2), 2]; rows without padding. */
VEXPRESS_API int vexpress_rgb_to_nv12(const uint8_t *rgb, uint8_t *out, int64_t height, int64_t width, void *stream);

/* `count` guide images of points [count, 3, 2]: left eye, right eye, nose, as (x, y) in pixels, float64 if
 * points_float64 is not 0, else float32. out: uint8 [count, height, width, 3], or in another type
 * [count, 3, height, width] in 0 to 1; all of it is written. height and width: below 2^31. */
VEXPRESS_API int vexpress_draw_keypoints(const void *points, int points_float64, int64_t count, int64_t height,
                                         int64_t width, void *out, vexpress_dtype out_dtype, void *stream);

/* Loads all kernels on the current device, so that later calls do not: once per device, before a graph is captured or
 * latency counts. The error that it returns tells at the start whether this GPU and its driver can be used. */
VEXPRESS_API int vexpress_cuda_prepare(void);

/* The library's VEXPRESS_CUDA_VERSION; needs no GPU. */
VEXPRESS_API int vexpress_cuda_version(void);

/* What a code that these functions returned means, in English; a code that CUDA does not know too. The text is the
 * library's and lasts. Needs no GPU. */
VEXPRESS_API const char *vexpress_cuda_error_string(int code);

#ifdef __cplusplus
}
#endif

#endif
