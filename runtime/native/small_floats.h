// float16 and bfloat16 from and to float32 by integer arithmetic: the same bits on every processor.
#pragma once

#include "host_device.h"

namespace vexpress {

struct Float16 {
    Half16 bits;
};

struct BFloat16 {
    Half16 bits;
};

VEXPRESS_INLINE float widened(float value) {
    return value;
}

VEXPRESS_INLINE float widened(BFloat16 value) {
    return float_of(static_cast<Word32>(value.bits) << 16);
}

VEXPRESS_INLINE float widened(Float16 value) {
    const Word32 sign = (value.bits & 0x8000u) << 16, magnitude = value.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude >= 0x400u) return float_of(sign | ((magnitude << 13) + 0x38000000u));
    const float tiny = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24, the unit of subnormals
    return sign ? -tiny : tiny;
}

// Rounded to the nearest value, ties to even; beyond the largest value comes infinity, and NaN stays NaN.
template <typename Narrow>
VEXPRESS_INLINE Narrow narrowed(float value);

template <>
VEXPRESS_INLINE float narrowed<float>(float value) {
    return value;
}

template <>
VEXPRESS_INLINE BFloat16 narrowed<BFloat16>(float value) {
    const Word32 bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<Half16>(bits >> 16 | 0x40u)};
    return {static_cast<Half16>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
VEXPRESS_INLINE Float16 narrowed<Float16>(float value) {
    const Word32 bits = bits_of(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<Half16>(sign | 0x7e00u)};
    if (magnitude >= 0x47800000u) return {static_cast<Half16>(sign | 0x7c00u)};  // 2^16 and more
    if (magnitude < 0x38800000u) {  // below 2^-14: the sum's last bit is worth 2^-24, so the addition rounds
        const float aligned = float_of(magnitude) + 0.5f;
        return {static_cast<Half16>(sign | (bits_of(aligned) - 0x3f000000u))};
    }
    const Word32 rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u;
    return {static_cast<Half16>(sign | rounded >> 13)};
}

}  // namespace vexpress
