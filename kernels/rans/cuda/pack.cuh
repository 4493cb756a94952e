// After coding: encoded streams go from their scratch buffers to contiguous payloads; decoded ones are checked.
#pragma once

#include "warp.cuh"

namespace fastcodec::rans::cuda {
namespace {

// The sum of `value` over the block's threads before this one; `total` is the sum over all. The block's threads number
// kPackThreads.
__device__ __forceinline__ uint32_t block_sum_before(uint32_t value, uint32_t& total) {
    uint32_t* const sums = reinterpret_cast<uint32_t*>(fastcodec_shared);
    const uint32_t thread = threadIdx.x % kWarpThreads;
    uint32_t sum = value;
    for (uint32_t distance = 1; distance < kWarpThreads; distance *= 2) {
        const uint32_t other = __shfl_up_sync(kAllThreads, sum, distance);
        sum += thread >= distance ? other : 0;
    }
    if (thread == kWarpThreads - 1) {
        sums[threadIdx.x / kWarpThreads] = sum;
    }
    __syncthreads();
    uint32_t before = 0;
    total = 0;
    for (uint32_t warp = 0; warp < kPackThreads / kWarpThreads; ++warp) {
        before += warp < threadIdx.x / kWarpThreads ? sums[warp] : 0;
        total += sums[warp];
    }
    __syncthreads();
    return before + sum - value;
}

__device__ __forceinline__ uint32_t varint_bytes(uint32_t value) {
    uint32_t bytes = 1;
    for (; value >= 0x80; value >>= 7) {
        ++bytes;
    }
    return bytes;
}

__device__ __forceinline__ void write_varint_at(uint8_t* out, uint32_t value) {
    for (; value >= 0x80; value >>= 7) {
        *out++ = static_cast<uint8_t>(value | 0x80);
    }
    *out = static_cast<uint8_t>(value);
}

// A block for each tile: how long its sections are, and where its streams' parts of them begin.
__device__ __forceinline__ void measure(const PackArguments& a) {
    TilePayload& tile = a.tiles[blockIdx.x];
    const uint32_t head = 1 + varint_bytes(tile.streams);
    uint32_t escape_directory = 0;
    uint32_t word_directory = 0;
    uint32_t words = 0;
    uint32_t escapes = 0;
    for (uint32_t start = 0; start < tile.streams; start += kPackThreads) {
        const uint32_t number = start + threadIdx.x;
        const bool here = number < tile.streams;
        const Stream stream = here ? a.streams[tile.first_stream + number] : Stream{};
        const uint32_t word_count = stream.words_end - stream.words;
        const uint32_t escape_count = stream.escapes_end - stream.escapes;
        uint32_t totals[4];
        const uint32_t escape_count_at = block_sum_before(here ? varint_bytes(escape_count) : 0, totals[0]);
        const uint32_t word_count_at =
            block_sum_before(number + 1 < tile.streams ? varint_bytes(word_count) : 0, totals[1]);
        const uint32_t words_at = block_sum_before(word_count, totals[2]);
        const uint32_t escapes_at = block_sum_before(escape_count, totals[3]);
        if (here) {
            // Words' counts follow those of all escapes; their beginning is known at the end.
            a.offsets[tile.first_stream + number] = {head + escape_directory + escape_count_at,
                                                     word_directory + word_count_at, words + words_at,
                                                     escapes + escapes_at};
        }
        escape_directory += totals[0];
        word_directory += totals[1];
        words += totals[2];
        escapes += totals[3];
    }
    for (uint32_t number = threadIdx.x; number < tile.streams; number += kPackThreads) {
        a.offsets[tile.first_stream + number].word_count_at += head + escape_directory;
    }
    if (threadIdx.x == 0) {
        tile.directory = head + escape_directory + word_directory;
        tile.words = words;
        tile.escapes = escapes;
        tile.size = tile.directory + (static_cast<uint64_t>(tile.streams) << tile.lanes_log2) * 4 +
                    (static_cast<uint64_t>(words) + escapes) * 2;
    }
}

// One block: payloads one after the other, each so that its states are aligned.
__device__ __forceinline__ void arrange(const PackArguments& a) {
    uint64_t offset = 0;
    for (uint32_t start = 0; start < a.tile_count; start += kPackThreads) {
        const uint32_t number = start + threadIdx.x;
        const bool here = number < a.tile_count;
        const uint32_t padding = here ? (4 - a.tiles[number].directory % 4) % 4 : 0;
        const uint32_t units = here ? static_cast<uint32_t>((padding + a.tiles[number].size + 3) / 4) : 0;
        uint32_t total;
        const uint32_t before = block_sum_before(units, total);
        if (here) {
            a.tiles[number].offset = offset + static_cast<uint64_t>(before) * 4 + padding;
        }
        offset += static_cast<uint64_t>(total) * 4;
    }
}

// A block for each stream: its parts of the payload's sections.
__device__ __forceinline__ void gather(const PackArguments& a) {
    const Stream stream = a.streams[blockIdx.x];
    const StreamOffsets offsets = a.offsets[blockIdx.x];
    const TilePayload& tile = a.tiles[stream.tile];
    uint8_t* const payload = a.out + tile.offset;
    const uint32_t word_count = stream.words_end - stream.words;
    const uint32_t escape_count = stream.escapes_end - stream.escapes;
    if (threadIdx.x == 0) {
        if (stream.number == 0) {
            payload[0] = static_cast<uint8_t>(tile.lanes_log2);
            write_varint_at(payload + 1, tile.streams);
        }
        write_varint_at(payload + offsets.escape_count_at, escape_count);
        if (stream.number + 1 < tile.streams) {
            write_varint_at(payload + offsets.word_count_at, word_count);
        }
    }
    uint32_t* const states = reinterpret_cast<uint32_t*>(payload + tile.directory);
    const uint32_t lanes = 1u << tile.lanes_log2;
    uint16_t* const words =
        reinterpret_cast<uint16_t*>(states + (static_cast<uint64_t>(tile.streams) << tile.lanes_log2));
    uint16_t* const escapes = words + tile.words;
    for (uint32_t i = threadIdx.x; i < lanes; i += blockDim.x) {
        states[stream.number * lanes + i] = a.states[stream.states + i];
    }
    for (uint32_t i = threadIdx.x; i < word_count; i += blockDim.x) {
        words[offsets.words_at + i] = a.scratch[stream.words + i];
    }
    for (uint32_t i = threadIdx.x; i < escape_count; i += blockDim.x) {
        escapes[offsets.escapes_at + i] = a.scratch[stream.escapes + i];
    }
}

// A thread for each stream: whether it ended as it must.
__device__ __forceinline__ void finish(const FinishArguments& a) {
    const uint32_t id = blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= a.stream_count || a.streams[id].error != kOk) {
        return;
    }
    Stream& stream = a.streams[id];
    if (stream.words != stream.words_end) {
        stream.error = kWordsLeft;
    } else if (stream.escapes != stream.escapes_end) {
        stream.error = kEscapesLeft;
    } else {
        for (uint32_t lane = 0; lane < a.lanes[stream.tile]; ++lane) {
            if (a.states[stream.states + lane] != kStateLow) {
                stream.error = kFinalState;
            }
        }
    }
}

}  // namespace
}  // namespace fastcodec::rans::cuda
