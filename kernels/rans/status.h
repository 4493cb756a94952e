// What the C interfaces of both host sides, the CPU's and CUDA's, return.
#pragma once

#include "../host.h"

namespace fastcodec::rans {

// What a function of either interface returns. What is wrong with a payload is no status but a rans::Error.
enum Status : int {
    kStatusOk = 0,
    kStatusNoMemory,
    kStatusBadTables,  // sizes, frequencies or symbols break a bound; see build_entries
    kStatusInternal,
    kStatusIndexRange,     // an index names no table of the set
    kStatusSymbolRange,    // a symbol outside int16
    kStatusSymbolSkipped,  // a symbol other than 0 where nothing is coded
    kStatusWeights,        // a mixture's weights do not sum to 2^12
    kStatusTooLarge,       // for a GPU: a pass, or a batch, beyond what 32 bits count
    kStatusDriver,         // a GPU's driver refused: fastcodec_rans_cuda_message says what
};

// The status that `body` returns, or that of what it throws.
template <typename Body>
int guarded(const Body& body) {
    return fastcodec::guarded<kStatusNoMemory, kStatusInternal>(body);
}

}  // namespace fastcodec::rans
