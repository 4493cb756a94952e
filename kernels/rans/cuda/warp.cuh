// What the kernels that code share: warps and groups, a stream's part of a pass, and its words.
#pragma once

#include "layout.h"

#include "../../intrinsics.cuh"

extern __shared__ __align__(16) unsigned char fastcodec_shared[];

namespace fastcodec::rans::cuda {
namespace {

constexpr uint32_t kAllThreads = 0xffffffff;

// ---------------------------------------------------------------------------------------------------------------------
// Warps and groups

// The threads of a warp that work on one stream.
template <bool kFull>
struct Group {
    uint32_t lanes_log2;
    uint32_t lane;
    uint32_t first;  // thread of the warp
    uint32_t mask;
    uint32_t below;  // the group's threads before this one

    __device__ __forceinline__ Group(uint32_t log2) {
        const uint32_t thread = threadIdx.x % kWarpThreads;
        lanes_log2 = kFull ? kMaxLanesLog2 : log2;
        lane = kept(thread & (lanes() - 1));
        first = kFull ? 0 : thread - lane;
        mask = kFull ? kAllThreads : (kAllThreads >> (kWarpThreads - lanes())) << first;
        below = kept(mask & ((1u << thread) - 1));
    }
    __device__ __forceinline__ uint32_t lanes() const { return 1u << lanes_log2; }
    // This group's part of the warp's votes.
    __device__ __forceinline__ uint32_t votes(bool mine) const { return __ballot_sync(kAllThreads, mine) & mask; }
    // Whether any group of the warp says so; `mine` is the same for all threads of a group.
    __device__ __forceinline__ bool any(bool mine) const { return kFull ? mine : __any_sync(kAllThreads, mine) != 0; }
};

__device__ __forceinline__ bool warp_any(bool mine) { return __any_sync(kAllThreads, mine) != 0; }

__device__ __forceinline__ void copy_to_shared(const unsigned char* from, uint32_t bytes) {
    for (uint32_t i = threadIdx.x; i < bytes / sizeof(uint4); i += blockDim.x) {
        reinterpret_cast<uint4*>(fastcodec_shared)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
}

// This thread's warp among all, or none.
__device__ __forceinline__ bool warp_of_thread(uint32_t warps_per_block, uint32_t warp_count, uint32_t& warp) {
    const uint32_t in_block = threadIdx.x / kWarpThreads;
    warp = blockIdx.x * warps_per_block + in_block;
    return in_block < warps_per_block && warp < warp_count;
}

// What a group works on: a stream, and its part of this pass of its tile. A warp may have fewer streams than groups;
// the groups left over have no elements, and only keep the warp's votes whole.
template <bool kFull>
struct Work {
    Group<kFull> group;
    bool owner;
    uint32_t id;  // of the stream
    Stream stream;
    const TilePass* pass;
    uint32_t begin;  // of its elements
    uint32_t n;

    template <class Arguments>
    __device__ __forceinline__ Work(const Arguments& a, const Warp& warp) : group(warp.lanes_log2) {
        const uint32_t member = group.first >> group.lanes_log2;
        owner = member < warp.streams;
        id = warp.first + (owner ? member : 0);
        stream = a.streams[id];
        pass = a.passes + stream.tile;
        begin = first_element(stream.number);
        n = owner ? first_element(stream.number + 1) - begin : 0;
    }
    __device__ __forceinline__ uint32_t first_element(uint32_t number) const {
        return static_cast<uint32_t>(stream_begin(pass->positions, pass->streams, number)) * pass->channels.value;
    }
};

__device__ __forceinline__ int32_t symbol_at(const TilePass& pass, uint32_t element) {
    return pass.symbol_bytes == 4 ? static_cast<const int32_t*>(pass.symbols)[element]
                                  : static_cast<const int16_t*>(pass.symbols)[element];
}

// ---------------------------------------------------------------------------------------------------------------------
// Decode

// A stream's words, from where its last pass ended. Block b is the words [b N, b N + N). A lane holds its word of block
// b in the half (b & 1) of `window` and that of block b + 1 in the other one, with b the block of the cursor: what a
// step may need, at most N words. Block b + 2 is in `ahead`, or still on its way from memory.
template <bool kFull>
struct Words {
    const uint16_t* begin;
    uint32_t count;
    uint32_t cursor;
    uint32_t limit;  // a cursor beyond it has left its block, or all words
    uint32_t window;
    uint32_t ahead;

    __device__ __forceinline__ void open(const Group<kFull>& group, const uint16_t* from, uint32_t length) {
        begin = from;
        count = length;
        cursor = 0;
        limit = min(group.lanes() - 1, count);
        window = load(group, 0) | load(group, 1) << kWordBits;
        ahead = load(group, 2);
    }
    __device__ __forceinline__ uint32_t load(const Group<kFull>& group, uint32_t block) const {
        const uint32_t i = (block << group.lanes_log2) + group.lane;
        return i < count ? begin[i] : 0u;
    }
    // `advanced` with the word `rank` words after the cursor below it.
    __device__ __forceinline__ uint32_t refill(const Group<kFull>& group, uint32_t advanced, uint32_t rank) const {
        const uint32_t k = cursor + rank;
        const uint32_t pair = __shfl_sync(kAllThreads, window, group.first | (k & (group.lanes() - 1)));
        return __byte_perm(pair, advanced, (k & group.lanes()) != 0 ? 0x5432 : 0x5410);
    }
    // Past the end of a block: its half takes the block after the next. `to` is at most N words further.
    __device__ __forceinline__ void next_block(const Group<kFull>& group, uint32_t to) {
        const uint32_t block = to >> group.lanes_log2;
        if (block != cursor >> group.lanes_log2) {
            window = __byte_perm(window, ahead, (block & 1) != 0 ? 0x3254 : 0x5410);
            ahead = load(group, block + 2);
            limit = min((block << group.lanes_log2) + group.lanes() - 1, count);
        }
    }
};

// Parks a stream until the next pass: its state, its cursors and the error that ended it, if any.
template <bool kFull>
__device__ __forceinline__ void park(const DecodeArguments& a, const Work<kFull>& work, uint32_t state,
                                     const Words<kFull>& words, uint32_t escapes_left, uint32_t error) {
    if (!work.owner) {
        return;
    }
    a.states[work.stream.states + work.group.lane] = state;
    if (work.group.lane == 0) {
        Stream& parked = a.streams[work.id];
        parked.words = work.stream.words + words.cursor;
        parked.escapes = work.stream.escapes_end - escapes_left;
        if (error != kOk) {
            parked.error = error;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Encode

// A stream while it is encoded, last element first. Words and escapes grow downwards; a symbol writes at most one of
// each, and their buffers have room for that.
struct Pushes {
    Group<false> group;
    uint16_t* words;
    uint16_t* escapes;
    uint32_t state;

    __device__ __forceinline__ Pushes(const EncodeArguments& a, const Work<false>& work)
        : group(work.group),
          words(a.scratch + work.stream.words),
          escapes(a.scratch + work.stream.escapes),
          state(work.owner ? a.states[work.stream.states + work.group.lane] : kStateLow) {}
    // A step: every active lane pushes its entry, and the symbol too if the entry is the sentinel.
    __device__ __forceinline__ void push(uint32_t start, uint32_t frequency, bool escape, int32_t symbol, bool active) {
        const bool emits = active && encode_emits(state, frequency);
        const uint32_t emitting = group.votes(emits);
        words -= __popc(emitting);
        if (emits) {
            words[__popc(emitting & group.below)] = static_cast<uint16_t>(state);
            state >>= kWordBits;
        }
        if (active) {
            state = encode_push(state, start, frequency);
        }
        if (warp_any(active && escape)) {
            const uint32_t escaping = group.votes(active && escape);
            escapes -= __popc(escaping);
            if (active && escape) {
                escapes[__popc(escaping & group.below)] = static_cast<uint16_t>(symbol);
            }
        }
    }
    __device__ __forceinline__ void park(const EncodeArguments& a, const Work<false>& work) const {
        if (!work.owner) {
            return;
        }
        a.states[work.stream.states + group.lane] = state;
        if (group.lane == 0) {
            a.streams[work.id].words = static_cast<uint32_t>(words - a.scratch);
            a.streams[work.id].escapes = static_cast<uint32_t>(escapes - a.scratch);
        }
    }
};

// Before encoding: what a pass costs and whether it can be coded at all. cost_of(pass, element, symbol, counts,
// faults) is an element's cost where it counts, else 0, and adds what is wrong with it.
template <class Cost>
__device__ __forceinline__ void examine_elements(const ExamineArguments& a, const Cost& cost_of) {
    const TilePass& pass = a.passes[blockIdx.y];
    const uint32_t n = pass.positions * pass.channels.value;
    const bool sampled = a.exact == 0 && n > kCostAll;
    const uint32_t begin = blockIdx.x * kExamineBlock;
    uint32_t cost = 0;  // of 64 elements at most: far below 2^32
    uint32_t faults = 0;
    for (uint32_t i = threadIdx.x; i < kExamineBlock && i < n - begin && begin < n; i += blockDim.x) {
        const uint32_t element = begin + i;
        const bool counts = !sampled || element / kCostBlock % kCostStride == 0;
        cost += cost_of(pass, element, symbol_at(pass, element), counts, faults);
    }
    cost = __reduce_add_sync(kAllThreads, cost);
    faults = __reduce_or_sync(kAllThreads, faults);
    if (threadIdx.x % kWarpThreads == 0) {
        if (cost != 0) {
            atomicAdd(&a.results[blockIdx.y].cost, static_cast<unsigned long long>(cost) * (sampled ? kCostStride : 1));
        }
        if (faults != 0) {
            atomicOr(&a.results[blockIdx.y].faults, faults);
        }
    }
}

}  // namespace
}  // namespace fastcodec::rans::cuda
