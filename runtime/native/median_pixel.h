// The 3x3x3 median byte by byte, for processors of many threads; the same network as the CPU's vector kernels.
#pragma once

#include "host_device.h"

namespace vexpress {
namespace per_byte {

#include "median_network.h"

struct Sorted {
    byte value[9];
};

// The nine values of three times and three columns of a row, sorted. Columns are counted in bytes.
VX_INLINE Sorted sorted_row(const byte *previous, const byte *current, const byte *next, Index left, Index middle,
                            Index right) {
    byte a0 = previous[left], a1 = current[left], a2 = next[left];
    byte b0 = previous[middle], b1 = current[middle], b2 = next[middle];
    byte c0 = previous[right], c1 = current[right], c2 = next[right];
    sort3(a0, a1, a2);
    sort3(b0, b1, b2);
    sort3(c0, c1, c2);
    sort_columns_of_three(a0, b0, c0, a1, b1, c1, a2, b2, c2);
    return {{a0, b0, c0, a1, b1, c1, a2, b2, c2}};
}

}  // namespace per_byte

// out [height, width, 3] from three frames of the same shape; at the edge as median_3x3x3 (median.h).
VEXPRESS_INLINE void median_3x3x3(const Share &share, const Byte *previous, const Byte *current, const Byte *next,
                                  Byte *out, Index height, Index width) {
    constexpr Index channels = 3;
    for (Index row = share.row; row < height; row += share.row_step) {
        const Index rows[3] = {per_byte::mirrored(row - 1, height), row, per_byte::mirrored(row + 1, height)};
        for (Index column = share.column; column < width * channels; column += share.column_step) {
            const Index pixel = column / channels, channel = column % channels;
            const Index left = per_byte::mirrored(pixel - 1, width) * channels + channel;
            const Index right = per_byte::mirrored(pixel + 1, width) * channels + channel;
            per_byte::Sorted sorted[3];
            for (int k = 0; k < 3; ++k) {
                const Index line = rows[k] * width * channels;
                sorted[k] = per_byte::sorted_row(previous + line, current + line, next + line, left, column, right);
            }
            const per_byte::Ten pair = per_byte::middle_10_of_merge_9_9(sorted[1].value, sorted[2].value);
            out[row * width * channels + column] = per_byte::fourteenth(pair, sorted[0].value);
        }
    }
}

}  // namespace vexpress
