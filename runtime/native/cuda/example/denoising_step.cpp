// The loop between the graphs, as a C++ host drives it: start from noise, gather a window's latents, step it with a
// prediction, and take a decoded image as bytes. The denoiser and the decoder, which a host runs in its own engines,
// are left out: buffers that the host has filled stand for what they give.
//
// Prints what it checked and ends with 0; where CUDA refuses, prints the code with its words and ends with 1.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "vexpress_cuda.h"

namespace {

constexpr std::int64_t kFrames = 2, kSize = 4 * 8 * 8;        // a window of two frames with latents [4, 8, 8]
constexpr std::int64_t kHeight = 64, kWidth = 64, kMost = 1;  // no frame is in more than one window
constexpr float kGuidance = 2.0f, kSample = 0.5f, kPrediction = 0.25f;

void check(int code, const char *what) {
    if (code != 0)
        throw std::runtime_error(std::string(what) + ": error " + std::to_string(code) + ", " +
                                 vexpress_cuda_error_string(code));
}

// An array on the device.
template <typename Value>
class Buffer {
public:
    explicit Buffer(std::size_t count) : count_(count) {
        check(cudaMalloc(reinterpret_cast<void **>(&data_), count * sizeof(Value)), "cudaMalloc");
        check(cudaMemset(data_, 0, count * sizeof(Value)), "cudaMemset");
    }
    explicit Buffer(const std::vector<Value> &values) : Buffer(values.size()) {
        check(cudaMemcpy(data_, values.data(), count_ * sizeof(Value), cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    ~Buffer() { cudaFree(data_); }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    Value *data() const { return data_; }
    std::vector<Value> values() const {
        std::vector<Value> host(count_);
        check(cudaMemcpy(host.data(), data_, count_ * sizeof(Value), cudaMemcpyDeviceToHost), "cudaMemcpy");
        return host;
    }

private:
    std::size_t count_;
    Value *data_ = nullptr;
};

struct Stream {
    Stream() { check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "cudaStreamCreate"); }
    ~Stream() { cudaStreamDestroy(handle); }
    cudaStream_t handle = nullptr;
};

void require(bool holds, const char *what) {
    if (!holds) throw std::runtime_error(std::string("wrong result: ") + what);
}

void run() {
    int gpus = 0;
    check(cudaGetDeviceCount(&gpus), "cudaGetDeviceCount");
    check(vexpress_cuda_prepare(), "vexpress_cuda_prepare");

    // The schedule: one call, whose frames lie in slots 1 and 0 of the ring and are final after it.
    const Buffer<std::int32_t> slots({1, 0}), places({1, 1, 0, 1, 0, 1, 0, 1}), cursor(1), status(1);
    const Buffer<float> weights({kGuidance, kSample, kPrediction, 0.0f, 0.0f, 0.0f});

    // The unconditional half predicts 1, the other one 2: guided by 2, that is 1 + 2 (2 - 1) = 3.
    std::vector<float> halves(2 * kFrames * kSize, 1.0f);
    for (std::size_t i = halves.size() / 2; i < halves.size(); ++i) halves[i] = 2.0f;
    const Buffer<float> prediction(halves), ring(kFrames * kSize), pending(kFrames * kMost * kSize);
    const Buffer<std::uint16_t> latents(kFrames * kSize);  // float16, as the denoiser takes them
    const Buffer<float> image(std::vector<float>(3 * kHeight * kWidth, 0.0f));
    const Buffer<std::uint8_t> rgb(3 * kHeight * kWidth);
    check(cudaDeviceSynchronize(), "filling the buffers");  // the stream does not wait for the default one

    Stream stream;
    void *const on = stream.handle;
    for (std::uint32_t frame = 0; frame < kFrames; ++frame)
        check(vexpress_noise(ring.data() + frame * kSize, 42, frame, kSize, on), "vexpress_noise");
    check(cudaStreamSynchronize(stream.handle), "noise");
    const std::vector<float> noise = ring.values();

    check(vexpress_gather_latents(ring.data(), slots.data(), cursor.data(), latents.data(), kFrames, kSize, kFrames,
                                  VEXPRESS_FLOAT16, on),
          "vexpress_gather_latents");
    // Here the host's engine would read `latents` and write `prediction` on the same stream.
    check(vexpress_step_window(prediction.data(), VEXPRESS_FLOAT32, 2, kFrames, kSize, ring.data(), pending.data(),
                               kMost, nullptr, places.data(), weights.data(), cursor.data(), status.data(), on),
          "vexpress_step_window");
    check(vexpress_advance(cursor.data(), on), "vexpress_advance");
    check(vexpress_to_rgb8(image.data(), VEXPRESS_FLOAT32, kHeight, kWidth, rgb.data(), status.data(), on),
          "vexpress_to_rgb8");
    check(cudaStreamSynchronize(stream.handle), "the call");

    const std::vector<float> stepped = ring.values();
    for (std::size_t i = 0; i < stepped.size(); ++i)
        require(std::fabs(stepped[i] - (kSample * noise[i] + kPrediction * 3.0f)) < 1e-5f, "a stepped latent");
    for (const std::uint8_t byte : rgb.values()) require(byte == 127, "a byte of the image");
    require(cursor.values()[0] == 1, "the number of the next call");
    require(status.values()[0] == 0, "all values are finite");
    std::printf("%lld frames stepped, one image in bytes, all as expected\n", static_cast<long long>(kFrames));
}

}  // namespace

int main() {
    try {
        run();
    } catch (const std::exception &problem) {
        std::fprintf(stderr, "%s\n", problem.what());
        return 1;
    }
    return 0;
}
