// The noise a frame starts from: the recipe of runtime/noise.py, Philox 4x32-10 and Box-Muller in double precision.
#pragma once

#include "host_device.h"

namespace vexpress {

struct FourWords {
    Word32 word[4];
};

VEXPRESS_INLINE FourWords philox(FourWords counter, Word32 key0, Word32 key1) {
    for (int round = 0; round < 10; ++round) {
        const Word64 product0 = static_cast<Word64>(counter.word[0]) * 0xD2511F53u;
        const Word64 product1 = static_cast<Word64>(counter.word[2]) * 0xCD9E8D57u;
        counter = {{static_cast<Word32>(product1 >> 32) ^ counter.word[1] ^ key0, static_cast<Word32>(product1),
                    static_cast<Word32>(product0 >> 32) ^ counter.word[3] ^ key1, static_cast<Word32>(product0)}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// Elements 0 to size - 1 of frame `frame` under `seed`. Words and uniforms are exact; logarithm, sine and cosine are
// the processor's own, so that an element may differ from another processor's by one unit in float32's last place.
VEXPRESS_INLINE void frame_noise(const Share &share, float *out, Word64 seed, Word32 frame, Index size) {
    const Index blocks = (size + 3) / 4;
    for (Index block = share.column; block < blocks; block += share.column_step) {
        const FourWords words = philox({{static_cast<Word32>(block), frame, 0, 0}}, static_cast<Word32>(seed),
                                       static_cast<Word32>(seed >> 32));
        for (int pair = 0; pair < 2; ++pair) {
            const double u = ((words.word[2 * pair] >> 8) + 1.0) * 0x1p-24;
            const double v = (words.word[2 * pair + 1] >> 8) * 0x1p-24;
            const double radius = sqrt(-2.0 * log(u)), angle = 6.283185307179586 * v;
            const Index at = 4 * block + 2 * pair;
            if (at < size) out[at] = static_cast<float>(radius * cos(angle));
            if (at + 1 < size) out[at + 1] = static_cast<float>(radius * sin(angle));
        }
    }
}

}  // namespace vexpress
