// The CUDA twin of the coder for indexed passes: rans.h's rule with a table for each symbol. docs/kernels.md derives
// what a step costs.
//
//  * Table lookup: one read of 8 bytes from shared memory settles nearly every slot (a bucket holds two entries). The
//    rest walk. Everything that depends on the index alone is fetched steps ahead: a step waits for its own state only.
//  * Elements that are not coded take no step: a warp looks through indexes some blocks ahead and queues those that
//  are.
//  * An index that names no table is caught by its bucket.
#pragma once

#include "warp.cuh"

namespace fastcodec::rans::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Decode

// Where symbols go. A store that waits for nothing: whatever else becomes of a symbol is `reconstruct`'s, whose loads
// would otherwise lie between a lone warp's steps.
struct SymbolOutput {
    int16_t* symbols;

    __device__ __forceinline__ SymbolOutput(const TilePass& pass, uint32_t begin)
        : symbols(kept(static_cast<int16_t*>(pass.symbols) + begin)) {}
    __device__ __forceinline__ void store(uint32_t element, uint32_t symbol) const {
        global(symbols)[element] = static_cast<int16_t>(symbol);
    }
};

template <bool kFull>
struct Decoder {
    const DecodeArguments& a;
    Group<kFull> group;
    SymbolOutput output;
    const uint8_t* indexes;
    uint32_t n;  // elements
    Words<kFull> words;
    const uint16_t* escapes;
    uint32_t escapes_left;
    uint32_t state;
    uint32_t error;
    uint32_t queue;  // where it is in shared memory

    __device__ __forceinline__ uint32_t index(uint32_t element) const {
        return element < n ? static_cast<uint32_t>(__ldg(indexes + element)) : 0u;
    }
    __device__ __forceinline__ uint32_t locator_of(uint32_t index) const {
        return reinterpret_cast<const uint32_t*>(fastcodec_shared)[index];
    }

    // One step: every active lane takes its element; with kAll every lane is active. False, for all lanes of the group,
    // if the stream ends here: then nothing has changed but `error`.
    template <bool kAll>
    __device__ __forceinline__ bool step(uint32_t locator, uint32_t element, bool active) {
        const uint32_t slot = slot_of(state);
        const uint32_t bucket = slot >> (locator & kLocatorShiftMask);
        // A Slots, read at once whatever is needed of it: a second read would be on the way from state to state.
        const uint2 slots = *reinterpret_cast<const uint2*>(
            fastcodec_shared + ((locator & ~kLocatorShiftMask) + bucket * static_cast<uint32_t>(sizeof(Slots))));
        const uint32_t first = slots.x >> 16;
        // Beyond the first entry; also when the slot lies before both, then `offset` stays too large for the second.
        uint32_t offset = slot - (slots.x & 0xffff);
        const bool second = offset >= first;
        offset = second ? offset - first : offset;
        uint32_t frequency = second ? slots.y & 0xffff : first;
        uint32_t symbol = (slots.y + (second ? 1u << 16 : 0)) >> 16;
        const bool miss = (kAll || active) && offset >= frequency;
        if (warp_any(miss)) {
            unusual(locator, bucket, slot, slots.x & 0xffff, kAll || active, miss, offset, frequency, symbol);
            if (kFull && error != kOk) {
                return false;
            }
            active = active && error == kOk;  // other groups of the warp go on, and need this one's threads for it
        }
        const uint32_t advanced = decode_take(state, offset, frequency);
        const bool needs = (kAll || active) && decode_needs_word(advanced);
        const uint32_t refilling = group.votes(needs);
        const uint32_t next = words.cursor + __popc(refilling);
        const uint32_t refilled = words.refill(group, advanced, __popc(refilling & group.below));
        if (next > words.limit) {
            if (next > words.count) {
                error = kWordsExhausted;
                return false;
            }
            words.next_block(group, next);
        }
        words.cursor = next;
        if (kAll || active) {
            state = needs ? refilled : advanced;
            output.store(element, symbol);
        }
        return kAll || error == kOk;
    }

