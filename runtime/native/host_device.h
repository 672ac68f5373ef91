// What headers need to be compiled for the CPU, by nvcc and, without any other header, by NVRTC.
#pragma once

#if defined(__CUDACC_RTC__)
namespace vexpress {
using Byte = unsigned char;
using Half16 = unsigned short;
using Int16 = short;
using Int32 = int;
using Word32 = unsigned int;
using Word64 = unsigned long long;
using Index = long long;
}  // namespace vexpress
#else
#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
namespace vexpress {
using Byte = std::uint8_t;
using Half16 = std::uint16_t;
using Int16 = std::int16_t;
using Int32 = std::int32_t;
using Word32 = std::uint32_t;
using Word64 = std::uint64_t;
using Index = std::ptrdiff_t;
}  // namespace vexpress
#endif

#if defined(__CUDACC__)
#define VEXPRESS_INLINE __host__ __device__ __forceinline__
#define VEXPRESS_CALL inline __host__ __device__ __noinline__  // large and not in a hurry: compiled once
#else
#define VEXPRESS_INLINE inline
#define VEXPRESS_CALL inline
#endif

namespace vexpress {

// The part of a two-dimensional job that one thread does. The CPU does all of it: rows and columns from 0, one by one.
struct Share {
    Index row = 0;
    Index row_step = 1;
    Index column = 0;
    Index column_step = 1;
};

VEXPRESS_INLINE bool is_finite(float value) {
    return value - value == 0.0f;
}

VEXPRESS_INLINE Word32 bits_of(float value) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(value);
#else
    Word32 bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

VEXPRESS_INLINE float float_of(Word32 bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

// Writes `value` where nothing was noted yet.
VEXPRESS_INLINE void note_first(Int32 *status, Int32 value) {
#if defined(__CUDA_ARCH__)
    atomicCAS(status, 0, value);
#else
    if (*status == 0) *status = value;
#endif
}

}  // namespace vexpress
