// A call of a schedule that is known beforehand: what it takes and gives is looked up in tables by the number of the
// call, `*cursor`. Calls are enqueued one like the other, and a captured CUDA graph of one serves for all.
#pragma once

#include "fused_step.h"

namespace vexpress {

struct FramePlace {
    Int32 slot;
    Int32 windows;   // that contain the frame
    Int32 rank;      // this window's place among them
    Int32 complete;  // whether it is the last one missing
};

template <typename Value, int Count>
struct alignas(sizeof(Value) * Count) Pack {
    Value value[Count];
};

VEXPRESS_INLINE bool aligned(const void *pointer, Index bytes) {
    return reinterpret_cast<Word64>(pointer) % static_cast<Word64>(bytes) == 0;
}

// Row f of `out`, [frames, size / Count] packs, is row table[*cursor, f] of `ring`, converted. A slot that `ring` does
// not have gives NaN, which the step of the call reports.
template <typename Value, int Count>
VEXPRESS_INLINE void gather_packs(const Share &share, const float *ring, const Int32 *table, const Int32 *cursor,
                                  Value *out, Index frames, Index size, Index slots) {
    using From = Pack<float, Count>;
    using To = Pack<Value, Count>;
    const Int32 *const row = table + *cursor * frames;
    const Index packs = size / Count;
    for (Index frame = share.row; frame < frames; frame += share.row_step) {
        const Index slot = row[frame];
        const bool there = slot >= 0 && slot < slots;
        const From *const from = reinterpret_cast<const From *>(ring + (there ? slot : 0) * size);
        To *const to = reinterpret_cast<To *>(out + frame * size);
        for (Index i = share.column; i < packs; i += share.column_step) {
            const From taken = from[i];
            To given;
            for (int k = 0; k < Count; ++k)
                given.value[k] = narrowed<Value>(there ? taken.value[k] : float_of(0x7fc00000u));
            to[i] = given;
        }
    }
}

template <typename Value>
VEXPRESS_INLINE void gather_latents(const Share &share, const float *ring, const Int32 *table, const Int32 *cursor,
                                    Value *out, Index frames, Index size, Index slots) {
    if (size % 4 == 0 && aligned(ring, 16) && aligned(out, 4 * sizeof(Value)))
        gather_packs<Value, 4>(share, ring, table, cursor, out, frames, size, slots);
    else
        gather_packs<Value, 1>(share, ring, table, cursor, out, frames, size, slots);
}

template <typename Unit>
VEXPRESS_INLINE void gather_units(const Share &share, const void *ring, const Int32 *table, const Int32 *cursor,
                                  void *out, Index frames, Index row_bytes) {
    const Int32 *const row = table + *cursor * frames;
    const Index units = row_bytes / static_cast<Index>(sizeof(Unit));
    for (Index frame = share.row; frame < frames; frame += share.row_step) {
        const Unit *const from = static_cast<const Unit *>(ring) + row[frame] * units;
        Unit *const to = static_cast<Unit *>(out) + frame * units;
        for (Index i = share.column; i < units; i += share.column_step) to[i] = from[i];
    }
}

// Row f of `out`, [frames, row_bytes], is row table[*cursor, f] of `ring`, as it is.
VEXPRESS_INLINE void gather_rows(const Share &share, const void *ring, const Int32 *table, const Int32 *cursor,
                                 void *out, Index frames, Index row_bytes) {
    using Sixteen = Pack<Word32, 4>;
    if (row_bytes % 16 == 0 && aligned(ring, 16) && aligned(out, 16))
        gather_units<Sixteen>(share, ring, table, cursor, out, frames, row_bytes);
    else if (row_bytes % 4 == 0 && aligned(ring, 4) && aligned(out, 4))
        gather_units<Word32>(share, ring, table, cursor, out, frames, row_bytes);
    else
        gather_units<Byte>(share, ring, table, cursor, out, frames, row_bytes);
}

// Guidance, overlap mean and solver step of the window that call *cursor predicted: [halves, frames, size], the
// unconditional half first if there are two. ring and history (or null) are [slots, size], pending [slots, most, size],
// places [calls, frames], weights [calls]. `status` becomes *cursor + 1 at the first prediction that is not finite.
template <typename Value>
VEXPRESS_INLINE void step_window(const Share &share, const Value *prediction, Index halves, Index frames, Index size,
                                 float *ring, float *pending, Index most, float *history, const FramePlace *places,
                                 const StepWeights *weights, const Int32 *cursor, Int32 *status) {
    const Index call = *cursor;
    const StepWeights of_call = weights[call];
    bool finite = true;
    for (Index frame = share.row; frame < frames; frame += share.row_step) {
        const FramePlace place = places[call * frames + frame];
        const FrameStep<Value> step{halves == 2 ? prediction + frame * size : nullptr,
                                    prediction + ((halves - 1) * frames + frame) * size,
                                    ring + place.slot * size,
                                    history ? history + place.slot * size : nullptr,
                                    pending + place.slot * most * size,
                                    place.windows,
                                    place.rank,
                                    place.complete != 0};
        for (Index i = share.column; i < size; i += share.column_step) finite &= step_element(step, of_call, size, i);
    }
    if (!finite) note_first(status, static_cast<Int32>(call) + 1);
}

}  // namespace vexpress
