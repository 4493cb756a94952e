// What the CUDA mixture kernels (cuda_mixture.cu) and their host side (cuda_mixture_host.cpp) agree on, beside cuda.h.
#pragma once

#include "cuda.h"
#include "mixture.h"

namespace fastcodec::rans::cuda {

// Why a stream ended, beyond cuda.h's: the weights of an element do not sum to 2^12. The CPU twin refuses such a pass
// before it decodes anything; here it is found on the way and told with the other errors.
constexpr uint32_t kWeightsWrong = 0x101;
// And to encode, beyond cuda.h's Fault.
constexpr uint32_t kFaultWeights = 8;

// mixture.h's tables in device memory: first T with its slopes, then the scales. Each block copies them to its shared
// memory.
constexpr uint32_t kMixturePhiEntries = (kPhiCount + 3) / 4 * 4;  // whole copies of 16 bytes
constexpr uint32_t kMixtureTableEntries = kMixturePhiEntries + 256;
constexpr uint32_t kMixtureTableBytes = kMixtureTableEntries * sizeof(uint32_t);

// One pass of one tile: of the matrix's description the symbols, positions, streams, channels and symbol_bytes are in
// use. The parameters are [components, positions, channels].
struct MixtureTilePass : TilePass {
    const uint16_t* weights;
    const int16_t* component_means;
    const uint8_t* scales;
    uint32_t components;
    uint32_t unused;
};

struct DecodeMixturesArguments {
    const uint32_t* tables;  // [kMixtureTableEntries], 16-byte aligned
    const Warp* warps;
    Stream* streams;
    uint32_t* states;
    const uint16_t* payloads;
    const MixtureTilePass* passes;  // [tiles]
    uint32_t warp_count;
    uint32_t warps_per_block;
};

struct EncodeMixturesArguments {
    const uint32_t* tables;
    const Warp* warps;
    Stream* streams;
    uint32_t* states;
    uint16_t* scratch;  // words and escapes of all streams
    const MixtureTilePass* passes;
    uint32_t warp_count;
    uint32_t warps_per_block;
};

struct ExamineMixturesArguments {
    const uint32_t* tables;
    const MixtureTilePass* passes;  // [tiles], one row of blocks for each
    Examination* results;           // [tiles]
    uint32_t exact;                 // 1: every element's cost counts
    uint32_t reserved;
};

// A search takes registers: with 512 threads a block each may have 128.
constexpr uint32_t kMixtureThreads = 512;

}  // namespace fastcodec::rans::cuda
