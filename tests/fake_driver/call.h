// What every function of the stand-in works with: the two GPUs' state, and a call of the driver that looks at it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "memory.h"
#include "work.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

#define TRY(step) \
    if (const int code = (step); code != SUCCESS) return code

namespace stand_in {

struct Kernel;  // see kernels.h

// CUresult
enum : int {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
    MISALIGNED_ADDRESS = 716, NOT_PERMITTED = 800, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901, WRONG_THREAD = 908,
};

inline const std::map<int, const char *> kNames{
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

inline State &state() {
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
inline thread_local Pushed pushed;

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
        TRY(live_context_needed());
        return context->failure;
    }

    // As before, for what frees something: that it does after a fault as well, and answers with the fault.
    int live_context_needed() {
        if (!state().started) return refuse(NOT_INITIALIZED, "before cuInit");
        context = pushed.contexts.empty() ? nullptr : state().contexts.find(pushed.contexts.back());
        return context ? SUCCESS : refuse(INVALID_CONTEXT, "no context is current");
    }

    // As `context_needed`, for what may not be called while this thread captures a stream: the capture is void then.
    int safe_context_needed() {
        TRY(safe_needed());
        return context_needed();
    }

    int safe_needed() {
        for (const auto &[handle, stream] : state().streams.all())
            if (stream->captured && stream->capturing_thread == std::this_thread::get_id()) {
                stream->spoilt = true;
                return refuse(CAPTURE_UNSUPPORTED, "while a stream is being captured");
            }
        return state().queues.running() ? refuse(NOT_PERMITTED, "from a host function") : SUCCESS;
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

    // Whether `done` by now.
    int query(const std::function<bool()> &done) {
        state().queues.look();
        if (context->failure != SUCCESS) return context->failure;
        return done() ? SUCCESS : NOT_READY;
    }

    std::shared_ptr<Context> context;
    std::shared_ptr<Stream> stream;
    std::shared_ptr<Event> event;
    bool is_pinned = false;

private:
    std::lock_guard<std::recursive_mutex> held_;
    std::string name_;
};

inline void finish_all() {
    state().queues.until([] { return false; });
}

// Copy or fill with faults caught.
inline void guarded(const std::function<void()> &access) {
    Trap &trap = state().queues.trap;
    trap.armed = true;
    access();
    trap.armed = false;
}

}  // namespace stand_in
