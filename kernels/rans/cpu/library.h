// What the sources of the CPU coder's C interface share (library.cpp, encoder.cpp, decoder.cpp): the choice of a
// twin, table sets, memory and threads. The interface is called through ctypes, which lets go of Python's lock; every
// function of it returns a Status or a rans::Error and throws nothing. Results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "../entries.h"
#include "../status.h"
#include "loops.h"

namespace fastcodec::rans {

using fastcodec::parallel_for;

enum Isa : int { kIsaScalar = 0, kIsaAvx2 = 1, kIsaAvx512 = 2 };

inline const Kernels& kernels_of([[maybe_unused]] int isa) {
#if defined(__x86_64__)
    if (isa == kIsaAvx512) {
        return avx512_kernels();
    }
    if (isa == kIsaAvx2) {
        return avx2_kernels();
    }
#endif
    return scalar_kernels();
}

// A table set for encoding: for each table a row of the codes (pack_code) of the same symbols, low .. high. Beyond them
// every table escapes, as it does for `low` and `high` themselves, unless these are the ends of int16.
struct Rows {
    int16_t low = 0;
    int16_t high = 0;
    uint16_t stride = 0;  // 0: there are no rows, the set would need too many codes
    std::vector<uint32_t> codes;
};

struct CpuTables {
    Entries entries;
    std::vector<Bucket> buckets;
    std::vector<uint32_t> positions;
    Tables view;
    // Made by the first that encodes.
    mutable std::once_flag rows_made;
    mutable Rows rows;
};

// How many threads are of use: starting one takes as long as coding some ten thousand symbols.
inline size_t useful_threads(uint32_t threads, uint64_t elements) {
    return static_cast<size_t>(std::min<uint64_t>(threads, (elements >> 15) + 1));
}

// Memory that is not cleared: pages that a stream does not touch cost nothing.
template <typename T>
class Buffer {
   public:
    explicit Buffer(size_t n) : data_(static_cast<T*>(std::malloc((n == 0 ? 1 : n) * sizeof(T)))) {
        if (data_ == nullptr) {
            throw std::bad_alloc();
        }
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(data_); }
    T* get() { return data_; }

   private:
    T* data_;
};

inline uint32_t largest(const uint8_t* indexes, size_t n) {
    uint8_t result = 0;
    for (size_t i = 0; i < n; ++i) {
        result = std::max(result, indexes[i]);
    }
    return result;
}

// Whether the weights of every element sum to 2^12: no other mixture is evaluated.
inline bool weights_fit(const Mixtures& mixtures) {
    uint32_t wrong = 0;
    for (size_t i = 0; i < mixtures.plane; ++i) {
        uint32_t sum = 0;
        for (uint32_t k = 0; k < mixtures.components; ++k) {
            sum += mixtures.weights[k * mixtures.plane + i];
        }
        wrong |= sum ^ kMixtureWeightTotal;
    }
    return wrong == 0;
}

}  // namespace fastcodec::rans
