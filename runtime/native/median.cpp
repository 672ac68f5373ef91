// Which kernel runs, and how the rows are shared between threads.
#include "median.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace vexpress {

int usable_kernels(Kernel (&kernels)[kMaxKernels]) {
    int count = 0;
#ifdef VEXPRESS_X86_KERNELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        kernels[count++] = {"avx512", avx512::median_rows};
    if (__builtin_cpu_supports("avx2")) kernels[count++] = {"avx2", avx2::median_rows};
#endif
    kernels[count++] = {"baseline", baseline::median_rows};
    return count;
}

namespace {

// A band costs three extra rows to start, and a thread some 20 microseconds: neither should show.
constexpr std::ptrdiff_t kBandRows = 64;
constexpr std::ptrdiff_t kBytesPerThread = 96 * 1024;

int thread_count(int asked, std::ptrdiff_t bytes) {
    const int limit = asked > 0 ? asked : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    return static_cast<int>(std::clamp<std::ptrdiff_t>(bytes / kBytesPerThread, 1, limit));
}

}  // namespace

void median_frames(const FrameJob *jobs, std::ptrdiff_t count, FrameSize size, int threads, MedianRows rows) {
    if (count <= 0 || size.height <= 0 || size.width <= 0) return;
    const int workers = thread_count(threads, count * size.height * size.width * kChannels);

    // Whole frames where there are enough of them, otherwise bands of an even number of rows.
    std::ptrdiff_t band = size.height;
    if (workers > 1 && count < 4 * workers) {
        band = std::max<std::ptrdiff_t>((size.height * count + workers - 1) / workers, 1);
        band = std::min(std::max(kBandRows, (band + 1) / 2 * 2), size.height);
    }
    const std::ptrdiff_t bands = (size.height + band - 1) / band;
    std::atomic<std::ptrdiff_t> next_item{0};

    const auto work = [&] {
        for (;;) {
            const std::ptrdiff_t item = next_item.fetch_add(1, std::memory_order_relaxed);
            if (item >= count * bands) return;
            const std::ptrdiff_t begin = item % bands * band;
            rows(jobs[item / bands], size, begin, std::min(begin + band, size.height));
        }
    };

    std::vector<std::thread> pool;
    pool.reserve(static_cast<std::size_t>(workers - 1));
    for (int i = 1; i < workers; ++i) {
        try {
            pool.emplace_back(work);
        } catch (const std::system_error &) {
            break;  // the system gives no more threads: the ones there are do the work
        }
    }
    work();
    for (std::thread &thread : pool) thread.join();
}

}  // namespace vexpress
