// A stand-in of the CUDA driver on the CPU, as libcuda.so.1: two GPUs (sm89) whose memory is the host's and whose
// kernels are those of runtime/native/cuda, so that everything above the driver runs as it does on a GPU.
//
// It is as strict as the driver's documentation, and as unhelpful: see memory.h for what it notices of memory and work.h
// for when work runs. What it refuses is kept as a sentence for `stand_in_report`. It knows what this project calls;
// other functions are missing, and blocking streams and events in captured work are refused.
#include <dlfcn.h>

#include <csignal>
#include <cstdio>

#include "call.h"

using namespace stand_in;

namespace {

struct sigaction before_segv, before_bus, before_ill;

// Faults of kernels and copies are errors of the GPU; others belong to whoever handled them before.
void on_fault(int signal, siginfo_t *about, void *) {
    Trap &trap = state().queues.trap;
    if (trap.armed) siglongjmp(trap.place, signal == SIGILL ? MISALIGNED_ADDRESS : ILLEGAL_ADDRESS);
    std::fprintf(stderr, "stand-in of the CUDA driver: a fault at %p outside kernels (running: %s)\n", about->si_addr,
                 trap.running.c_str());
    sigaction(signal, signal == SIGSEGV ? &before_segv : signal == SIGBUS ? &before_bus : &before_ill, nullptr);
}

void start() {
    if (state().started) return;
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
    sigaction(SIGILL, &action, &before_ill);
    state().queues.failed = [](const Item &item, int code) {
        item.context->failure = code;
        state().complaints.push_back(item.name + ": " + kNames.at(code) + " while it ran");
    };
    state().started = true;
}

}  // namespace

EXPORTED int cuInit(unsigned) {
    const Call call(__func__);
    start();
    return SUCCESS;
}

EXPORTED int cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}

EXPORTED int cuDeviceGetCount(int *count) {
    *count = kDevices;
    return SUCCESS;
}

EXPORTED int cuDeviceGet(int *device, int number) {
    Call call(__func__);
    if (number < 0 || number >= kDevices) return call.refuse(INVALID_DEVICE, "there is no such GPU");
    *device = number;
    return SUCCESS;
}

EXPORTED int cuDeviceGetName(char *name, int size, int device) {
    std::snprintf(name, static_cast<std::size_t>(size), "stand-in %d", device);
    return SUCCESS;
}

EXPORTED int cuDeviceTotalMem_v2(std::size_t *bytes, int) {
    const Call call(__func__);
    *bytes = state().total;
    return SUCCESS;
}

EXPORTED int cuDeviceGetAttribute(int *value, int attribute, int) {
    Call call(__func__);
    static const std::map<int, int> known{{16, 24}, {75, 8}, {76, 9}};  // multiprocessors, compute capability
    const auto found = known.find(attribute);
    if (found == known.end()) return call.refuse(INVALID_VALUE, "attribute " + std::to_string(attribute));
    *value = found->second;
    return SUCCESS;
}

EXPORTED int cuDevicePrimaryCtxRetain(Address *context, int device) {
    Call call(__func__);
    if (!state().started) return call.refuse(NOT_INITIALIZED, "before cuInit");
    Address &primary = state().primary[device];
    if (primary == 0) {
        primary = state().contexts.add(std::make_shared<Context>());
        state().contexts.find(primary)->device = device;
    }
    ++state().contexts.find(primary)->retained;
    *context = primary;
    return SUCCESS;
}

EXPORTED int cuDevicePrimaryCtxRelease_v2(int device) {
    Call call(__func__);
    const auto context = state().contexts.find(state().primary[device]);
    if (!context) return call.refuse(INVALID_CONTEXT, "released more often than retained");
    if (--context->retained > 0) return SUCCESS;
    finish_all();
    if (context->memory.count() != 0) call.refuse(SUCCESS, "the context ends with memory in use");
    state().contexts.remove(state().primary[device]);
    state().primary[device] = 0;
    return SUCCESS;
}

