// The CUDA kernels' arithmetic on the CPU, over arrays: what the kernels are tested against, and what a test of the
// device's loop runs on where there is no GPU. Each function does what the kernel of its name in cuda/kernels.cu does,
// from the same header.
//
// Arrays come as bytes; what they hold is given by name and sizes, as a kernel's pointers are. All sizes are checked.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "colour.h"
#include "guide_image.h"
#include "median_pixel.h"
#include "philox_noise.h"
#include "scheduled.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace vexpress;

using In = nb::ndarray<const Byte, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<Byte, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The first `count` values of an array.
template <typename Value, typename Array>
auto values(const Array &array, Index count, const char *name) {
    using Pointer = std::conditional_t<std::is_same_v<Array, In>, const Value *, Value *>;
    if (count < 0 || static_cast<Index>(array.size()) / static_cast<Index>(sizeof(Value)) < count)
        throw std::invalid_argument(std::string(name) + " is smaller than the sizes given with it");
    if (!aligned(array.data(), alignof(Value))) throw std::invalid_argument(std::string(name) + " is not aligned");
    return reinterpret_cast<Pointer>(array.data());
}

template <typename Value, typename Array>
Index count_of(const Array &array, Index row) {
    return row > 0 ? static_cast<Index>(array.size() / sizeof(Value)) / row : 0;
}

// Calls body(zero of the type that dtype names).
template <typename Body>
void with_dtype(const std::string &dtype, Body body) {
    if (dtype == "float32") return body(0.0f);
    if (dtype == "float16") return body(Float16{});
    if (dtype == "bfloat16") return body(BFloat16{});
    throw std::invalid_argument("no kernel for " + dtype + ": one of float32, float16, bfloat16");
}

const Int32 *checked_cursor(const In &cursor, Index calls) {
    const Int32 *at = values<Int32>(cursor, 1, "cursor");
    if (*at < 0 || *at >= calls) throw std::invalid_argument("cursor is beyond the table's calls");
    return at;
}

void gather_latents_on_host(In ring, In table, In cursor, Out out, Index frames, Index size, Index slots,
                            const std::string &out_dtype) {
    const Int32 *at = checked_cursor(cursor, count_of<Int32>(table, frames));
    with_dtype(out_dtype, [&](auto zero) {
        using Value = decltype(zero);
        gather_latents(Share{}, values<float>(ring, slots * size, "ring"), values<Int32>(table, 0, "table"), at,
                       values<Value>(out, frames * size, "out"), frames, size, slots);
    });
}

void gather_rows_on_host(In ring, In table, In cursor, Out out, Index frames, Index row_bytes) {
    const Int32 *at = checked_cursor(cursor, count_of<Int32>(table, frames));
    const Int32 *slots = values<Int32>(table, 0, "table");
    for (Index frame = 0; frame < frames; ++frame) {
        const Index slot = slots[*at * frames + frame];
        if (slot < 0 || slot >= count_of<Byte>(ring, row_bytes))
            throw std::invalid_argument("table names a row that ring does not have");
    }
    gather_rows(Share{}, ring.data(), slots, at, values<Byte>(out, frames * row_bytes, "out"), frames, row_bytes);
}

void step_by_table_on_host(In prediction, const std::string &prediction_dtype, Index halves, Index frames, Index size,
                           Out ring, Out pending, Index most, std::optional<Out> history, In places, In weights,
                           In cursor, Out status) {
    if (halves != 1 && halves != 2) throw std::invalid_argument("prediction has neither one half nor two");
    const Index slots = count_of<float>(ring, size);
    const Index calls = std::min(count_of<FramePlace>(places, frames), count_of<StepWeights>(weights, 1));
    const Int32 *at = checked_cursor(cursor, calls);
    const FramePlace *first = values<FramePlace>(places, 0, "places");
    for (Index frame = 0; frame < frames; ++frame) {
        const FramePlace &place = first[*at * frames + frame];
        if (place.slot < 0 || place.slot >= slots || place.windows < 1 || place.windows > most || place.rank < 0 ||
            place.rank >= place.windows)
            throw std::invalid_argument("places name a slot or window that is not there");
    }
    float *past = history ? values<float>(*history, slots * size, "history") : nullptr;
    with_dtype(prediction_dtype, [&](auto zero) {
        using Value = decltype(zero);
        step_window(Share{}, values<Value>(prediction, halves * frames * size, "prediction"), halves, frames, size,
                    values<float>(ring, slots * size, "ring"), values<float>(pending, slots * most * size, "pending"),
                    most, past, first, values<StepWeights>(weights, 0, "weights"), at,
                    values<Int32>(status, 1, "status"));
    });
}

