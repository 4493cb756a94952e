// The CUDA twin of the coder: rans.h's rule, a warp's threads for its lanes. cuda.h says what lies where;
// docs/kernels.md derives what it costs.
//
// What a warp does
// ----------------
// One stream of 32 lanes has a warp of its own, one thread a lane; streams of fewer lanes share one, each a group of
// neighbouring threads ("mixed" kernels; "full" ones, which know that each group is a warp, save a few instructions).
// One stream a warp and not two: 16 warps on each scheduler hide what a step waits for, and a lone stream's latency
// would not change.
//
//  * Table lookup: one read of 8 bytes from shared memory settles nearly every slot (a bucket holds two entries). The
//  rest
//    walk. Everything that depends on the index alone is fetched steps ahead: a step waits for its own state only.
//  * Renormalisation: lanes that need a word vote; a lane's word is the stream's next one, plus how many lanes below it
//    voted. The next 2 N words of a stream lie in a register of its lanes, two each, so a lane gets its word by a
//    shuffle and not from memory; N more are on their way.
//  * Elements that are not coded take no step: a warp looks through indexes some blocks ahead and queues those that
//  are.
//  * Nothing is trusted: a read past a section's end gives zeros, a stream that needs more than it has ends with an
//  error
//    word, and an index that names no table is caught by its bucket.
//
// Every thread of a warp takes part in every vote and shuffle, with the whole warp's mask, whether its group has work
// or not: loops end when all groups are done.

#include "cuda.h"

#include "../intrinsics.cuh"

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
        owner = kFull || member < warp.streams;
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

// Where symbols go as they are.
struct SymbolOutput {
    int16_t* symbols;

    __device__ __forceinline__ SymbolOutput(const TilePass& pass, uint32_t begin)
        : symbols(kept(static_cast<int16_t*>(pass.symbols) + begin)) {}
    __device__ __forceinline__ void store(uint32_t element, uint32_t symbol) const {
        global(symbols)[element] = static_cast<int16_t>(symbol);
    }
};

// Where symbols become latents: the symbols, the fixed-point values (what the context network reads) and the latents
// (what the synthesis reads, in its type, at their places in the picture), each unless null.
struct LatentOutput {
    const TilePass pass;
    const uint32_t begin;

    __device__ __forceinline__ LatentOutput(const TilePass& tile, uint32_t first) : pass(tile), begin(first) {}
    __device__ __forceinline__ void store(uint32_t element, uint32_t symbol) const {
        const uint32_t at = begin + element;
        if (pass.symbols != nullptr) {
            static_cast<int16_t*>(pass.symbols)[at] = static_cast<int16_t>(symbol);
        }
        const int32_t value =
            static_cast<int32_t>(static_cast<uint32_t>(static_cast<int16_t>(symbol)) << pass.mean_bits) +
            pass.means[at];
        if (pass.values != nullptr) {
            pass.values[at] = value;
        }
        if (pass.latents == nullptr) {
            return;
        }
        const uint32_t position = divide(at, pass.channels);
        const uint32_t channel = at - position * pass.channels.value;
        // Every second place of the raster: with an odd width the colours alternate through it, with an even one each
        // row begins with the other colour.
        const uint32_t odd = pass.width.value & 1;
        const uint32_t raster = 2 * position + (odd & pass.parity);
        const uint32_t row = divide(raster, pass.width);
        const uint32_t column = raster - row * pass.width.value + (odd ? 0 : (row & 1) ^ pass.parity);
        const uint64_t place = (static_cast<uint64_t>(row) * pass.pitch + column) * pass.channels.value + channel;
        const float latent = static_cast<float>(value) * pass.gain[channel];
        if (pass.latent_type == kFloat32) {
            static_cast<float*>(pass.latents)[place] = latent;
        } else {
            static_cast<uint16_t*>(pass.latents)[place] =
                pass.latent_type == kFloat16 ? float16_bits(latent) : bfloat16_bits(latent);
        }
    }
};

template <bool kFull, class Output>
struct Decoder {
    const DecodeArguments& a;
    Group<kFull> group;
    Output output;
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
    __device__ __forceinline__ uint32_t place_of(uint32_t index) const {
        return reinterpret_cast<const uint32_t*>(fastcodec_shared)[index];
    }

