// A stand-in of the CUDA driver on the CPU, as libcuda.so.1: two GPUs (sm89) whose memory is the host's and whose
// kernels are those of runtime/native/cuda, so that everything above the driver runs as it does on a GPU.
//
// It is as strict as the driver's documentation, and as unhelpful: see memory.h for what it notices of memory and work.h
// for when work runs. What it refuses is kept as a sentence for `stand_in_report`. It knows what this project calls;
// other functions are missing, and blocking streams and events in captured work are refused.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <mutex>

#include "kernels.h"
#include "memory.h"
#include "work.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

using namespace stand_in;

namespace {

// CUresult
enum : int {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
    MISALIGNED_ADDRESS = 716, NOT_PERMITTED = 800, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901, WRONG_THREAD = 908,
};

const std::map<int, const char *> kNames{
    {SUCCESS, "CUDA_SUCCESS"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
    {NOT_READY, "CUDA_ERROR_NOT_READY"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
    {MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS"},
    {NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
    {WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"},
};

constexpr int kDevices = 2;
constexpr unsigned kNonBlocking = 1, kNoTiming = 2;

struct Module {
    std::shared_ptr<Context> context;
    std::string image;
};

struct Function {
    std::shared_ptr<Context> context;
    std::string name;
    const Kernel *kernel;
};

// Objects by handle. No handle is given out twice, so that one which is used after its end is noticed.
template <typename Value>
class Handles {
public:
    Address add(std::shared_ptr<Value> value) {
        static Address &next = *new Address(0x1000);
        next += 0x10;
        const Address handle = next * 8 + kind_;
        values_[handle] = std::move(value);
        return handle;
    }
    std::shared_ptr<Value> find(Address handle) const {
        const auto found = values_.find(handle);
        return found == values_.end() ? nullptr : found->second;
    }
    bool remove(Address handle) { return values_.erase(handle) != 0; }
    std::size_t count() const { return values_.size(); }
    const std::map<Address, std::shared_ptr<Value>> &all() const { return values_; }

    explicit Handles(Address kind) : kind_(kind) {}

private:
    Address kind_;  // tells handles of different kinds apart
    std::map<Address, std::shared_ptr<Value>> values_;
};

struct State {
    std::recursive_mutex mutex;
    bool started = false;
    std::size_t total = std::size_t{8} << 30;  // bytes of memory of each GPU
    Address primary[kDevices] = {};
    Arena pinned;
    Queues queues;
    Handles<Context> contexts{1};
    Handles<Stream> streams{2};
    Handles<Event> events{3};
    Handles<Module> modules{4};
    Handles<Function> functions{5};
    Handles<Graph> graphs{6}, executables{7};
    std::vector<std::string> complaints;
    std::map<std::string, long> counts;
};

State &state() {
    static State &only = *new State;  // outlives whatever runs at the process's end
    return only;
}

struct Pushed {
    std::vector<Address> contexts;
    ~Pushed() {
        if (contexts.empty()) return;
        const std::lock_guard<std::recursive_mutex> held(state().mutex);
        state().complaints.push_back("a thread ended with a context pushed and not popped");
    }
};
thread_local Pushed pushed;

// One call of the driver: holds the lock, is counted, and keeps why it was refused.
class Call {
public:
    explicit Call(const char *name) : held_(state().mutex), name_(name) { ++state().counts[name]; }

    int refuse(int code, const std::string &why) {
        state().complaints.push_back(name_ + ": " + why);
        return code;
    }

    // What is wrong with calling this at all; `context` is the current one after it.
    int context_needed() {
        if (!state().started) return refuse(NOT_INITIALIZED, "before cuInit");
        context = pushed.contexts.empty() ? nullptr : state().contexts.find(pushed.contexts.back());
        if (!context) return refuse(INVALID_CONTEXT, "no context is current");
        return context->failure;
    }

    // As before, for what may not be called while this thread captures a stream: the capture is void then.
    int safe_context_needed() {
        for (const auto &[handle, stream] : state().streams.all())
            if (stream->captured && stream->capturing_thread == std::this_thread::get_id()) {
                stream->spoilt = true;
                return refuse(CAPTURE_UNSUPPORTED, "while a stream is being captured");
            }
        if (state().queues.running()) return refuse(NOT_PERMITTED, "from a host function");
        return context_needed();
    }

    int stream_needed(Address handle) {
        stream = handle == 0 ? state().queues.null() : state().streams.find(handle);
        if (!stream) return refuse(INVALID_HANDLE, "there is no such stream");
        if (stream->context && stream->context != context) return refuse(INVALID_HANDLE, "a stream of another GPU");
        return SUCCESS;
    }

    int event_needed(Address handle) {
        event = state().events.find(handle);
        if (!event) return refuse(INVALID_HANDLE, "there is no such event");
        return SUCCESS;
    }

    int device_memory_needed(Address at, std::size_t size) {
        if (context->memory.holds(at, size)) return SUCCESS;
        for (const auto &[handle, other] : state().contexts.all())
            if (other != context && other->memory.owns(at)) return refuse(INVALID_VALUE, "memory of another GPU");
        return refuse(INVALID_VALUE, "this is not memory of the GPU, or ends too early");
    }

    // `is_pinned` says what kind it is.
    int host_memory_needed(Address at, std::size_t size) {
        is_pinned = state().pinned.owns(at);
        if (is_pinned && !state().pinned.holds(at, size)) return refuse(INVALID_VALUE, "pinned memory that was freed");
        for (const auto &[handle, other] : state().contexts.all())
            if (other->memory.owns(at)) return refuse(INVALID_VALUE, "memory of a GPU in place of the host's");
        if (!is_pinned) ++state().counts["pageable copies"];
        return SUCCESS;
    }

    void enqueue(std::function<void()> run, std::function<bool()> ready = nullptr) {
        state().queues.enqueue(*stream, {name_, context, std::move(run), std::move(ready)});
    }

    void finish() {
        state().queues.until([this] { return stream->queue.empty(); });
    }

    std::shared_ptr<Context> context;
    std::shared_ptr<Stream> stream;
    std::shared_ptr<Event> event;
    bool is_pinned = false;

private:
    std::lock_guard<std::recursive_mutex> held_;
    std::string name_;
};

#define TRY(step) \
    if (const int code = (step); code != SUCCESS) return code

void finish_all() {
    state().queues.until([] { return false; });
}

// Copy or fill with faults caught.
void guarded(const std::function<void()> &access) {
    Trap &trap = state().queues.trap;
    trap.armed = true;
    access();
    trap.armed = false;
}

std::function<void()> copying(Address target, Address source, std::size_t size) {
    return [=] {
        guarded([=] { std::memcpy(reinterpret_cast<void *>(target), reinterpret_cast<void *>(source), size); });
    };
}

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

EXPORTED int cuCtxGetCurrent(Address *context) {
    const Call call(__func__);
    *context = pushed.contexts.empty() ? 0 : pushed.contexts.back();
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

EXPORTED int cuMemGetInfo_v2(std::size_t *available, std::size_t *total) {
    Call call(__func__);
    TRY(call.context_needed());
    *total = state().total;
    *available = state().total - call.context->memory.used();
    return SUCCESS;
}

EXPORTED int cuMemAlloc_v2(Address *address, std::size_t size) {
    Call call(__func__);
    TRY(call.safe_context_needed());
    if (size == 0) return call.refuse(INVALID_VALUE, "no bytes");
    if (size > state().total - call.context->memory.used()) return OUT_OF_MEMORY;
    *address = call.context->memory.allocate(size);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

EXPORTED int cuMemFree_v2(Address address) {
    Call call(__func__);
    TRY(call.safe_context_needed());
    finish_all();  // as documented: it waits
    const std::string wrong = call.context->memory.free(address);
    return wrong.empty() ? call.context->failure : call.refuse(INVALID_VALUE, wrong);
}

EXPORTED int cuMemHostAlloc(void **address, std::size_t size, unsigned) {
    Call call(__func__);
    TRY(call.safe_context_needed());
    *address = reinterpret_cast<void *>(size == 0 ? 0 : state().pinned.allocate(size));
    return *address ? SUCCESS : call.refuse(INVALID_VALUE, "no bytes, or too many");
}

EXPORTED int cuMemFreeHost(void *address) {
    Call call(__func__);
    TRY(call.safe_context_needed());
    const std::string wrong = state().pinned.free(reinterpret_cast<Address>(address));
    return wrong.empty() ? SUCCESS : call.refuse(INVALID_VALUE, wrong);
}

EXPORTED int cuMemcpyHtoDAsync_v2(Address target, const void *source, std::size_t size, Address stream) {
    Call call(__func__);
    TRY(call.context_needed());
    TRY(call.stream_needed(stream));
    TRY(call.device_memory_needed(target, size));
    TRY(call.host_memory_needed(reinterpret_cast<Address>(source), size));
    if (call.is_pinned) {
        call.enqueue(copying(target, reinterpret_cast<Address>(source), size));
        return SUCCESS;
    }
    if (call.stream->captured) return call.refuse(CAPTURE_UNSUPPORTED, "pageable memory in captured work");
    const auto staged = std::make_shared<std::string>(static_cast<const char *>(source), size);
    call.enqueue([=] { copying(target, reinterpret_cast<Address>(staged->data()), size)(); });
    return SUCCESS;
}

EXPORTED int cuMemcpyHtoD_v2(Address target, const void *source, std::size_t size) {
    Call call(__func__);
    TRY(call.safe_context_needed());
    TRY(cuMemcpyHtoDAsync_v2(target, source, size, 0));
    TRY(call.stream_needed(0));
    if (state().pinned.owns(reinterpret_cast<Address>(source))) call.finish();  // else the copy may still be on its way
    return call.context->failure;
}

EXPORTED int cuMemcpyDtoHAsync_v2(void *target, Address source, std::size_t size, Address stream) {
    Call call(__func__);
    TRY(call.context_needed());
    TRY(call.stream_needed(stream));
    TRY(call.device_memory_needed(source, size));
    TRY(call.host_memory_needed(reinterpret_cast<Address>(target), size));
    if (call.stream->captured && !call.is_pinned)
        return call.refuse(CAPTURE_UNSUPPORTED, "pageable memory in captured work");
    call.enqueue(copying(reinterpret_cast<Address>(target), source, size));
    if (!call.is_pinned) call.finish();
    return call.context->failure;
}

EXPORTED int cuMemcpyDtoH_v2(void *target, Address source, std::size_t size) {
    Call call(__func__);
    TRY(call.safe_context_needed());
    TRY(cuMemcpyDtoHAsync_v2(target, source, size, 0));
    TRY(call.stream_needed(0));
    call.finish();
    return call.context->failure;
}

EXPORTED int cuMemcpyDtoDAsync_v2(Address target, Address source, std::size_t size, Address stream) {
    Call call(__func__);
    TRY(call.context_needed());
    TRY(call.stream_needed(stream));
    TRY(call.device_memory_needed(target, size));
    TRY(call.device_memory_needed(source, size));
    call.enqueue(copying(target, source, size));
    return SUCCESS;
}

EXPORTED int cuMemsetD8Async(Address target, unsigned char value, std::size_t size, Address stream) {
    Call call(__func__);
    TRY(call.context_needed());
    TRY(call.stream_needed(stream));
    TRY(call.device_memory_needed(target, size));
    call.enqueue([=] { guarded([=] { std::memset(reinterpret_cast<void *>(target), value, size); }); });
    return SUCCESS;
}

EXPORTED int cuMemsetD8_v2(Address target, unsigned char value, std::size_t size) {
    Call call(__func__);
    TRY(call.safe_context_needed());
    return cuMemsetD8Async(target, value, size, 0);  // it does not wait, and streams do not wait for it
}

EXPORTED int cuStreamCreate(Address *stream, unsigned flags) {
    Call call(__func__);
    TRY(call.context_needed());
    if (flags != kNonBlocking) return call.refuse(NOT_SUPPORTED, "the stand-in has streams that do not block alone");
    const auto made = std::make_shared<Stream>();
    made->context = call.context;
    state().queues.add(made);
    *stream = state().streams.add(made);
    return SUCCESS;
}

EXPORTED int cuStreamDestroy_v2(Address stream) {
    Call call(__func__);
    TRY(call.context_needed());
    if (!state().streams.remove(stream)) return call.refuse(INVALID_HANDLE, "there is no such stream");
    return SUCCESS;
}

EXPORTED int cuStreamQuery(Address stream) {
    Call call(__func__);
    TRY(call.safe_context_needed());
    TRY(call.stream_needed(stream));
    state().queues.look();
    TRY(call.context->failure);
    return call.stream->queue.empty() ? SUCCESS : NOT_READY;
}

EXPORTED int cuStreamSynchronize(Address stream) {
    Call call(__func__);
    TRY(call.safe_context_needed());
    TRY(call.stream_needed(stream));
    call.finish();
    return call.context->failure;
}

EXPORTED int cuStreamWaitEvent(Address stream, Address event, unsigned) {
    Call call(__func__);
    TRY(call.context_needed());
    TRY(call.stream_needed(stream));
    TRY(call.event_needed(event));
    if (call.stream->captured) return call.refuse(CAPTURE_UNSUPPORTED, "the stand-in captures no events");
    if (const auto mark = call.event->mark) call.enqueue([] {}, [mark] { return mark->reached; });
    return SUCCESS;
}

EXPORTED int cuLaunchHostFunc(Address stream, void (*function)(void *), void *given) {
    Call call(__func__);
    TRY(call.context_needed());
    TRY(call.stream_needed(stream));
    call.enqueue([=] { function(given); });
    return SUCCESS;
}

EXPORTED int cuEventCreate(Address *event, unsigned flags) {
    Call call(__func__);
    TRY(call.context_needed());
    const auto made = std::make_shared<Event>();
    made->context = call.context;
    made->timed = (flags & kNoTiming) == 0;
    *event = state().events.add(made);
    return SUCCESS;
}

EXPORTED int cuEventDestroy_v2(Address event) {
    Call call(__func__);
    TRY(call.context_needed());
    if (!state().events.remove(event)) return call.refuse(INVALID_HANDLE, "there is no such event");
    return SUCCESS;
}

EXPORTED int cuEventRecord(Address event, Address stream) {
    Call call(__func__);
    TRY(call.context_needed());
    TRY(call.stream_needed(stream));
    TRY(call.event_needed(event));
    if (call.event->context != call.context) return call.refuse(INVALID_HANDLE, "an event of another GPU");
    if (call.stream->captured) return call.refuse(CAPTURE_UNSUPPORTED, "the stand-in captures no events");
    const auto mark = call.event->mark = std::make_shared<Mark>();
    call.enqueue([mark] {
        mark->reached = true;
        mark->when = std::chrono::steady_clock::now();
    });
    return SUCCESS;
}

EXPORTED int cuEventQuery(Address event) {
    Call call(__func__);
    TRY(call.safe_context_needed());
    TRY(call.event_needed(event));
    state().queues.look();
    TRY(call.context->failure);
    return !call.event->mark || call.event->mark->reached ? SUCCESS : NOT_READY;
}

EXPORTED int cuEventSynchronize(Address event) {
    Call call(__func__);
    TRY(call.safe_context_needed());
    TRY(call.event_needed(event));
    if (const auto mark = call.event->mark) state().queues.until([mark] { return mark->reached; });
    return call.context->failure;
}

EXPORTED int cuEventElapsedTime_v2(float *milliseconds, Address start, Address end) {
    Call call(__func__);
    TRY(call.context_needed());
    const auto first = state().events.find(start), last = state().events.find(end);
    if (!first || !last || !first->timed || !last->timed || !first->mark || !last->mark)
        return call.refuse(INVALID_HANDLE, "an event that takes no time, or was not recorded");
    if (!first->mark->reached || !last->mark->reached) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(last->mark->when - first->mark->when).count();
    return SUCCESS;
}

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
    TRY(call.safe_context_needed());
    const auto found = state().modules.find(module);
    if (!found) return call.refuse(INVALID_HANDLE, "there is no such module");
    if (found->context != call.context) return call.refuse(INVALID_HANDLE, "a module of another GPU");
    state().modules.remove(module);
    return SUCCESS;
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

EXPORTED int cuStreamBeginCapture_v2(Address stream, int mode) {
    Call call(__func__);
    TRY(call.context_needed());
    TRY(call.stream_needed(stream));
    if (stream == 0 || call.stream->captured) return call.refuse(CAPTURE_UNSUPPORTED, "this stream");
    if (mode != 1) return call.refuse(NOT_SUPPORTED, "the stand-in captures for one thread alone");
    call.stream->captured = std::make_shared<Graph>();
    call.stream->capturing_thread = std::this_thread::get_id();
    call.stream->spoilt = false;
    return SUCCESS;
}

EXPORTED int cuStreamEndCapture(Address stream, Address *graph) {
    Call call(__func__);
    TRY(call.context_needed());
    TRY(call.stream_needed(stream));
    if (!call.stream->captured) return call.refuse(INVALID_VALUE, "nothing is captured");
    if (call.stream->capturing_thread != std::this_thread::get_id()) return call.refuse(WRONG_THREAD, "of a capture");
    const auto captured = std::move(call.stream->captured);
    call.stream->captured = nullptr;
    *graph = 0;
    if (call.stream->spoilt) return call.refuse(CAPTURE_INVALIDATED, "by a call that may not be captured");
    *graph = state().graphs.add(captured);
    return SUCCESS;
}

EXPORTED int cuGraphInstantiateWithFlags(Address *executable, Address graph, unsigned long long) {
    Call call(__func__);
    TRY(call.context_needed());
    const auto found = state().graphs.find(graph);
    if (!found) return call.refuse(INVALID_HANDLE, "there is no such graph");
    *executable = state().executables.add(std::make_shared<Graph>(*found));
    return SUCCESS;
}

EXPORTED int cuGraphLaunch(Address executable, Address stream) {
    Call call(__func__);
    TRY(call.context_needed());
    TRY(call.stream_needed(stream));
    const auto found = state().executables.find(executable);
    if (!found) return call.refuse(INVALID_HANDLE, "there is no such executable graph");
    for (const Item &item : *found) {
        if (item.context != call.context) return call.refuse(INVALID_HANDLE, "captured on another GPU");
        state().queues.enqueue(*call.stream, item);
    }
    return SUCCESS;
}

EXPORTED int cuGraphExecDestroy(Address executable) {
    Call call(__func__);
    return state().executables.remove(executable) ? SUCCESS : call.refuse(INVALID_HANDLE, "there is no such graph");
}

EXPORTED int cuGraphDestroy(Address graph) {
    Call call(__func__);
    return state().graphs.remove(graph) ? SUCCESS : call.refuse(INVALID_HANDLE, "there is no such graph");
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
#define VERSIONED(name, version) {#name, reinterpret_cast<void *>(name##version)}
#define PLAIN(name) VERSIONED(name, )
    static const std::map<std::string, void *> known{
        PLAIN(cuInit), PLAIN(cuDriverGetVersion), PLAIN(cuDeviceGetCount), PLAIN(cuDeviceGet), PLAIN(cuDeviceGetName),
        VERSIONED(cuDeviceTotalMem, _v2), PLAIN(cuDeviceGetAttribute), PLAIN(cuDevicePrimaryCtxRetain),
        VERSIONED(cuDevicePrimaryCtxRelease, _v2), VERSIONED(cuCtxPushCurrent, _v2), VERSIONED(cuCtxPopCurrent, _v2),
        PLAIN(cuCtxGetCurrent), PLAIN(cuCtxGetDevice), PLAIN(cuCtxSynchronize), VERSIONED(cuMemGetInfo, _v2),
        VERSIONED(cuMemAlloc, _v2), VERSIONED(cuMemFree, _v2), PLAIN(cuMemHostAlloc), PLAIN(cuMemFreeHost),
        VERSIONED(cuMemcpyHtoDAsync, _v2), VERSIONED(cuMemcpyHtoD, _v2), VERSIONED(cuMemcpyDtoHAsync, _v2),
        VERSIONED(cuMemcpyDtoH, _v2), VERSIONED(cuMemcpyDtoDAsync, _v2), PLAIN(cuMemsetD8Async),
        VERSIONED(cuMemsetD8, _v2), PLAIN(cuStreamCreate), VERSIONED(cuStreamDestroy, _v2), PLAIN(cuStreamQuery),
        PLAIN(cuStreamSynchronize), PLAIN(cuStreamWaitEvent), PLAIN(cuLaunchHostFunc), PLAIN(cuEventCreate),
        VERSIONED(cuEventDestroy, _v2), PLAIN(cuEventRecord), PLAIN(cuEventQuery), PLAIN(cuEventSynchronize),
        VERSIONED(cuEventElapsedTime, _v2), PLAIN(cuModuleLoadData), PLAIN(cuModuleUnload), PLAIN(cuModuleGetFunction),
        PLAIN(cuLaunchKernel), VERSIONED(cuStreamBeginCapture, _v2), PLAIN(cuStreamEndCapture),
        {"cuGraphInstantiate", reinterpret_cast<void *>(cuGraphInstantiateWithFlags)},
        PLAIN(cuGraphInstantiateWithFlags), PLAIN(cuGraphLaunch), PLAIN(cuGraphExecDestroy), PLAIN(cuGraphDestroy),
        PLAIN(cuGetErrorName), PLAIN(cuGetErrorString), VERSIONED(cuGetProcAddress, _v2)};
    const auto found = known.find(name);
    *function = found == known.end() ? nullptr : found->second;
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
