// The kernel of the 3x3x3 median. Each median_<set>.cpp includes this once, inside its own namespace and compiled for
// its own instruction set, so nothing here may come from a header that other files share (the linker could keep the
// wide copy of an inline function for everybody). The loops are plain; the compiler turns them into vector min/max.
//
// How the 27 values of an output byte are ordered with few operations (counted in min/max per byte):
//   1. the three times of each byte are sorted                                 6, shared by the three columns
//   2. three neighbouring columns are merged to nine sorted values            32, shared by the three rows
//   3. two neighbouring rows are merged, only the middle ten of 18 are kept   48, shared by two output rows
//   4. the third row is merged with these ten, only the 14th of 27 is kept    18
// in all 80. Steps 2 to 4 are checked for every input by the zero-one principle in the tests.
//
// A strip of kStrip bytes goes down the frame so that the nine sorted values of four rows (54 KiB) stay close to the
// core.

namespace {

#include "median_network.h"

constexpr int kStrip = 1536;                          // bytes of a row worked on at once: 512 pixels
constexpr int kBlock = 64;                            // the widest vector; scratch rows are filled to a multiple of it
constexpr int kTimeRow = kBlock + kStrip + kBlock;    // a halo of one pixel on each side, kept aligned
constexpr int kHalo = static_cast<int>(kChannels);

struct alignas(64) TimeSorted { byte value[3][kTimeRow]; };
struct alignas(64) RowSorted { byte value[9][kStrip]; };

// Step 1 for `count` bytes of one row; `at` is where the first one goes in the scratch row.
VX_INLINE void sort_times(const byte *__restrict previous, const byte *__restrict current, const byte *__restrict next,
                          TimeSorted &__restrict sorted, std::ptrdiff_t at, std::ptrdiff_t count) {
    byte *__restrict low = sorted.value[0] + at;
    byte *__restrict mid = sorted.value[1] + at;
    byte *__restrict high = sorted.value[2] + at;
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        byte a = previous[i], b = current[i], c = next[i];
        sort3(a, b, c);
        low[i] = a;
        mid[i] = b;
        high[i] = c;
    }
}

// Step 2: nine sorted values from three sorted columns, one pixel (kHalo bytes) apart.
VX_INLINE void sort_columns(const TimeSorted &__restrict times, RowSorted &__restrict row, int blocks) {
    for (int i = 0; i < blocks * kBlock; ++i) {
        const byte *low = times.value[0] + kBlock + i;
        const byte *mid = times.value[1] + kBlock + i;
        const byte *high = times.value[2] + kBlock + i;
        byte v0 = low[-kHalo], v1 = low[0], v2 = low[kHalo];
        byte v3 = mid[-kHalo], v4 = mid[0], v5 = mid[kHalo];
        byte v6 = high[-kHalo], v7 = high[0], v8 = high[kHalo];
        sort_columns_of_three(v0, v1, v2, v3, v4, v5, v6, v7, v8);
        row.value[0][i] = v0;
        row.value[1][i] = v1;
        row.value[2][i] = v2;
        row.value[3][i] = v3;
        row.value[4][i] = v4;
        row.value[5][i] = v5;
        row.value[6][i] = v6;
        row.value[7][i] = v7;
        row.value[8][i] = v8;
    }
}

// Steps 3 and 4: two output rows from the four rows around them.
VX_INLINE void merge_rows(const RowSorted &__restrict above, const RowSorted &__restrict first,
                          const RowSorted &__restrict second, const RowSorted &__restrict below,
                          byte *__restrict out_first, byte *__restrict out_second, int blocks) {
    for (int i = 0; i < blocks * kBlock; ++i) {
        byte a[9], b[9], c[9], d[9];
        for (int k = 0; k < 9; ++k) {
            a[k] = above.value[k][i];
            b[k] = first.value[k][i];
            c[k] = second.value[k][i];
            d[k] = below.value[k][i];
        }
        const Ten pair = middle_10_of_merge_9_9(b, c);
        out_first[i] = fourteenth(pair, a);
        out_second[i] = fourteenth(pair, d);
    }
}

// One strip of one row: steps 1 and 2, with the neighbour mirrored at the edge pixel where the frame ends.
void sort_row(const FrameJob &job, FrameSize size, std::ptrdiff_t row, std::ptrdiff_t begin, std::ptrdiff_t count,
              int blocks, TimeSorted &times, RowSorted &sorted) {
    const std::ptrdiff_t line = size.width * kChannels;
    const bool first = begin == 0;
    const bool last = begin + count == line;
    const int inwards = size.width > 1 ? kHalo : 0;
    const std::ptrdiff_t from = row * line + begin - (first ? 0 : kHalo);
    const std::ptrdiff_t length = count + (first ? 0 : kHalo) + (last ? 0 : kHalo);
    sort_times(job.previous + from, job.current + from, job.next + from, times, kBlock - (first ? 0 : kHalo), length);
    for (int k = 0; k < 3; ++k) {
        byte *start = times.value[k] + kBlock;
        for (int channel = 0; channel < kHalo; ++channel) {
            if (first) start[channel - kHalo] = start[channel + inwards];
            if (last) start[count + channel] = start[count + channel - kHalo - inwards];
        }
    }
    sort_columns(times, sorted, blocks);
}

}  // namespace

void median_rows(const FrameJob &job, FrameSize size, std::ptrdiff_t row_begin, std::ptrdiff_t row_end) {
    const std::ptrdiff_t line = size.width * kChannels;
    TimeSorted times = {};
    RowSorted ring[4];
    alignas(64) byte scratch[2][kStrip];

    for (std::ptrdiff_t begin = 0; begin < line; begin += kStrip) {
        const std::ptrdiff_t count = line - begin < kStrip ? line - begin : kStrip;
        const int blocks = static_cast<int>((count + kBlock - 1) / kBlock);
        // Slots turn by two rows at a time: [above, first, second, below], the last two become the next first two.
        RowSorted *above = &ring[0], *first = &ring[1], *second = &ring[2], *below = &ring[3];
        sort_row(job, size, mirrored(row_begin - 1, size.height), begin, count, blocks, times, *above);
        sort_row(job, size, row_begin, begin, count, blocks, times, *first);
        for (std::ptrdiff_t row = row_begin; row < row_end; row += 2) {
            sort_row(job, size, mirrored(row + 1, size.height), begin, count, blocks, times, *second);
            sort_row(job, size, mirrored(row + 2, size.height), begin, count, blocks, times, *below);
            byte *out = job.out + row * line + begin;
            const bool pair = row + 1 < row_end;
            if (count == blocks * kBlock) {
                merge_rows(*above, *first, *second, *below, out, pair ? out + line : scratch[1], blocks);
            } else {
                merge_rows(*above, *first, *second, *below, scratch[0], scratch[1], blocks);
                std::memcpy(out, scratch[0], static_cast<std::size_t>(count));
                if (pair) std::memcpy(out + line, scratch[1], static_cast<std::size_t>(count));
            }
            RowSorted *spare_first = above, *spare_second = first;
            above = second;
            first = below;
            second = spare_first;
            below = spare_second;
        }
    }
}

#undef VX_INLINE
