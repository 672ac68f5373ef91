// The driver's functions for modules and kernels.
#include <cstring>

#include "call.h"
#include "kernels.h"

using namespace stand_in;

namespace {

// A cubin's bytes: its section headers come last.
std::string image_at(const void *data) {
    const auto *bytes = static_cast<const unsigned char *>(data);
    if (std::memcmp(bytes, "\x7f" "ELF", 4) != 0) return "";
    std::uint64_t headers;
    std::uint16_t size, count;
    std::memcpy(&headers, bytes + 40, 8);
    std::memcpy(&size, bytes + 58, 2);
    std::memcpy(&count, bytes + 60, 2);
    return {reinterpret_cast<const char *>(bytes), headers + std::size_t{size} * count};
}

}  // namespace

EXPORTED int cuModuleLoadData(Address *module, const void *image) {
    Call call(__func__);
    TRY(call.safe_context_needed());
    const auto made = std::make_shared<Module>(Module{call.context, image_at(image)});
    if (made->image.empty()) return call.refuse(INVALID_IMAGE, "this is no cubin");
    *module = state().modules.add(made);
    return SUCCESS;
}

EXPORTED int cuModuleUnload(Address module) {
    Call call(__func__);
    TRY(call.safe_needed());
    TRY(call.live_context_needed());
    const auto found = state().modules.find(module);
    if (!found) return call.refuse(INVALID_HANDLE, "there is no such module");
    if (found->context != call.context) return call.refuse(INVALID_HANDLE, "a module of another GPU");
    state().modules.remove(module);
    return call.context->failure;
}

EXPORTED int cuModuleGetFunction(Address *function, Address module, const char *name) {
    Call call(__func__);
    TRY(call.context_needed());
    const auto found = state().modules.find(module);
    if (!found) return call.refuse(INVALID_HANDLE, "there is no such module");
    const std::string section = std::string(".text.") + name + '\0';
    const auto kernel = kernels().find(name);
    if (kernel == kernels().end() || found->image.find(section) == std::string::npos)
        return call.refuse(NOT_FOUND, std::string("there is no kernel ") + name);
    *function = state().functions.add(std::make_shared<Function>(Function{call.context, name, &kernel->second}));
    return SUCCESS;
}

EXPORTED int cuLaunchKernel(Address function, unsigned columns, unsigned rows, unsigned layers, unsigned threads,
                            unsigned thread_rows, unsigned thread_layers, unsigned shared, Address stream, void **given,
                            void **) {
    Call call(__func__);
    TRY(call.context_needed());
    TRY(call.stream_needed(stream));
    const auto found = state().functions.find(function);
    if (!found || found->context != call.context) return call.refuse(INVALID_HANDLE, "there is no such function here");
    if (columns == 0 || columns > 0x7FFFFFFF || rows == 0 || rows > 65535 || layers != 1 || threads == 0 ||
        threads > 1024 || thread_rows != 1 || thread_layers != 1 || shared != 0)
        return call.refuse(INVALID_VALUE, found->name + ": this grid");
    std::vector<std::uint64_t> values;
    for (std::size_t i = 0; i < found->kernel->parameters.size(); ++i) {
        const Parameter &parameter = found->kernel->parameters[i];
        std::uint64_t value = 0;
        std::memcpy(&value, given[i], parameter.size);
        if (parameter.pointer && value != 0 && call.device_memory_needed(value, 1) != SUCCESS)
            return call.refuse(INVALID_VALUE, found->name + ": argument " + std::to_string(i));
        values.push_back(value);
    }
    const Dim3 grid{columns, rows, 1}, block{threads, 1, 1};
    const bool backwards = state().queues.random()() % 2 != 0;
    call.enqueue([=] {
        auto copies = values;
        std::vector<void *> arguments;
        for (auto &value : copies) arguments.push_back(&value);
        state().queues.trap.running = found->name;
        guarded([&] { run_grid(*found->kernel, grid, block, arguments.data(), backwards); });
    });
    return SUCCESS;
}
