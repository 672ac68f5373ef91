/* The kernels of the denoising loop for C and C++ hosts: the library vexpress_cuda.
 *
 * Every function enqueues one kernel on `stream` (a cudaStream_t, null for the default stream) of the current device
 * and returns at once; nothing waits or allocates, and all can be captured into a CUDA graph. They return 0, or a
 * cudaError_t that vexpress_cuda_error_string puts into words. Pointers are device pointers, arrays are C-contiguous,
 * latents are float32.
 *
 * The schedule of a clip is known before it starts, so that it lies on the device in tables with one row per call, and
 * `cursor`, an int32 on the device, is the number of the call. The enqueued work of all calls is then alike:
 * gather, the denoiser, step, advance.
 */
#ifndef VEXPRESS_CUDA_H
#define VEXPRESS_CUDA_H

#include <stdint.h>

#if defined(_WIN32)
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

typedef enum {
    VEXPRESS_FLOAT32 = 0,
    VEXPRESS_FLOAT16 = 1,
    VEXPRESS_BFLOAT16 = 2,
    VEXPRESS_UINT8 = 3 /* of guide images only */
} vexpress_dtype;

/* out [frames, size] of out_dtype: rows table[*cursor] of ring [slots, size], rounded to the nearest value, ties to
 * even. table: int32 [calls, frames]. A slot that the ring does not have gives NaN. */
VEXPRESS_API int vexpress_gather_latents(const float *ring, const int32_t *table, const int32_t *cursor, void *out,
                                         int64_t frames, int64_t size, int64_t slots, vexpress_dtype out_dtype,
                                         void *stream);

/* out [frames, row_bytes]: rows table[*cursor] of ring [slots, row_bytes], bytes as they are. */
VEXPRESS_API int vexpress_gather_rows(const void *ring, const int32_t *table, const int32_t *cursor, void *out,
                                      int64_t frames, int64_t row_bytes, void *stream);

/* Guidance, mean over overlapping windows and solver step of the window that call *cursor predicted, in place.
 *
 * prediction [halves, frames, size]: with two halves the first is the unconditional one.
 * ring [slots, size]: the latents; history [slots, size], or null where the solver needs none.
 * pending [slots, most, size]: room for the shares of up to `most` windows that contain a frame.
 * places int32 [calls, frames, 4]: slot, windows that contain the frame, this one's place among them, whether it is
 *   the last one missing (the frame is stepped then).
 * weights float32 [calls, 6]: guidance, sample, prediction, history, signal, noise; with x the latent and v the mean
 *   prediction, x becomes sample x + prediction v + history h, and h becomes signal x - noise v.
 * status: an int32 that starts at 0 and becomes the first call with a value that is not finite, plus 1. */
VEXPRESS_API int vexpress_step_window(const void *prediction, vexpress_dtype prediction_dtype, int64_t halves,
                                      int64_t frames, int64_t size, float *ring, float *pending, int64_t most,
                                      float *history, const int32_t *places, const float *weights,
                                      const int32_t *cursor, int32_t *status, void *stream);

/* *cursor += 1. */
VEXPRESS_API int vexpress_advance(int32_t *cursor, void *stream);

/* The noise that frame `frame` starts from under `seed`, float32 [size]. */
VEXPRESS_API int vexpress_noise(float *out, uint64_t seed, uint32_t frame, int64_t size, void *stream);

/* out = latents / scaling, float32 [size]: what the decoder takes of a final latent. */
VEXPRESS_API int vexpress_unscale(const float *latents, float scaling, float *out, int64_t size, void *stream);

/* The 3x3x3 median (time, row, column) of three frames uint8 [height, width, 3]; out is none of them. */
VEXPRESS_API int vexpress_median(const uint8_t *previous, const uint8_t *current, const uint8_t *next, uint8_t *out,
                                 int64_t height, int64_t width, void *stream);

/* The decoder's image [3, height, width] in -1 to 1 as bytes [height, width, 3]. status: null, or an int32 that becomes
 * 1 where it is 0 and a value is not finite. */
VEXPRESS_API int vexpress_to_rgb8(const void *decoded, vexpress_dtype dtype, int64_t height, int64_t width,
                                  uint8_t *out, int32_t *status, void *stream);

/* NV12, BT.601 in limited range, of a frame uint8 [height, width, 3]. out: luma [height, width], then blue and red
 * chroma [ceil(height / 2), ceil(width / 2), 2]. */
VEXPRESS_API int vexpress_rgb_to_nv12(const uint8_t *rgb, uint8_t *out, int64_t height, int64_t width, void *stream);

/* `count` guide images of points [count, 3, 2]: left eye, right eye, nose, as (x, y) in pixels, float64 if
 * points_float64 is not 0, else float32. out: uint8 [count, height, width, 3], or in another type
 * [count, 3, height, width] in 0 to 1. */
VEXPRESS_API int vexpress_draw_keypoints(const void *points, int points_float64, int64_t count, int64_t height,
                                         int64_t width, void *out, vexpress_dtype out_dtype, void *stream);

/* What a code that these functions returned means. */
VEXPRESS_API const char *vexpress_cuda_error_string(int code);

#ifdef __cplusplus
}
#endif

#endif