    // One step: every active lane takes its element; with kAll every lane is active. False, for all lanes of the group,
    // if the stream ends here: then nothing has changed but `error`.
    template <bool kAll>
    __device__ __forceinline__ bool step(uint32_t place, uint32_t element, bool active) {
        const uint32_t slot = slot_of(state);
        const uint32_t bucket = slot >> (place & kPlaceShiftMask);
        // A Slots, read at once whatever is needed of it: a second read would be on the way from state to state.
        const uint2 slots = *reinterpret_cast<const uint2*>(
            fastcodec_shared + ((place & ~kPlaceShiftMask) + bucket * static_cast<uint32_t>(sizeof(Slots))));
        const uint32_t first = slots.x >> 16;
        // Beyond the first entry; also when the slot lies before both, then `offset` stays too large for the second.
        uint32_t offset = slot - (slots.x & 0xffff);
        const bool second = offset >= first;
        offset = second ? offset - first : offset;
        uint32_t frequency = second ? slots.y & 0xffff : first;
        uint32_t symbol = (slots.y + (second ? 1u << 16 : 0)) >> 16;
        const bool miss = (kAll || active) && offset >= frequency;
        if (warp_any(miss)) {
            unusual(place, bucket, slot, slots.x & 0xffff, kAll || active, miss, offset, frequency, symbol);
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
    __device__ __forceinline__ void unusual(uint32_t place, uint32_t bucket, uint32_t slot, uint32_t start, bool active,
                                            bool miss, uint32_t& offset, uint32_t& frequency, uint32_t& symbol) {
        bool escape = false;
        bool known = true;
        if (miss) {
            // Positions and cumulative values lie together: in shared memory, if they fit there.
            const unsigned char* blob = a.shared_tables > a.tables.positions ? fastcodec_shared : a.tables.blob;
            const uint32_t number =
                ((place & ~kPlaceShiftMask) - kPlaces * static_cast<uint32_t>(sizeof(uint32_t))) / sizeof(Slots) +
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
        uint32_t place = place_of(index(group.lane));
        uint32_t index_1 = index(group.lane + lanes);
        uint32_t index_2 = index(group.lane + 2 * lanes);
        uint32_t element = group.lane;
        if (kFull) {
            const uint32_t whole = n & ~(kWarpThreads - 1);
            while (element < whole) {
                const uint32_t here = place;
                place = place_of(index_1);
                index_1 = index_2;
                look_ahead(index_2, element + 3 * kWarpThreads);
                if (!step<true>(here, element, true)) {
                    break;
                }
                element += kWarpThreads;
            }
        }
        while (group.any(error == kOk && element - group.lane < n)) {
            const uint32_t here = place;
            place = place_of(index_1);
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
        // A step's idle lanes look up what the queue holds at their places: it must be a place from the beginning.
        for (uint32_t k = 0; k < kQueueBlocks; ++k) {
            item(k * lanes + group.lane).place = place_of(0);
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
        return step<kAll>(taken.place, taken.element, active);
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
            const Queued found{element, place_of(ahead[k])};
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

template <bool kFull, bool kSkip, class Output>
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
    Decoder<kFull, Output> decoder{a,
                                   work.group,
                                   Output(*work.pass, work.begin),
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
    if (work.owner) {
        a.states[stream.states + lane] = decoder.state;
        if (lane == 0) {
            Stream& parked = a.streams[work.id];
            parked.words = stream.words + decoder.words.cursor;
            parked.escapes = stream.escapes_end - decoder.escapes_left;
            if (decoder.error != kOk) {
                parked.error = decoder.error;
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Encode

struct EncodeTables {
    const Table* tables;
    const uint16_t* cumulative;
};

// One stream's part of a pass, last element first. Words and escapes grow downwards; a symbol writes at most one of
// each, and their buffers have room for that.
struct Encoder {
    const EncodeTables tables;
    uint32_t last_table;
    Group<false> group;
    uint16_t* words;
    uint16_t* escapes;
    uint32_t state;

    __device__ __forceinline__ void step(uint32_t index, int32_t symbol, bool active) {
        const Table table = tables.tables[index < last_table ? index : last_table];
        const uint32_t entry = entry_of(table, symbol);
        const uint32_t start = tables.cumulative[entry];
        const uint32_t end = tables.cumulative[entry + 1];
        const bool emits = active && encode_emits(state, end - start);
        const uint32_t emitting = group.votes(emits);
        words -= __popc(emitting);
        if (emits) {
            words[__popc(emitting & group.below)] = static_cast<uint16_t>(state);
            state >>= kWordBits;
        }
        if (active) {
            state = encode_push(state, start, end - start);
        }
        const bool escape = active && end == kProbabilityTotal;
        if (warp_any(escape)) {
            const uint32_t escaping = group.votes(escape);
            escapes -= __popc(escaping);
            if (escape) {
                escapes[__popc(escaping & group.below)] = static_cast<uint16_t>(symbol);
            }
        }
    }
};

__device__ __forceinline__ int32_t symbol_at(const TilePass& pass, uint32_t element) {
    return pass.symbol_bytes == 4 ? static_cast<const int32_t*>(pass.symbols)[element]
                                  : static_cast<const int16_t*>(pass.symbols)[element];
}

template <bool kSkip>
__device__ __forceinline__ void encode(const EncodeArguments& a) {
    const TableSet& set = a.tables;
    copy_to_shared(set.blob + set.cumulative, a.shared_tables);
    __syncthreads();
    uint32_t number;
    if (!warp_of_thread(a.warps_per_block, a.warp_count, number)) {
        return;
    }
    const Work<false> work(a, a.warps[number]);
    const Group<false>& group = work.group;
    const Stream& stream = work.stream;
    const TilePass& pass = *work.pass;
    const uint32_t lanes = group.lanes();
    const uint32_t begin = work.begin;
    const uint32_t n = work.n;
    const uint8_t* indexes = pass.indexes + begin;
    const unsigned char* tables = a.shared_tables != 0 ? fastcodec_shared : set.blob + set.cumulative;
    Encoder encoder{{reinterpret_cast<const Table*>(tables + (set.tables - set.cumulative)),
                     reinterpret_cast<const uint16_t*>(tables)},
                    set.count - 1,
                    group,
                    a.scratch + stream.words,
                    a.scratch + stream.escapes,
                    work.owner ? a.states[stream.states + group.lane] : kStateLow};
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
    if (work.owner) {
        a.states[stream.states + group.lane] = encoder.state;
        if (group.lane == 0) {
            a.streams[work.id].words = static_cast<uint32_t>(encoder.words - a.scratch);
            a.streams[work.id].escapes = static_cast<uint32_t>(encoder.escapes - a.scratch);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Before encoding: what a pass costs and whether it can be coded at all

__device__ __forceinline__ void examine(const ExamineArguments& a) {
    const TableSet& set = a.tables;
    const TilePass& pass = a.passes[blockIdx.y];
    const uint32_t n = pass.positions * pass.channels.value;
    const bool sampled = a.exact == 0 && n > kCostAll;
    const Table* tables = reinterpret_cast<const Table*>(set.blob + set.tables);
    const uint16_t* costs = reinterpret_cast<const uint16_t*>(set.blob + set.costs);
    const uint32_t begin = blockIdx.x * kExamineBlock;
    uint32_t cost = 0;  // of 64 elements at most: far below 2^32
    uint32_t faults = 0;
    for (uint32_t i = threadIdx.x; i < kExamineBlock && i < n - begin && begin < n; i += blockDim.x) {
        const uint32_t element = begin + i;
        const uint32_t index = pass.indexes[element];
        const int32_t symbol = symbol_at(pass, element);
        if (index >= set.count) {
            faults |= kFaultIndex;
        } else if (symbol != static_cast<int16_t>(symbol)) {
            faults |= kFaultSymbol;
        } else if (set.skip != 0 && index == 0) {
            faults |= symbol != 0 ? kFaultSkipped : 0u;
        } else if (!sampled || element / kCostBlock % kCostStride == 0) {
            cost += costs[entry_of(tables[index], symbol)];
        }
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

// ---------------------------------------------------------------------------------------------------------------------
// After encoding: from scratch buffers to contiguous payloads

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
    TilePlace& tile = a.tiles[blockIdx.x];
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
            a.places[tile.first_stream + number] = {head + escape_directory + escape_count_at,
                                                    word_directory + word_count_at, words + words_at,
                                                    escapes + escapes_at};
        }
        escape_directory += totals[0];
        word_directory += totals[1];
        words += totals[2];
        escapes += totals[3];
    }
    for (uint32_t number = threadIdx.x; number < tile.streams; number += kPackThreads) {
        a.places[tile.first_stream + number].word_count_at += head + escape_directory;
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
    const StreamPlace place = a.places[blockIdx.x];
    const TilePlace& tile = a.tiles[stream.tile];
    uint8_t* const payload = a.out + tile.offset;
    const uint32_t word_count = stream.words_end - stream.words;
    const uint32_t escape_count = stream.escapes_end - stream.escapes;
    if (threadIdx.x == 0) {
        if (stream.number == 0) {
            payload[0] = static_cast<uint8_t>(tile.lanes_log2);
            write_varint_at(payload + 1, tile.streams);
        }
        write_varint_at(payload + place.escape_count_at, escape_count);
        if (stream.number + 1 < tile.streams) {
            write_varint_at(payload + place.word_count_at, word_count);
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
        words[place.words_at + i] = a.scratch[stream.words + i];
    }
    for (uint32_t i = threadIdx.x; i < escape_count; i += blockDim.x) {
        escapes[place.escapes_at + i] = a.scratch[stream.escapes + i];
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

// ---------------------------------------------------------------------------------------------------------------------
// The kernels by name

using namespace fastcodec::rans::cuda;

#define FASTCODEC_DECODE_KERNEL(name, threads, full, skip, Output) \
    extern "C" __global__ void __launch_bounds__(threads, 1)       \
    name(const __grid_constant__ DecodeArguments a) { decode<full, skip, Output>(a); }

FASTCODEC_DECODE_KERNEL(fastcodec_rans_decode_full_dense, kCoderThreads, true, false, SymbolOutput)
FASTCODEC_DECODE_KERNEL(fastcodec_rans_decode_full_skip, kCoderThreads, true, true, SymbolOutput)
FASTCODEC_DECODE_KERNEL(fastcodec_rans_decode_mixed_dense, kCoderThreads, false, false, SymbolOutput)
FASTCODEC_DECODE_KERNEL(fastcodec_rans_decode_mixed_skip, kCoderThreads, false, true, SymbolOutput)
FASTCODEC_DECODE_KERNEL(fastcodec_rans_reconstruct_full_dense, kReconstructThreads, true, false, LatentOutput)
FASTCODEC_DECODE_KERNEL(fastcodec_rans_reconstruct_full_skip, kReconstructThreads, true, true, LatentOutput)
FASTCODEC_DECODE_KERNEL(fastcodec_rans_reconstruct_mixed_dense, kReconstructThreads, false, false, LatentOutput)
FASTCODEC_DECODE_KERNEL(fastcodec_rans_reconstruct_mixed_skip, kReconstructThreads, false, true, LatentOutput)

#define FASTCODEC_KERNEL(name, threads, Arguments, body)     \
    extern "C" __global__ void __launch_bounds__(threads, 1) \
    name(const __grid_constant__ Arguments a) { body(a); }

FASTCODEC_KERNEL(fastcodec_rans_encode_dense, kCoderThreads, EncodeArguments, encode<false>)
FASTCODEC_KERNEL(fastcodec_rans_encode_skip, kCoderThreads, EncodeArguments, encode<true>)
FASTCODEC_KERNEL(fastcodec_rans_examine, kExamineThreads, ExamineArguments, examine)
FASTCODEC_KERNEL(fastcodec_rans_measure, kPackThreads, PackArguments, measure)
FASTCODEC_KERNEL(fastcodec_rans_arrange, kPackThreads, PackArguments, arrange)
FASTCODEC_KERNEL(fastcodec_rans_gather, kPackThreads, PackArguments, gather)
FASTCODEC_KERNEL(fastcodec_rans_finish, kFinishThreads, FinishArguments, finish)
