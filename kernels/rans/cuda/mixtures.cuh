// The CUDA twin of the coder for passes of mixtures: mixture.h's rule. What differs from indexed passes is where an
// entry comes from: each lane searches for its own, in mixture.h's tables in shared memory, and waits for no other
// until the step's vote. The parameters of the next step's elements are fetched before the search.
//
// Kernels hold 3 or 4 components in registers; fewer have weight 0.
#pragma once

#include "warp.cuh"

namespace fastcodec::rans::cuda {
namespace {

// The tables, once copied to shared memory by the whole block.
__device__ __forceinline__ MixtureTables shared_mixture_tables(const DeviceTables& set) {
    copy_to_shared(set.blob, kMixtureTableBytes);
    __syncthreads();
    const uint32_t* const tables = reinterpret_cast<const uint32_t*>(fastcodec_shared);
    return {tables, tables + kMixturePhiEntries};
}

// The parameters of an element of a pass; beyond its end, those of none.
template <uint32_t K>
__device__ __forceinline__ MixtureParameters<K> parameters_at(const TilePass& pass, uint32_t element, bool here) {
    const size_t plane = static_cast<size_t>(pass.positions) * pass.channels.value;
    return load_mixture<K>(pass.weights, pass.means, pass.scales, here ? pass.components : 0, plane, element);
}

template <bool kFull, uint32_t K>
__device__ __forceinline__ void decode_mixtures(const DecodeArguments& a) {
    const MixtureTables tables = shared_mixture_tables(a.tables);
    uint32_t number;
    if (!warp_of_thread(a.warps_per_block, a.warp_count, number)) {
        return;
    }
    const Work<kFull> work(a, a.warps[number]);
    const Group<kFull>& group = work.group;
    const Stream& stream = work.stream;
    const TilePass& pass = *work.pass;
    const uint32_t lanes = group.lanes();
    const uint32_t n = work.n;
    int16_t* const symbols = static_cast<int16_t*>(pass.symbols) + work.begin;
    const uint16_t* escapes = a.payloads + stream.escapes;
    uint32_t escapes_left = stream.escapes_end - stream.escapes;
    uint32_t state = work.owner ? a.states[stream.states + group.lane] : kStateLow;
    uint32_t error = work.owner ? stream.error : static_cast<uint32_t>(kOk);
    Words<kFull> words;
    words.open(group, a.payloads + stream.words, stream.words_end - stream.words);
    uint32_t element = group.lane;
    MixtureParameters<K> ahead = parameters_at<K>(pass, work.begin + element, element < n);
    while (warp_any(error == kOk && element - group.lane < n)) {
        const bool working = error == kOk && element - group.lane < n;
        const bool active = working && element < n;
        const MixtureParameters<K> parameters = ahead;
        const uint32_t next_element = element + lanes;
        if (working) {
            ahead = parameters_at<K>(pass, work.begin + next_element, next_element < n);
        }
        const bool valid = mixture_valid(parameters);
        Found found{0, 1, 0, false};
        if (active && valid) {
            found = mixture_find(tables, mixture_element(tables, parameters), slot_of(state));
        }
        __syncwarp();
        const uint32_t advanced = decode_advance(state, found.start, found.frequency);
        const bool needs = active && decode_needs_word(advanced);
        const uint32_t refilling = group.votes(needs);
        const uint32_t escaping = group.votes(active && found.escape);
        const uint32_t invalid = group.votes(active && !valid);
        const uint32_t escape_count = static_cast<uint32_t>(__popc(escaping));
        const uint32_t next = words.cursor + __popc(refilling);
        const uint32_t refilled = words.refill(group, advanced, __popc(refilling & group.below));
        if (!working) {
            continue;
        }
        // In the CPU twin's order; an error leaves the step undone.
        error = invalid != 0                  ? kWeightsWrong
                : next > words.count          ? static_cast<uint32_t>(kWordsExhausted)
                : escape_count > escapes_left ? static_cast<uint32_t>(kEscapesExhausted)
                                              : static_cast<uint32_t>(kOk);
        if (error != kOk) {
            continue;
        }
        if (next > words.limit) {
            words.next_block(group, next);
        }
        words.cursor = next;
        if (active) {
            state = needs ? refilled : advanced;
            const uint32_t symbol = found.escape ? escapes[__popc(escaping & group.below)] : found.symbol;
            symbols[element] = static_cast<int16_t>(symbol);
        }
        escapes += escape_count;
        escapes_left -= escape_count;
        element = next_element;
    }
    if (error != kOk) {
#pragma unroll 1
        for (uint32_t i = element; i < n; i += lanes) {
            symbols[i] = 0;
        }
    }
    park(a, work, state, words, escapes_left, error);
}

template <uint32_t K>
__device__ __forceinline__ void encode_mixtures(const EncodeArguments& a) {
    const MixtureTables tables = shared_mixture_tables(a.tables);
    uint32_t number;
    if (!warp_of_thread(a.warps_per_block, a.warp_count, number)) {
        return;
    }
    const Work<false> work(a, a.warps[number]);
    const Group<false>& group = work.group;
    const TilePass& pass = *work.pass;
    const uint32_t lanes = group.lanes();
    Pushes pushes(a, work);
    const uint32_t steps = (work.n + lanes - 1) >> group.lanes_log2;
    for (uint32_t left = steps; warp_any(left != 0); left -= left != 0) {
        const uint32_t element = (left - 1) * lanes + group.lane;
        const bool active = left != 0 && element < work.n;
        const int32_t symbol = active ? symbol_at(pass, work.begin + element) : 0;
        Found found{0, 1, 0, false};
        if (active) {
            const MixtureParameters<K> parameters = parameters_at<K>(pass, work.begin + element, true);
            // Examined before: anything else would only write bytes of no meaning.
            if (mixture_valid(parameters)) {
                found = mixture_code(tables, mixture_element(tables, parameters), symbol);
            }
        }
        __syncwarp();
        pushes.push(found.start, found.frequency, found.escape, symbol, active);
    }
    pushes.park(a, work);
}

__device__ __forceinline__ void examine_mixtures(const ExamineArguments& a) {
    const MixtureTables tables = shared_mixture_tables(a.tables);
    examine_elements(a, [&](const TilePass& pass, uint32_t element, int32_t symbol, bool counts, uint32_t& faults) {
        const MixtureParameters<kMixtureComponents> parameters = parameters_at<kMixtureComponents>(pass, element, true);
        if (!mixture_valid(parameters)) {
            faults |= kFaultWeights;
        } else if (symbol != static_cast<int16_t>(symbol)) {
            faults |= kFaultSymbol;
        } else if (counts) {
            const Found found = mixture_code(tables, mixture_element(tables, parameters), symbol);
            return entry_cost(found.frequency, found.escape);
        }
        return 0u;
    });
}

}  // namespace
}  // namespace fastcodec::rans::cuda
