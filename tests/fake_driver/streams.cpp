// The driver's functions for streams, events and captured work.
#include "call.h"

using namespace stand_in;

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
    TRY(call.live_context_needed());
    if (!state().streams.remove(stream)) return call.refuse(INVALID_HANDLE, "there is no such stream");
    return call.context->failure;
}

EXPORTED int cuStreamQuery(Address stream) {
    Call call(__func__);
    TRY(call.safe_context_needed());
    TRY(call.stream_needed(stream));
    return call.query([&call] { return call.stream->queue.empty(); });
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
    TRY(call.live_context_needed());
    if (!state().events.remove(event)) return call.refuse(INVALID_HANDLE, "there is no such event");
    return call.context->failure;
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
    return call.query([&call] { return !call.event->mark || call.event->mark->reached; });
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
    TRY(call.live_context_needed());
    if (!state().executables.remove(executable)) return call.refuse(INVALID_HANDLE, "there is no such graph");
    return call.context->failure;
}

EXPORTED int cuGraphDestroy(Address graph) {
    Call call(__func__);
    return state().graphs.remove(graph) ? SUCCESS : call.refuse(INVALID_HANDLE, "there is no such graph");
}