EXPORTED int cuCtxPushCurrent_v2(Address context) {
    Call call(__func__);
    if (!state().contexts.find(context)) return call.refuse(INVALID_CONTEXT, "there is no such context");
    pushed.contexts.push_back(context);
    return SUCCESS;
}

EXPORTED int cuCtxPopCurrent_v2(Address *context) {
    Call call(__func__);
    if (pushed.contexts.empty()) return call.refuse(INVALID_CONTEXT, "no context is current");
    if (context) *context = pushed.contexts.back();
    pushed.contexts.pop_back();
    return SUCCESS;
}

EXPORTED int cuCtxGetDevice(int *device) {
    Call call(__func__);
    TRY(call.context_needed());
    *device = call.context->device;
    return SUCCESS;
}

EXPORTED int cuCtxSynchronize() {
    Call call(__func__);
    TRY(call.safe_context_needed());
    finish_all();
    return call.context->failure;
}

EXPORTED int cuGetErrorName(int code, const char **text) {
    const auto found = kNames.find(code);
    *text = found == kNames.end() ? nullptr : found->second;
    return *text ? SUCCESS : INVALID_VALUE;
}

EXPORTED int cuGetErrorString(int, const char **text) {
    static std::string said;
    const Call call(__func__);
    said = state().complaints.empty() ? "no more is known" : state().complaints.back();
    *text = said.c_str();
    return SUCCESS;
}

EXPORTED int cuGetProcAddress_v2(const char *name, void **function, int, std::uint64_t, int *outcome) {
    static void *const self = [] {
        Dl_info about;
        return dladdr(reinterpret_cast<void *>(cuInit), &about) ? dlopen(about.dli_fname, RTLD_NOW) : nullptr;
    }();
    *function = nullptr;
    for (const char *version : {"_v2", "", "WithFlags"})
        if (!*function) *function = dlsym(self, (std::string(name) + version).c_str());
    if (outcome) *outcome = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}

// NVRTC asks the driver for tables of functions that nobody documents: they are empty.
EXPORTED int cuGetExportTable(const void **table, const void *) {
    static const std::size_t empty[] = {sizeof(std::size_t)};
    *table = empty;
    return SUCCESS;
}

// For tests: the order in which work runs from now on, and each GPU's bytes of memory.
EXPORTED void stand_in_seed(std::uint64_t seed) {
    const Call call(__func__);
    state().queues.seed(seed);
}

EXPORTED void stand_in_memory(std::size_t bytes) {
    const Call call(__func__);
    state().total = bytes;
}

// After a fault: go on as a new process would.
EXPORTED void stand_in_recover() {
    const Call call(__func__);
    for (const auto &[handle, context] : state().contexts.all()) context->failure = SUCCESS;
}

// How often something was done: a function of the driver by name, or "pageable copies".
EXPORTED long stand_in_count(const char *what) {
    const std::lock_guard<std::recursive_mutex> held(state().mutex);
    return state().counts[what];
}

// What was refused since the last report, and what exists now: one sentence a line.
EXPORTED const char *stand_in_report() {
    static std::string text;
    const std::lock_guard<std::recursive_mutex> held(state().mutex);
    finish_all();
    std::vector<std::string> lines = std::move(state().complaints);
    state().complaints.clear();
    const auto remaining = [&lines](const std::string &what, std::size_t count) {
        if (count != 0) lines.push_back("left: " + std::to_string(count) + " " + what);
    };
    for (const auto &[handle, context] : state().contexts.all()) {
        const std::string device = " of GPU " + std::to_string(context->device);
        remaining("retains" + device, static_cast<std::size_t>(context->retained));
        remaining("allocations" + device, context->memory.count());
    }
    remaining("pinned allocations", state().pinned.count());
    remaining("streams", state().streams.count());
    remaining("events", state().events.count());
    remaining("modules", state().modules.count());
    remaining("graphs", state().graphs.count());
    remaining("executable graphs", state().executables.count());
    remaining("pushed contexts", pushed.contexts.size());
    text.clear();
    for (const std::string &line : lines) text += line + "\n";
    return text.c_str();
}
