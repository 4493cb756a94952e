// What the C interfaces of the coders' libraries share: how functions are exported, and that they throw nothing.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#define FASTCODEC_API extern "C" __attribute__((visibility("default")))

namespace fastcodec {

// What `body` returns, or the status that stands for what it throws.
template <int kNoMemory, int kInternal, typename Body>
int guarded(const Body& body) {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    } catch (...) {
        return kInternal;
    }
}

// Calls body(0) .. body(items - 1), each once, on at most `threads` threads; passes on the first exception.
template <typename Body>
void parallel_for(size_t items, size_t threads, const Body& body) {
    const size_t count = std::min(items, threads);
    if (count <= 1) {
        for (size_t i = 0; i < items; ++i) {
            body(i);
        }
        return;
    }
    std::atomic<size_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr failure;
    const auto work = [&] {
        try {
            for (size_t i; (i = next.fetch_add(1)) < items;) {
                body(i);
            }
        } catch (...) {
            if (!failed.exchange(true)) {
                failure = std::current_exception();
            }
            next.store(items);
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(count - 1);
    try {
        while (helpers.size() + 1 < count) {
            helpers.emplace_back(work);
        }
    } catch (const std::system_error&) {
        // No more threads to be had: those that run share the work.
    }
    work();
    for (std::thread& helper : helpers) {
        helper.join();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

}  // namespace fastcodec
