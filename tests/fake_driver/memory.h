// Memory of a stand-in GPU: the host's, laid out so that every access that a real GPU would refuse is noticed.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>

namespace stand_in {

using Address = std::uintptr_t;

// A range of addresses of which none is given out twice. Every allocation starts as NaN, ends where an unreadable page
// begins, and is unreadable from the moment it is freed.
class Arena {
public:
    Arena() {
        void *range = mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        first_ = next_ = range == MAP_FAILED ? 0 : reinterpret_cast<Address>(range) + kPage;
    }

    // The address, a multiple of 256, or 0.
    Address allocate(std::size_t size) {
        const std::size_t rounded = up(size, kAlignment), pages = up(rounded, kPage);
        if (first_ == 0 || next_ + pages + kPage > first_ + kReserved - kPage) return 0;
        if (mprotect(pointer(next_), pages, PROT_READ | PROT_WRITE) != 0) return 0;
        const Address start = next_ + pages - rounded;
        std::memset(pointer(next_), kGuard, pages);
        std::memset(pointer(start), kFresh, size);
        live_[start] = {size, next_, pages};
        used_ += size;
        next_ += pages + kPage;
        return start;
    }

    // What is wrong with freeing it, or "" when it has been freed.
    std::string free(Address start) {
        const auto found = live_.find(start);
        if (found == live_.end()) return "is not the address of memory in use";
        const Block block = found->second;
        bool whole = true;
        for (Address at = block.pages; at < block.pages + block.mapped; ++at)
            if (at < start || at >= start + block.size) whole &= *static_cast<unsigned char *>(pointer(at)) == kGuard;
        madvise(pointer(block.pages), block.mapped, MADV_DONTNEED);
        mprotect(pointer(block.pages), block.mapped, PROT_NONE);
        used_ -= block.size;
        live_.erase(found);
        return whole ? "" : "was written to before its start or behind its end";
    }

    // Whether an address belongs here, in use or not.
    bool owns(Address at) const { return first_ != 0 && at - (first_ - kPage) < kReserved; }

    // Whether these bytes lie in one allocation that is in use.
    bool holds(Address at, std::size_t size) const {
        auto after = live_.upper_bound(at);
        if (after == live_.begin()) return false;
        const auto &[start, block] = *--after;
        return at >= start && size <= block.size && at - start <= block.size - size && at < start + block.size;
    }

    std::size_t used() const { return used_; }
    std::size_t count() const { return live_.size(); }

private:
    static constexpr std::size_t kReserved = std::size_t{1} << 38, kPage = 4096, kAlignment = 256;
    static constexpr unsigned char kFresh = 0xFF, kGuard = 0xC5;

    struct Block {
        std::size_t size;
        Address pages;
        std::size_t mapped;
    };

    static std::size_t up(std::size_t size, std::size_t unit) { return (size + unit - 1) / unit * unit; }
    static void *pointer(Address at) { return reinterpret_cast<void *>(at); }

    Address first_, next_;
    std::map<Address, Block> live_;
    std::size_t used_ = 0;
};

}  // namespace stand_in
