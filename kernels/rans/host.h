// What the C interfaces of both host sides share: their first statuses, and that they throw nothing.
#pragma once

#include <new>

namespace fastcodec::rans {

enum Status : int {
    kStatusOk = 0,
    kStatusNoMemory = 1,
    kStatusBadTables = 2,  // sizes, frequencies or symbols break a bound; see build_entries
    kStatusInternal = 3,
    kStatusOthers = 4,  // each host's own begin here
};

// The status that `body` returns, or that of what it throws.
template <typename Body>
int guarded(const Body& body) {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        return kStatusNoMemory;
    } catch (...) {
        return kStatusInternal;
    }
}

}  // namespace fastcodec::rans
