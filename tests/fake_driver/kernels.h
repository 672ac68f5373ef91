// The kernels of runtime/native/cuda/kernels.cu on the CPU, one thread of a grid after the other.
//
// VX_STAND_IN_KERNELS is defined by what builds this: K(vx_name) for each of them.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};
static Dim3 blockIdx, gridDim, blockDim, threadIdx;

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads)
#include "cuda/kernels.cu"

namespace stand_in {

struct Parameter {
    bool pointer;
    std::size_t size;
};

struct Kernel {
    std::vector<Parameter> parameters;
    std::function<void(void **)> thread;  // one thread, with the addresses of the arguments
};

template <typename... P, std::size_t... I>
std::function<void(void **)> caller(void (*kernel)(P...), std::index_sequence<I...>) {
    return [kernel](void **given) { kernel(*static_cast<P *>(given[I])...); };
}

template <typename... P>
Kernel described(void (*kernel)(P...)) {
    return {{Parameter{std::is_pointer_v<P>, sizeof(P)}...}, caller(kernel, std::index_sequence_for<P...>{})};
}

inline const std::map<std::string, Kernel> &kernels() {
#define K(name) {#name, described(name)},
    static const std::map<std::string, Kernel> all{VX_STAND_IN_KERNELS};
#undef K
    return all;
}

// All threads of a grid, the first one first or, as `backwards` says, last.
inline void run_grid(const Kernel &kernel, Dim3 grid, Dim3 block, void **arguments, bool backwards) {
    gridDim = grid, blockDim = block;
    const std::size_t threads = std::size_t{block.x}, blocks = std::size_t{grid.x} * grid.y, total = threads * blocks;
    for (std::size_t number = 0; number < total; ++number) {
        const std::size_t at = backwards ? total - 1 - number : number, of_block = at / threads;
        blockIdx = {static_cast<unsigned>(of_block % grid.x), static_cast<unsigned>(of_block / grid.x), 0};
        threadIdx = {static_cast<unsigned>(at % threads), 0, 0};
        kernel.thread(arguments);
    }
}

}  // namespace stand_in