    // What a step does when a slot misses its bucket: walks, and takes escapes once it is sure that the step succeeds.
    __device__ __forceinline__ void unusual(uint32_t locator, uint32_t bucket, uint32_t slot, uint32_t start,
                                            bool active, bool miss, uint32_t& offset, uint32_t& frequency,
                                            uint32_t& symbol) {
        bool escape = false;
        bool known = true;
        if (miss) {
            // Positions and cumulative values lie together: in shared memory, if they fit there.
            const unsigned char* blob = a.shared_tables > a.tables.positions ? fastcodec_shared : a.tables.blob;
            const uint32_t number =
                ((locator & ~kLocatorShiftMask) - kLocators * static_cast<uint32_t>(sizeof(uint32_t))) / sizeof(Slots) +
                bucket;
            const uint32_t first = reinterpret_cast<const uint32_t*>(blob + a.tables.positions)[number];
            known = first != kNoTable;
            if (known) {
                const uint16_t* cumulative = reinterpret_cast<const uint16_t*>(blob + a.tables.cumulative);
                uint32_t position = first;
                if (slot < start) {
                    do {
                        --position;
                    } while (slot < cumulative[position]);
                } else {
                    position = walk(cumulative, position, slot);
                }
                const uint32_t end = cumulative[position + 1];
                offset = slot - cumulative[position];
                frequency = end - (slot - offset);
                // `symbol` is that of the bucket's second entry: no offset of a miss is below the first's frequency.
                symbol += position - first - 1;
                escape = end == kProbabilityTotal;
            }
        }
        if (!warp_any(escape || !known)) {
            return;
        }
        const bool needs = active && decode_needs_word(decode_take(state, offset, frequency));
        const uint32_t needed = __popc(group.votes(needs));
        const uint32_t escaping = group.votes(escape);
        const uint32_t count = __popc(escaping);
        if (group.votes(!known) != 0) {
            error = kIndexRange;
        } else if (needed > words.count - words.cursor) {
            error = kWordsExhausted;
        } else if (count > escapes_left) {
            error = kEscapesExhausted;
        } else {
            if (escape) {
                symbol = escapes[__popc(escaping & group.below)];
            }
            escapes += count;
            escapes_left -= count;
        }
    }

    __device__ __forceinline__ void zero(uint32_t from) const {
#pragma unroll 1
        for (uint32_t i = from + group.lane; i < n; i += group.lanes()) {
            output.store(i, 0);
        }
    }

    // Every element is coded: those of a step follow each other.
    __device__ __forceinline__ void decode_dense() {
        const uint32_t lanes = group.lanes();
        uint32_t locator = locator_of(index(group.lane));
        uint32_t index_1 = index(group.lane + lanes);
        uint32_t index_2 = index(group.lane + 2 * lanes);
        uint32_t element = group.lane;
        if (kFull) {
            const uint32_t whole = n & ~(kWarpThreads - 1);
            while (element < whole) {
                const uint32_t here = locator;
                locator = locator_of(index_1);
                index_1 = index_2;
                look_ahead(index_2, element + 3 * kWarpThreads);
                if (!step<true>(here, element, true)) {
                    break;
                }
                element += kWarpThreads;
            }
        }
        while (group.any(error == kOk && element - group.lane < n)) {
            const uint32_t here = locator;
            locator = locator_of(index_1);
            index_1 = index_2;
            look_ahead(index_2, element + 3 * lanes);
            if (step<false>(here, element, error == kOk && element < n)) {
                element += lanes;
            }
        }
        if (error != kOk) {
            zero(element - group.lane);
        }
    }
    __device__ __forceinline__ void look_ahead(uint32_t& index, uint32_t element) const {
        if (element < n) {  // else it is not needed, and stays a valid one
            index = __ldg(indexes + element);
        }
    }

