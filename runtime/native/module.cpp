// Python bindings of the native helpers: what NumPy cannot do fast.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "fused_step.h"
#include "median.h"

namespace nb = nanobind;
using namespace nb::literals;

void bind_host_kernels(nb::module_ &module);  // host_kernels.cpp

namespace {

template <typename Byte, int... Shape>
using Frames = nb::ndarray<Byte, nb::shape<Shape..., vexpress::kChannels>, nb::c_contig, nb::device::cpu>;
using FrameIn = Frames<const std::uint8_t, -1, -1>;
using FrameOut = Frames<std::uint8_t, -1, -1>;
using ClipIn = Frames<const std::uint8_t, -1, -1, -1>;
using ClipOut = Frames<std::uint8_t, -1, -1, -1>;

vexpress::MedianRows kernel_named(const std::string &name) {
    vexpress::Kernel kernels[vexpress::kMaxKernels];
    const int count = vexpress::usable_kernels(kernels);
    if (name.empty()) return kernels[0].rows;
    for (int i = 0; i < count; ++i)
        if (name == kernels[i].name) return kernels[i].rows;
    throw std::invalid_argument("no kernel '" + name + "' on this processor (see median_kernels())");
}

template <typename A, typename B>
void check_pair(const A &in, const B &out, const char *name) {
    for (std::size_t axis = 0; axis < in.ndim(); ++axis)
        if (in.shape(axis) != out.shape(axis))
            throw std::invalid_argument(std::string("out and ") + name + " differ in shape");
    const std::uint8_t *a = in.data(), *b = out.data();
    if (in.size() > 0 && a < b + out.size() && b < a + in.size())
        throw std::invalid_argument(std::string("out overlaps ") + name + ": the filter cannot work in place");
}

template <typename Array>
vexpress::FrameSize size_of(const Array &frames, std::size_t rows_axis) {
    return {static_cast<std::ptrdiff_t>(frames.shape(rows_axis)),
            static_cast<std::ptrdiff_t>(frames.shape(rows_axis + 1))};
}

void median_frame(FrameIn previous, FrameIn current, FrameIn next, FrameOut out, int threads,
                  const std::string &kernel) {
    check_pair(previous, out, "previous");
    check_pair(current, out, "current");
    check_pair(next, out, "next");
    const vexpress::MedianRows rows = kernel_named(kernel);
    const vexpress::FrameSize size = size_of(out, 0);
    const vexpress::FrameJob job{previous.data(), current.data(), next.data(), out.data()};
    nb::gil_scoped_release release;
    vexpress::median_frames(&job, 1, size, threads, rows);
}

void median_clip(ClipIn clip, ClipOut out, int threads, const std::string &kernel) {
    check_pair(clip, out, "clip");
    const vexpress::MedianRows rows = kernel_named(kernel);
    const std::size_t count = out.shape(0);
    const vexpress::FrameSize size = size_of(out, 1);
    const std::size_t frame = out.shape(1) * out.shape(2) * vexpress::kChannels;
    const std::uint8_t *in = clip.data();
    std::vector<vexpress::FrameJob> jobs(count);
    for (std::size_t t = 0; t < count; ++t) {
        const std::size_t before = t > 0 ? t - 1 : (count > 1 ? 1 : 0);
        const std::size_t after = t + 1 < count ? t + 1 : (t > 0 ? t - 1 : 0);
        jobs[t] = {in + before * frame, in + t * frame, in + after * frame, out.data() + t * frame};
    }
    nb::gil_scoped_release release;
    vexpress::median_frames(jobs.data(), static_cast<std::ptrdiff_t>(count), size, threads, rows);
}

std::vector<std::string> median_kernels() {
    vexpress::Kernel kernels[vexpress::kMaxKernels];
    const int count = vexpress::usable_kernels(kernels);
    std::vector<std::string> names;
    for (int i = 0; i < count; ++i) names.emplace_back(kernels[i].name);
    return names;
}

template <typename Value, int... Shape>
using Array = nb::ndarray<Value, nb::shape<Shape...>, nb::c_contig, nb::device::cpu>;

int step_window(Array<const float, -1, -1, -1> prediction, Array<float, -1, -1> samples,
                Array<float, -1, -1, -1> pending, Array<const std::int32_t, -1, 4> frames, float guidance,
                Array<const float, 5> step, std::optional<Array<float, -1, -1>> history) {
    const std::ptrdiff_t halves = prediction.shape(0), count = prediction.shape(1), size = prediction.shape(2);
    const std::ptrdiff_t slots = samples.shape(0), most = pending.shape(1);
    if (halves < 1 || halves > 2) throw std::invalid_argument("prediction has neither one half nor two");
    if (static_cast<std::ptrdiff_t>(frames.shape(0)) != count) throw std::invalid_argument("frames differ in number");
    if (static_cast<std::ptrdiff_t>(samples.shape(1)) != size || static_cast<std::ptrdiff_t>(pending.shape(2)) != size ||
        static_cast<std::ptrdiff_t>(pending.shape(0)) != slots)
        throw std::invalid_argument("samples, pending and prediction differ in shape");
    if (history && (history->shape(0) != samples.shape(0) || history->shape(1) != samples.shape(1)))
        throw std::invalid_argument("history and samples differ in shape");
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const std::int32_t slot = frames(i, 0), windows = frames(i, 1), rank = frames(i, 2);
        if (slot < 0 || slot >= slots || windows < 1 || windows > most || rank < 0 || rank >= windows)
            throw std::invalid_argument("a frame names a slot or window that is not there");
    }
    const vexpress::StepWeights weights{guidance, step(0), step(1), step(2), step(3), step(4)};
    const float *first = prediction.data(), *last = first + (halves - 1) * count * size;
    float *sample = samples.data(), *waiting = pending.data(), *past = history ? history->data() : nullptr;
    const std::int32_t *of = frames.data();
    nb::gil_scoped_release release;
    for (std::ptrdiff_t i = 0; i < count; ++i, of += 4) {
        const vexpress::FrameStep<float> frame{halves == 2 ? first + i * size : nullptr,
                                        last + i * size,
                                        sample + of[0] * size,
                                        past ? past + of[0] * size : nullptr,
                                        waiting + of[0] * most * size,
                                        of[1],
                                        of[2],
                                        of[3] != 0};
        if (!vexpress::step_frame(frame, weights, size)) return static_cast<int>(i);
    }
    return -1;
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native helpers of the vexpress_trt runtime.";
    m.def("median_3x3x3", &median_frame, "previous"_a.noconvert(), "current"_a.noconvert(), "next"_a.noconvert(),
          "out"_a.noconvert(), "threads"_a = 0, "kernel"_a = "",
          "Median over time, row and column of three uint8 frames [H, W, 3] into `out`, per channel.\n\n"
          "Rows and columns outside are mirrored at the edge without repeating it. threads: 0 takes as many as the\n"
          "process may use. kernel: one of median_kernels(), '' the fastest. Releases the GIL.\n"
          "Raises ValueError where shapes differ or `out` overlaps an input.");
    m.def("median_3x3x3_clip", &median_clip, "clip"_a.noconvert(), "out"_a.noconvert(), "threads"_a = 0,
          "kernel"_a = "", "The same for a whole clip uint8 [T, H, W, 3], mirrored in time as in space.");
    m.def("median_kernels", &median_kernels,
          "Instruction sets that this build holds and this processor runs, fastest first.");
    m.def("step_window", &step_window, "prediction"_a.noconvert(), "samples"_a.noconvert(), "pending"_a.noconvert(),
          "frames"_a.noconvert(), "guidance"_a, "step"_a.noconvert(), "history"_a.noconvert() = nb::none(),
          "Guidance, overlap mean and a solver's step of a window, all float32, in place.\n\n"
          "prediction [G, F, N], G = 2: unconditional, conditional; samples [S, N] and pending [S, W, N]: a frame's\n"
          "latent and the shares of windows that were predicted before, by slot; frames int32 [F, 4]: slot, number of\n"
          "windows that contain the frame, this window's place among them, whether it is the last one missing.\n"
          "step [5]: weights of sample, prediction and history, signal and noise; history [S, N]: noise-free latents of\n"
          "the step before, replaced by this step's, or None where the solver needs none.\n"
          "Returns the first frame whose prediction is not finite, or -1. Releases the GIL.\n"
          "Raises ValueError for shapes and places that do not fit.");
    bind_host_kernels(m);
}
