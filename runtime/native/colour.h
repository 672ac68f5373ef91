// Latents as the decoder takes them, decoded images to 8-bit RGB, and RGB to the NV12 that hardware encoders take.
#pragma once

#include "small_floats.h"

namespace vexpress {

// out [size] = latents [size] / scaling, each divided, not multiplied by the inverse.
VEXPRESS_INLINE void unscale(const Share &share, const float *latents, float scaling, float *out, Index size) {
    for (Index i = share.column; i < size; i += share.column_step) out[i] = latents[i] / scaling;
}

// The decoder's image [3, height, width] in -1 to 1 to bytes [height, width, 3]: x / 2 + 1/2 in float32, limited to 0
// to 1, times 255, truncated. A value that is not finite gives 0 or 255, and `status`, if there is one, becomes 1.
template <typename Value>
VEXPRESS_INLINE void to_rgb8(const Share &share, const Value *decoded, Byte *out, Index height, Index width,
                             Int32 *status) {
    bool finite = true;
    for (Index row = share.row; row < height; row += share.row_step)
        for (Index column = share.column; column < width; column += share.column_step) {
            const Index pixel = row * width + column;
            for (int channel = 0; channel < 3; ++channel) {
                const float value = widened(decoded[channel * height * width + pixel]);
                finite &= is_finite(value);
                const float scaled = value * 0.5f + 0.5f;
                const float limited = scaled > 0.0f ? (scaled < 1.0f ? scaled : 1.0f) : 0.0f;
                out[3 * pixel + channel] = static_cast<Byte>(limited * 255.0f);
            }
        }
    if (status && !finite) note_first(status, 1);
}

// BT.601, limited range, weights to three decimals, in integers: the exact value, rounded to the nearest, halves up, of
//   luma = 16 + (65.481 R + 128.553 G + 24.966 B) / 255
//   blue = 128 + (-37.797 R - 74.203 G + 112 B) / 255,  red = 128 + (112 R - 93.786 G - 18.214 B) / 255
// with chroma of the mean colour of 2x2 pixels, or of those there are at an odd edge. `out`: luma [height, width], then
// (blue, red) [ceil(height / 2), ceil(width / 2), 2].
VEXPRESS_INLINE void rgb_to_nv12(const Share &share, const Byte *rgb, Byte *out, Index height, Index width) {
    constexpr Int32 unit = 255000;
    Byte *const chroma = out + height * width;
    for (Index row = share.row; row < (height + 1) / 2; row += share.row_step)
        for (Index column = share.column; column < (width + 1) / 2; column += share.column_step) {
            Int32 red = 0, green = 0, blue = 0, count = 0;
            for (Index y = 2 * row; y < 2 * row + 2 && y < height; ++y)
                for (Index x = 2 * column; x < 2 * column + 2 && x < width; ++x) {
                    const Byte *const pixel = rgb + 3 * (y * width + x);
                    const Int32 luma = 65481 * pixel[0] + 128553 * pixel[1] + 24966 * pixel[2];
                    out[y * width + x] = static_cast<Byte>((luma + 16 * unit + unit / 2) / unit);
                    red += pixel[0];
                    green += pixel[1];
                    blue += pixel[2];
                    ++count;
                }
            const Int32 middle = (128 * unit + unit / 2) * count;
            Byte *const pair = chroma + 2 * (row * ((width + 1) / 2) + column);
            pair[0] = static_cast<Byte>((-37797 * red - 74203 * green + 112000 * blue + middle) / (unit * count));
            pair[1] = static_cast<Byte>((112000 * red - 93786 * green - 18214 * blue + middle) / (unit * count));
        }
}

}  // namespace vexpress