void noise_on_host(Out out, Word64 seed, Word32 frame, Index size) {
    frame_noise(Share{}, values<float>(out, size, "out"), seed, frame, size);
}

void unscale_on_host(In latents, float scaling, Out out, Index size) {
    unscale(Share{}, values<float>(latents, size, "latents"), scaling, values<float>(out, size, "out"), size);
}

void median_on_host(In previous, In current, In next, Out out, Index height, Index width) {
    const Index count = height * width * 3;
    median_3x3x3(Share{}, values<Byte>(previous, count, "previous"), values<Byte>(current, count, "current"),
                 values<Byte>(next, count, "next"), values<Byte>(out, count, "out"), height, width);
}

void to_rgb8_on_host(In decoded, const std::string &dtype, Index height, Index width, Out out,
                     std::optional<Out> status) {
    Int32 *noted = status ? values<Int32>(*status, 1, "status") : nullptr;
    const Index count = height * width * 3;
    with_dtype(dtype, [&](auto zero) {
        using Value = decltype(zero);
        to_rgb8(Share{}, values<Value>(decoded, count, "decoded"), values<Byte>(out, count, "out"), height, width,
                noted);
    });
}

void rgb_to_nv12_on_host(In rgb, Out out, Index height, Index width) {
    const Index chroma = (height + 1) / 2 * ((width + 1) / 2) * 2;
    rgb_to_nv12(Share{}, values<Byte>(rgb, height * width * 3, "rgb"),
                values<Byte>(out, height * width + chroma, "out"), height, width);
}

void draw_keypoints_on_host(In points, Index count, Index height, Index width, Out out, const std::string &out_dtype,
                            bool wide) {
    const Index numbers = 6 * count, size = 3 * count * height * width;
    guide::Polygon polygon;
    const void *from = wide ? static_cast<const void *>(values<double>(points, numbers, "points"))
                            : values<float>(points, numbers, "points");
    if (out_dtype == "uint8")
        return draw_keypoints(Share{}, from, wide, values<Byte>(out, size, "out"), guide::kByte, count, height, width,
                              polygon);
    with_dtype(out_dtype, [&](auto zero) {
        using Value = decltype(zero);
        const auto kind = std::is_same_v<Value, float> ? guide::kFloat32
                          : std::is_same_v<Value, Float16> ? guide::kFloat16
                                                           : guide::kBFloat16;
        draw_keypoints(Share{}, from, wide, values<Value>(out, size, "out"), kind, count, height, width, polygon);
    });
}

}  // namespace

void bind_host_kernels(nb::module_ &module) {
    nb::module_ m = module.def_submodule("host_kernels", "The CUDA kernels' arithmetic on the CPU, over bytes.");
    m.def("gather_latents", &gather_latents_on_host, "ring"_a, "table"_a, "cursor"_a, "out"_a, "frames"_a, "size"_a,
          "slots"_a, "out_dtype"_a);
    m.def("gather_rows", &gather_rows_on_host, "ring"_a, "table"_a, "cursor"_a, "out"_a, "frames"_a, "row_bytes"_a);
    m.def("step_window", &step_by_table_on_host, "prediction"_a, "prediction_dtype"_a, "halves"_a, "frames"_a, "size"_a,
          "ring"_a, "pending"_a, "most"_a, "history"_a.none(), "places"_a, "weights"_a, "cursor"_a, "status"_a);
    m.def("noise", &noise_on_host, "out"_a, "seed"_a, "frame"_a, "size"_a);
    m.def("unscale", &unscale_on_host, "latents"_a, "scaling"_a, "out"_a, "size"_a);
    m.def("median", &median_on_host, "previous"_a, "current"_a, "next"_a, "out"_a, "height"_a, "width"_a);
    m.def("to_rgb8", &to_rgb8_on_host, "decoded"_a, "dtype"_a, "height"_a, "width"_a, "out"_a, "status"_a.none());
    m.def("draw_keypoints", &draw_keypoints_on_host, "points"_a, "count"_a, "height"_a, "width"_a, "out"_a,
          "out_dtype"_a, "wide"_a);
    m.def("rgb_to_nv12", &rgb_to_nv12_on_host, "rgb"_a, "out"_a, "height"_a, "width"_a);
}
