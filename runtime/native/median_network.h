// The ordering network of the 3x3x3 median and its edges: shared by the CPU's vector kernels and the CUDA kernel.
//
// Included inside a namespace of the including file's own, for the reason given in median_kernel.h; itself it includes
// nothing.

#if defined(__CUDACC__)
#define VX_INLINE static __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define VX_INLINE static __forceinline
#else
#define VX_INLINE static inline __attribute__((always_inline))
#endif

using byte = unsigned char;

VX_INLINE byte lower(byte a, byte b) { return a < b ? a : b; }
VX_INLINE byte upper(byte a, byte b) { return a < b ? b : a; }

VX_INLINE void order(byte &a, byte &b) {
    const byte low = lower(a, b);
    b = upper(a, b);
    a = low;
}

VX_INLINE void sort3(byte &a, byte &b, byte &c) {
    order(a, b);
    order(b, c);
    order(a, b);
}

// Step 2 for one byte: nine sorted values from three sorted columns.
VX_INLINE void sort_columns_of_three(byte &v0, byte &v1, byte &v2, byte &v3, byte &v4, byte &v5, byte &v6, byte &v7,
                                     byte &v8) {
    sort3(v0, v1, v2);
    sort3(v3, v4, v5);
    sort3(v6, v7, v8);
    order(v1, v3);
    order(v2, v4);
    order(v2, v6);
    order(v2, v3);
    order(v4, v6);
    order(v5, v7);
    order(v5, v6);
}

struct Four { byte v0, v1, v2, v3; };
struct Six { byte v0, v1, v2, v3, v4, v5; };
struct Ten { byte v0, v1, v2, v3, v4, v5, v6, v7, v8, v9; };

// Odd-even merges (Batcher 1968) of two sorted lists of two to nine values. Where the name says so only the middle of
// the merged list is made; the compiler drops what is not used.
VX_INLINE Four merge_2_2(byte a0, byte a1, byte b0, byte b1) {
    byte low = lower(a0, b0), high = upper(a1, b1);
    byte m0 = upper(a0, b0), m1 = lower(a1, b1);
    order(m0, m1);
    return {low, m0, m1, high};
}

VX_INLINE Four middle_4_of_merge_3_3(byte a0, byte a1, byte a2, byte b0, byte b1, byte b2) {
    const Four even = merge_2_2(a0, a2, b0, b2);
    byte o0 = lower(a1, b1), o1 = upper(a1, b1), e1 = even.v1, e2 = even.v2;
    order(o0, e1);
    order(o1, e2);
    return {o0, e1, o1, e2};
}

VX_INLINE Six middle_6_of_merge_4_4(byte a0, byte a1, byte a2, byte a3, byte b0, byte b1, byte b2, byte b3) {
    Four even = merge_2_2(a0, a2, b0, b2);
    Four odd = merge_2_2(a1, a3, b1, b3);
    order(odd.v0, even.v1);
    order(odd.v1, even.v2);
    order(odd.v2, even.v3);
    return {odd.v0, even.v1, odd.v1, even.v2, odd.v2, even.v3};
}

VX_INLINE Six middle_6_of_merge_5_5(byte a0, byte a1, byte a2, byte a3, byte a4,
                                    byte b0, byte b1, byte b2, byte b3, byte b4) {
    Four even = middle_4_of_merge_3_3(a0, a2, a4, b0, b2, b4);
    Four odd = merge_2_2(a1, a3, b1, b3);
    order(odd.v1, even.v1);
    order(odd.v2, even.v2);
    return {upper(odd.v0, even.v0), odd.v1, even.v1, odd.v2, even.v2, lower(odd.v3, even.v3)};
}

VX_INLINE Ten middle_10_of_merge_9_9(const byte (&a)[9], const byte (&b)[9]) {
    Six even = middle_6_of_merge_5_5(a[0], a[2], a[4], a[6], a[8], b[0], b[2], b[4], b[6], b[8]);
    Six odd = middle_6_of_merge_4_4(a[1], a[3], a[5], a[7], b[1], b[3], b[5], b[7]);
    order(odd.v1, even.v1);
    order(odd.v2, even.v2);
    order(odd.v3, even.v3);
    order(odd.v4, even.v4);
    return {upper(odd.v0, even.v0), odd.v1, even.v1, odd.v2, even.v2, odd.v3, even.v3, odd.v4, even.v4,
            lower(odd.v5, even.v5)};
}

// The 14th of 27: the smallest, over all ways to take k of the nine and 14 - k of the eighteen, of the larger end.
VX_INLINE byte fourteenth(const Ten &pair, const byte (&row)[9]) {
    const byte m0 = lower(pair.v9, upper(pair.v8, row[0]));
    const byte m1 = lower(upper(pair.v7, row[1]), upper(pair.v6, row[2]));
    const byte m2 = lower(upper(pair.v5, row[3]), upper(pair.v4, row[4]));
    const byte m3 = lower(upper(pair.v3, row[5]), upper(pair.v2, row[6]));
    const byte m4 = lower(upper(pair.v1, row[7]), upper(pair.v0, row[8]));
    return lower(lower(lower(m0, m1), lower(m2, m3)), m4);
}

// The row that stands for one just outside the frame: mirrored at the edge row, which is not repeated.
template <typename Position>
VX_INLINE Position mirrored(Position row, Position height) {
    if (row < 0) row = -row;
    if (row >= height) row = 2 * height - 2 - row;
    return row < 0 || row >= height ? 0 : row;
}