    // Elements of index 0 are not coded: a queue, in shared memory, collects the others until they are enough for a
    // step. A fill adds up to kFillBlocks steps; what is left over afterwards, less than one, moves to the front.
    __device__ __forceinline__ void decode_coded() {
        const uint32_t lanes = group.lanes();
        uint32_t fetched = 0;  // elements looked through
        uint32_t queued = 0;
        uint32_t ahead[kFillBlocks];
        fetch(ahead, fetched);
        // A step's idle lanes look up what the queue holds at their locators: it must be one from the beginning.
        for (uint32_t k = 0; k < kQueueBlocks; ++k) {
            item(k * lanes + group.lane).locator = locator_of(0);
        }
        do {
            while (group.any(queued < lanes && fetched < n)) {
                fill(ahead, queued, fetched);
            }
            uint32_t at = 0;
            if (kFull) {
                while (queued - at >= lanes && step<true>(item(at + group.lane), true)) {
                    at += lanes;
                }
            } else {
                for (bool ready; group.any(ready = error == kOk && queued - at >= lanes);) {
                    at += step<false>(item(at + group.lane), ready) && ready ? lanes : 0;
                }
            }
            if (error != kOk) {
                zero(at, queued, fetched);
            }
            const Queued rest = item(at + group.lane);
            __syncwarp();
            queued -= at;
            if (group.lane < queued) {
                item(group.lane) = rest;
            }
        } while (group.any(fetched < n));
        if (group.any(queued != 0)) {
            __syncwarp();
            if (!step<false>(item(group.lane), group.lane < queued)) {
                uint32_t none = 0;
                zero(none, queued, fetched);
            }
        }
    }
    template <bool kAll>
    __device__ __forceinline__ bool step(Queued taken, bool active) {
        return step<kAll>(taken.locator, taken.element, active);
    }
    __device__ __forceinline__ Queued& item(uint32_t i) const {
        return *reinterpret_cast<Queued*>(fastcodec_shared + (queue + i * static_cast<uint32_t>(sizeof(Queued))));
    }

    // Looks through the next elements, those that are not coded become 0.
    __device__ __forceinline__ void fill(uint32_t (&ahead)[kFillBlocks], uint32_t& queued, uint32_t& fetched) const {
        const uint32_t lanes = group.lanes();
        const bool filling = kFull || (queued < lanes && fetched < n);
        __syncwarp();
#pragma unroll
        for (uint32_t k = 0; k < kFillBlocks; ++k) {
            const uint32_t element = fetched + k * lanes + group.lane;
            const bool here = filling && element < n;
            const bool coded = here && ahead[k] != 0;
            const uint32_t votes = group.votes(coded);
            const Queued found{element, locator_of(ahead[k])};
            if (coded) {
                item(queued + __popc(votes & group.below)) = found;
            }
            if (here && !coded) {
                output.store(element, 0);
            }
            queued += __popc(votes);
        }
        if (filling) {
            fetched = n - fetched > kFillBlocks * lanes ? fetched + kFillBlocks * lanes : n;
            fetch(ahead, fetched);
        }
        __syncwarp();
    }
    // Once the stream has ended early: all that is queued or was not yet looked through becomes 0, and is done with.
    __device__ __forceinline__ void zero(uint32_t& at, uint32_t& queued, uint32_t& fetched) const {
#pragma unroll 1
        for (uint32_t i = at + group.lane; i < queued; i += group.lanes()) {
            output.store(item(i).element, 0);
        }
        zero(fetched);
        fetched = n;
        queued = at = 0;
    }
    __device__ __forceinline__ void fetch(uint32_t (&ahead)[kFillBlocks], uint32_t from) const {
#pragma unroll
        for (uint32_t k = 0; k < kFillBlocks; ++k) {
            ahead[k] = index(from + k * group.lanes() + group.lane);
        }
    }
};

template <bool kFull, bool kSkip>
__device__ __forceinline__ void decode(const DecodeArguments& a) {
    copy_to_shared(a.tables.blob, a.shared_tables);
    __syncthreads();
    uint32_t number;
    if (!warp_of_thread(a.warps_per_block, a.warp_count, number)) {
        return;
    }
    const Work<kFull> work(a, a.warps[number]);
    const Stream& stream = work.stream;
    const uint32_t lane = work.group.lane;
    Decoder<kFull> decoder{a,
                           work.group,
                           SymbolOutput(*work.pass, work.begin),
                           kept(work.pass->indexes + work.begin),
                           work.n,
                           {},
                           a.payloads + stream.escapes,
                           stream.escapes_end - stream.escapes,
                           work.owner ? a.states[stream.states + lane] : kStateLow,
                           kOk,
                           0};
    if (stream.error != kOk) {
        decoder.zero(0);
        decoder.n = 0;
    }
    decoder.words.open(work.group, a.payloads + stream.words, stream.words_end - stream.words);
    if (kSkip) {
        const uint32_t entry = threadIdx.x / kWarpThreads * kQueueEntries + work.group.first * kQueueBlocks;
        decoder.queue = kept(a.shared_tables + entry * static_cast<uint32_t>(sizeof(Queued)));
        decoder.decode_coded();
    } else {
        decoder.decode_dense();
    }
    park(a, work, decoder.state, decoder.words, decoder.escapes_left, decoder.error);
}

