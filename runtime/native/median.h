// Exact 3x3x3 median (time, row, column) of interleaved 8-bit RGB frames.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace vexpress {

constexpr std::ptrdiff_t kChannels = 3;

// One output frame and the three input frames it is made of, each [height, width, 3], contiguous.
struct FrameJob {
    const std::uint8_t *previous;
    const std::uint8_t *current;
    const std::uint8_t *next;
    std::uint8_t *out;
};

struct FrameSize {
    std::ptrdiff_t height;
    std::ptrdiff_t width;
};

// Filters rows [row_begin, row_end) of one frame. Neighbours outside the frame are mirrored at the edge
// pixel without repeating it: row -1 is row 1.
using MedianRows = void (*)(const FrameJob &, FrameSize, std::ptrdiff_t row_begin, std::ptrdiff_t row_end);

namespace baseline { void median_rows(const FrameJob &, FrameSize, std::ptrdiff_t, std::ptrdiff_t); }
namespace avx2 { void median_rows(const FrameJob &, FrameSize, std::ptrdiff_t, std::ptrdiff_t); }
namespace avx512 { void median_rows(const FrameJob &, FrameSize, std::ptrdiff_t, std::ptrdiff_t); }

// The instruction sets this build holds and this processor runs, widest first: "avx512", "avx2", "baseline".
struct Kernel {
    const char *name;
    MedianRows rows;
};
constexpr int kMaxKernels = 3;
int usable_kernels(Kernel (&kernels)[kMaxKernels]);

// Filters `count` frames with `threads` threads (0: as many as this process may use).
void median_frames(const FrameJob *jobs, std::ptrdiff_t count, FrameSize size, int threads, MedianRows rows);

}  // namespace vexpress
