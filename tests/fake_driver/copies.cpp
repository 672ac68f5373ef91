// The driver's functions for memory.
#include <cstring>

#include "call.h"

using namespace stand_in;

namespace {

std::function<void()> copying(Address target, Address source, std::size_t size) {
    return [=] {
        guarded([=] { std::memcpy(reinterpret_cast<void *>(target), reinterpret_cast<void *>(source), size); });
    };
}

}  // namespace

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
    TRY(call.safe_needed());
    TRY(call.live_context_needed());
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
    TRY(call.safe_needed());
    TRY(call.live_context_needed());
    const std::string wrong = state().pinned.free(reinterpret_cast<Address>(address));
    return wrong.empty() ? call.context->failure : call.refuse(INVALID_VALUE, wrong);
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