// A decoded pass: its symbols become fixed-point values (what the context network reads) and latents (what the
// synthesis reads, in its type, where they lie in the picture), each unless null.
__device__ __forceinline__ void reconstruct(const ReconstructArguments& a) {
    const TilePass pass = a.passes[blockIdx.y];
    const uint32_t n = pass.positions * pass.channels.value;
    const uint32_t begin = blockIdx.x * kReconstructBlock + threadIdx.x;
    const int16_t* const symbols = static_cast<const int16_t*>(pass.symbols);
    int32_t values[kReconstructEach];
#pragma unroll
    for (uint32_t k = 0; k < kReconstructEach; ++k) {
        const uint32_t at = begin + k * kReconstructThreads;
        if (at < n) {
            const uint32_t symbol = static_cast<uint32_t>(static_cast<int32_t>(__ldg(symbols + at)));
            values[k] = static_cast<int32_t>(symbol << pass.mean_bits) + __ldg(pass.means + at);
        }
    }
#pragma unroll
    for (uint32_t k = 0; k < kReconstructEach; ++k) {
        const uint32_t at = begin + k * kReconstructThreads;
        if (at >= n) {
            break;
        }
        const uint32_t position = divide(at, pass.channels);
        const uint32_t channel = at - position * pass.channels.value;
        if (pass.values != nullptr) {
            pass.values[static_cast<uint64_t>(position) * pass.value_stride + channel] = values[k];
        }
        if (pass.latents == nullptr) {
            continue;
        }
        // Every second position of the raster: with an odd width the colours alternate through it, with an even one
        // each row begins with the other colour.
        const uint32_t odd = pass.width.value & 1;
        const uint32_t raster = 2 * position + (odd & pass.parity);
        const uint32_t row = divide(raster, pass.width);
        const uint32_t column = raster - row * pass.width.value + (odd ? 0 : (row & 1) ^ pass.parity);
        const uint64_t offset =
            static_cast<uint64_t>(row) * pass.row_stride + static_cast<uint64_t>(column) * pass.column_stride + channel;
        const float latent = static_cast<float>(values[k]) * __ldg(pass.gain + channel);
        if (pass.latent_type == kFloat32) {
            static_cast<float*>(pass.latents)[offset] = latent;
        } else {
            static_cast<uint16_t*>(pass.latents)[offset] =
                pass.latent_type == kFloat16 ? float16_bits(latent) : bfloat16_bits(latent);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Encode

struct EncodeTables {
    const Table* tables;
    const uint16_t* cumulative;
};

struct Encoder {
    const EncodeTables tables;
    uint32_t last_table;
    Pushes pushes;

    __device__ __forceinline__ void step(uint32_t index, int32_t symbol, bool active) {
        const Table table = tables.tables[index < last_table ? index : last_table];
        const uint32_t entry = entry_of(table, symbol);
        const uint32_t start = tables.cumulative[entry];
        const uint32_t end = tables.cumulative[entry + 1];
        pushes.push(start, end - start, end == kProbabilityTotal, symbol, active);
    }
};

template <bool kSkip>
__device__ __forceinline__ void encode(const EncodeArguments& a) {
    const DeviceTables& set = a.tables;
    copy_to_shared(set.blob + set.cumulative, a.shared_tables);
    __syncthreads();
    uint32_t number;
    if (!warp_of_thread(a.warps_per_block, a.warp_count, number)) {
        return;
    }
    const Work<false> work(a, a.warps[number]);
    const Group<false>& group = work.group;
    const TilePass& pass = *work.pass;
    const uint32_t lanes = group.lanes();
    const uint32_t begin = work.begin;
    const uint32_t n = work.n;
    const uint8_t* indexes = pass.indexes + begin;
    const unsigned char* tables = a.shared_tables != 0 ? fastcodec_shared : set.blob + set.cumulative;
    Encoder encoder{{reinterpret_cast<const Table*>(tables + (set.tables - set.cumulative)),
                     reinterpret_cast<const uint16_t*>(tables)},
                    set.count - 1,
                    Pushes(a, work)};
    if (kSkip) {
        // Where a coded symbol's lane is follows from how many come before it: so they are counted first.
        uint32_t coded_count = 0;
        for (uint32_t start = 0; warp_any(start < n); start += lanes) {
            const uint32_t element = start + group.lane;
            coded_count += __popc(group.votes(element < n && indexes[element] != 0));
        }
        // A queue of symbol << 8 | index, filled and emptied from the end of the pass on.
        uint32_t* queue = reinterpret_cast<uint32_t*>(fastcodec_shared + a.shared_tables) +
                          threadIdx.x / kWarpThreads * kEncodeQueueEntries + group.first * 2;
        const uint32_t wrap = 2 * lanes - 1;
        uint32_t head = 0;
        uint32_t queued = 0;
        uint32_t left = n;
        for (;;) {
            const uint32_t remainder = coded_count & (lanes - 1);
            const uint32_t wanted = remainder != 0 ? remainder : lanes;  // the last step may be partial
            while (warp_any(queued < wanted && left != 0)) {
                const bool filling = queued < wanted && left != 0;
                const uint32_t element = left - 1 - group.lane;
                const bool here = filling && group.lane < left;
                const uint32_t index = here ? static_cast<uint32_t>(indexes[element]) : 0u;
                const uint32_t votes = group.votes(index != 0);
                __syncwarp();
                if (index != 0) {
                    const uint32_t symbol = static_cast<uint32_t>(symbol_at(pass, begin + element));
                    queue[(head + queued + __popc(votes & group.below)) & wrap] = symbol << 8 | index;
                }
                __syncwarp();
                queued += __popc(votes);
                if (filling) {
                    left = left > lanes ? left - lanes : 0;
                }
            }
            if (!warp_any(queued != 0)) {
                break;
            }
            const bool ready = queued >= wanted;
            const bool active = ready && group.lane < wanted;
            const uint32_t mine = active ? queue[(head + wanted - 1 - group.lane) & wrap] : 0u;
            encoder.step(mine & 0xff, static_cast<int32_t>(mine) >> 8, active);
            if (ready) {
                head += wanted;
                queued -= wanted;
                coded_count -= wanted;
            }
        }
    } else {
        const uint32_t steps = (n + lanes - 1) >> group.lanes_log2;
        for (uint32_t left = steps; warp_any(left != 0); left -= left != 0) {
            const uint32_t element = (left - 1) * lanes + group.lane;
            const bool active = left != 0 && element < n;
            encoder.step(active ? indexes[element] : 0, active ? symbol_at(pass, begin + element) : 0, active);
        }
    }
    encoder.pushes.park(a, work);
}

__device__ __forceinline__ void examine(const ExamineArguments& a) {
    const DeviceTables& set = a.tables;
    const Table* tables = reinterpret_cast<const Table*>(set.blob + set.tables);
    const uint16_t* costs = reinterpret_cast<const uint16_t*>(set.blob + set.costs);
    examine_elements(a, [&](const TilePass& pass, uint32_t element, int32_t symbol, bool counts, uint32_t& faults) {
        const uint32_t index = pass.indexes[element];
        if (index >= set.count) {
            faults |= kFaultIndex;
        } else if (symbol != static_cast<int16_t>(symbol)) {
            faults |= kFaultSymbol;
        } else if (set.skip != 0 && index == 0) {
            faults |= symbol != 0 ? kFaultSkipped : 0u;
        } else if (counts) {
            return static_cast<uint32_t>(costs[entry_of(tables[index], symbol)]);
        }
        return 0u;
    });
}

}  // namespace
}  // namespace fastcodec::rans::cuda
