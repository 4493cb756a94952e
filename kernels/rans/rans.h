// The rule of fastcodec's entropy coder, stated once: interleaved range ANS with one distribution per symbol.
//
// Every twin (the scalar oracle, AVX2, AVX-512, CUDA) includes this file; they may differ in how many lanes they move
// at a time and in nothing else. It compiles as C++20 and as CUDA device code.
//
// What the design trades
// ----------------------
// A 32-bit state, renormalised 16 bits at a time above L = 2^16, with probabilities of P = 14 bits.
//
//  * One word at most per symbol, so a decode step is straight-line code: take a slot, advance, maybe read one word.
//    Decode: x >= 2^16 gives x >> 14 >= 4, and a frequency is at least 1, so x' = f * (x >> 14) + (slot - start) >= 4.
//    One word later x' >= 4 * 2^16 > L. Above: f <= 2^14 and slot - start < f give
//    x' <= 2^14 * (2^18 - 1) + 2^14 - 1 < 2^32. So x' fits in 32 bits and one word always suffices.
//    Encode: x is pushed when x < f * 2^18 (that is L / 2^14 * 2^16 * f, the largest x whose successor stays below
//    2^32), else its low word is written first: x < 2^32 leaves x >> 16 < 2^16 <= f * 2^18, so one word always
//    suffices here too. The test is (x >> 18) >= f: the product f * 2^18 would overflow at f = 2^14.
//  * 14-bit probabilities: x >> 14 keeps two bits and more, so the loss to the state's granularity stays under 0.1 % at
//    0.28 bits a symbol. 12 bits lose more to the tables (every symbol of a table takes at least 1), 16 bits lose more
//    to the state (x >> 16 would be 1).
//  * Lanes cost about 24 bits each (32 of state, less the 8 or so that a state carries on average), so their number
//    follows the payload's size: see choose_shape.
//
// The order of things
// -------------------
// A tile is coded by S streams of N lanes in one or more passes, with ONE set of states through all of them: the
// encoder runs the passes last to first and each pass back to front, the decoder runs forwards and parks states and
// cursors between passes. A pass is a matrix [P positions, C channels] of symbols, each with the index of its table.
// Stream s takes the positions floor(s P / S) .. floor((s + 1) P / S) - 1 of every pass. Its symbols are read in
// row-major order; those whose table index is 0 in a set with skip are not coded (they are 0, and take no step). The
// j-th coded symbol of a stream and pass goes to lane j mod N; j restarts with each pass. A step is N consecutive coded
// symbols (fewer at the end of a pass): every lane advances, then the lanes whose state fell below L read one word
// each, in ascending order.
//
// Escapes: the last entry of every table is a sentinel. It stands for a value outside the table, which is written to
// the stream's escape section as 16 bits, in coding order.
//
// Errors: a step that needs more words than its stream has left (kWordsExhausted, tested first), or more escapes
// (kEscapesExhausted), ends the stream: that step's symbols and all later ones of the stream are 0, in this pass and in
// the following ones. Several streams may fail; the tile's error is that of its first failing stream.
//
// The bytes of a tile's payload (all integers little endian)
// ----------------------------------------------------------
//   u8            bits 0..2: log2 N, 0..5; bits 3..7: 0
//   varint        S, 1..65535
//   varint * S    E_s, the number of escapes of stream s
//   varint * S-1  W_s, the number of words of stream s; that of the last stream follows from the payload's length
//   u32 * S * N   the states with which decoding starts, stream by stream, lane by lane; each at least 2^16
//   u16 * sum W   the words of stream 0, 1, ..., in the order in which the decoder reads them
//   u16 * sum E   the escapes of stream 0, 1, ..., two's complement, in coding order
// A varint is LEB128, of the least possible length, below 2^32. Nothing follows. Decoding ends with every state at 2^16
// and every cursor at the end of its section; anything else is a corrupt payload.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define FASTCODEC_INLINE __host__ __device__ __forceinline__
#else
// Always inlined, never merged by the linker: each twin is compiled for another instruction set, and the scalar one
// must not end up calling a copy that was compiled for AVX-512.
#define FASTCODEC_INLINE inline __attribute__((always_inline))
#endif

namespace fastcodec::rans {

constexpr int kProbabilityBits = 14;
constexpr uint32_t kProbabilityTotal = 1u << kProbabilityBits;
constexpr int kWordBits = 16;
constexpr uint32_t kStateLow = 1u << kWordBits;    // L: every parked state lies in [L, 2^32)
constexpr int kEmitShift = 32 - kProbabilityBits;  // a push writes a word first when (state >> kEmitShift) >= frequency
constexpr uint32_t kMaxLanesLog2 = 5;
constexpr uint32_t kMaxLanes = 1u << kMaxLanesLog2;
constexpr uint32_t kMaxStreams = 65535;
constexpr uint32_t kMaxTables = 256;                 // an index is one byte
constexpr uint32_t kMaxEntries = kProbabilityTotal;  // of one table, sentinel included: each takes at least 1
constexpr uint32_t kEscapeBits = 16;

static_assert(kStateLow >> kProbabilityBits >= 1, "a push must keep the state above the table's precision");

enum Error : uint32_t {
    kOk = 0,
    kTruncated,         // a section reaches past the payload's end
    kReservedBits,      // reserved bits of the first byte are set, or log2 N > 5
    kBadStreamCount,    // S is 0 or above 65535
    kBadVarint,         // not the shortest form, or 2^32 and above
    kOddLength,         // the words of the last stream do not fill whole words
    kBadState,          // a state below 2^16
    kWordsExhausted,    // a step needs a word past the end of its stream
    kEscapesExhausted,  // a step needs an escape past the end of its stream
    kFinalState,        // a state did not come back to 2^16
    kWordsLeft,         // words remain after the last pass
    kEscapesLeft,       // escapes remain after the last pass
    // Not of the payload, but of what it is decoded with. The CPU twins refuse such a pass before they decode anything;
    // a GPU finds it on the way and tells it with the other errors.
    kIndexRange,    // an index names no table
    kWeightsWrong,  // a mixture's weights do not sum to 2^12 (mixture.h)
};

// ---------------------------------------------------------------------------------------------------------------------
// Tables

// Where one table's entries are: symbols first .. first + size - 2, then the sentinel.
struct Table {
    uint32_t base;  // of its first entry, in the set's cumulative and costs
    int16_t first;  // the symbol of its first entry
    uint16_t size;  // entries, sentinel included
};

// What most slots that share their top bits need, in one read of 8 bytes: two neighbouring entries, the slots
// start .. middle - 1 of `symbol` and middle .. end - 1 of symbol + 1. They are the two that cover most of the bucket;
// a slot outside start .. end - 1 misses, and is looked for in the cumulative values instead.
struct Bucket {
    uint16_t start;
    uint16_t middle;
    uint16_t end;
    int16_t symbol;
};

// A set of tables as the twins read it. Pointers into host, global or shared memory.
//
// `cumulative` holds, for each table in turn, the first slot of each of its entries and then 2^14: entry k has the
// slots cumulative[base + k] .. cumulative[base + k + 1] - 1. The sentinel alone ends at 2^14: that is how it is
// recognised. `positions` tells where in cumulative the entry of a bucket's first slot is: the walk for a slot that
// misses begins there.
struct Tables {
    const Bucket* buckets;       // [count << bucket_bits]
    const uint32_t* positions;   // [count << bucket_bits]
    const uint16_t* cumulative;  // [sum of (size + 1)], and kWindow more that are read and not used
    const uint16_t* costs;       // likewise: the cost of each entry in 1/256 bit, see entry_cost
    const Table* tables;         // [count]
    uint32_t count;
    uint32_t bucket_bits;
    uint32_t skip;  // 1: symbols of table 0 are not coded, they are 0
};
constexpr uint32_t kWindow = 4;  // SIMD twins walk by so many cumulative values, that is 8 bytes

struct Found {
    uint32_t start;
    uint32_t frequency;
    uint32_t symbol;  // its low 16 bits; of no meaning for the sentinel
    bool escape;
};

FASTCODEC_INLINE uint32_t slot_of(uint32_t state) { return state & (kProbabilityTotal - 1); }

// The position in `cumulative` of a slot's entry, from that of an entry of the same table which is not behind it.
// Bounded: no slot reaches 2^14, with which each table ends.
FASTCODEC_INLINE uint32_t walk(const uint16_t* cumulative, uint32_t position, uint32_t slot) {
    while (slot >= cumulative[position + 1]) {
        ++position;
    }
    return position;
}

// The entry of a slot of table `index`.
FASTCODEC_INLINE Found lookup(const Tables& t, uint32_t index, uint32_t slot) {
    const uint32_t number = (index << t.bucket_bits) + (slot >> (kProbabilityBits - t.bucket_bits));
    const Bucket bucket = t.buckets[number];
    if (slot - bucket.start < static_cast<uint32_t>(bucket.end - bucket.start)) {
        // Which of the two it is cannot be predicted: chosen by a mask, of which no compiler makes a branch.
        const uint32_t second = 0u - static_cast<uint32_t>(slot >= bucket.middle);
        const uint32_t start = bucket.start + (static_cast<uint32_t>(bucket.middle - bucket.start) & second);
        const uint32_t end = bucket.middle + (static_cast<uint32_t>(bucket.end - bucket.middle) & second);
        return {start, end - start, static_cast<uint32_t>(bucket.symbol) - second, end == kProbabilityTotal};
    }
    const uint32_t position = walk(t.cumulative, t.positions[number], slot);
    const Table table = t.tables[index];
    const uint32_t start = t.cumulative[position];
    const uint32_t end = t.cumulative[position + 1];
    return {start, end - start, table.first + (position - table.base), end == kProbabilityTotal};
}

// The entry that codes `symbol` by a table, as a position in cumulative and costs: its own, or the sentinel's.
FASTCODEC_INLINE uint32_t entry_of(Table table, int32_t symbol) {
    const uint32_t last = table.size - 1u;
    const uint32_t position = static_cast<uint32_t>(symbol - table.first);
    return table.base + (position < last ? position : last);
}
FASTCODEC_INLINE uint32_t entry_of(const Tables& t, uint32_t index, int32_t symbol) {
    return entry_of(t.tables[index], symbol);
}

// ---------------------------------------------------------------------------------------------------------------------
// Steps

// Decode, first half: the state after its slot, the one numbered `offset` of an entry with `frequency`, is taken. It
// may lie below L, then a word must follow.
FASTCODEC_INLINE uint32_t decode_take(uint32_t state, uint32_t offset, uint32_t frequency) {
    return frequency * (state >> kProbabilityBits) + offset;
}
FASTCODEC_INLINE uint32_t decode_advance(uint32_t state, uint32_t start, uint32_t frequency) {
    return decode_take(state, slot_of(state) - start, frequency);
}
FASTCODEC_INLINE bool decode_needs_word(uint32_t advanced) { return advanced < kStateLow; }
// Decode, second half.
FASTCODEC_INLINE uint32_t decode_refill(uint32_t advanced, uint32_t word) { return advanced << kWordBits | word; }

// Encode, first half: whether the state's low word must be written (and the state shifted) before the push.
FASTCODEC_INLINE bool encode_emits(uint32_t state, uint32_t frequency) { return state >> kEmitShift >= frequency; }
// Encode, second half: the inverse of decode_advance.
//
// SIMD twins have no integer division. They take q = trunc(float(x) * (1 / float(f)) - 1/16), at least 0, by a fused
// multiply-add, and correct once: x / f < 2^18, the conversion and the reciprocal each err by a factor of 2^-24 at most
// (together under 2^-5), the multiply-add by 2^-7, so the estimate lies between x / f - 0.11 and x / f - 0.02, and q is
// the quotient or one less. The reciprocal does not wait for the state.
FASTCODEC_INLINE uint32_t encode_push(uint32_t state, uint32_t start, uint32_t frequency) {
    const uint32_t quotient = state / frequency;
    return (quotient << kProbabilityBits) + (state - quotient * frequency) + start;
}

// ---------------------------------------------------------------------------------------------------------------------
// Streams and shapes

FASTCODEC_INLINE constexpr uint64_t stream_begin(uint64_t positions, uint64_t streams, uint64_t stream) {
    return stream * positions / streams;
}

// floor(256 * log2(value)) for 1 <= value <= 2^16, in integers, so that every machine gets the same.
FASTCODEC_INLINE constexpr uint32_t log2_256(uint32_t value) {
    uint32_t whole = 0;
    while (value >> (whole + 1) != 0) {
        ++whole;
    }
    uint64_t mantissa = (static_cast<uint64_t>(value) << 31) >> whole;  // [1, 2) with 31 fraction bits
    uint32_t result = whole;
    for (int bit = 0; bit < 8; ++bit) {
        mantissa = (mantissa * mantissa) >> 31;
        const uint32_t carry = static_cast<uint32_t>(mantissa >> 32);
        mantissa >>= carry;
        result = result << 1 | carry;
    }
    return result;
}

// The cost of an entry, in 1/256 bit.
FASTCODEC_INLINE constexpr uint32_t entry_cost(uint32_t frequency, bool escape) {
    return kProbabilityBits * 256 - log2_256(frequency) + (escape ? kEscapeBits * 256 : 0);
}
constexpr uint32_t kMaxEntryCost = entry_cost(1, true);

enum Preset : uint32_t {
    kPresetSize = 0,     // states and directory take about 1/400 of the payload, or less
    kPresetLatency = 1,  // about 1/30: 128 lanes on a payload of 12 kB
};

struct Shape {
    uint32_t lanes;    // N, a power of two
    uint32_t streams;  // S
};

constexpr uint64_t kLaneBits = 24;       // net cost of a lane, see above
constexpr uint64_t kDirectoryBits = 32;  // net cost of a stream's directory entry
// The estimate takes in every symbol of a pass of up to kCostAll elements; of a longer one every kCostStride-th block
// of kCostBlock elements, the first included, times kCostStride.
constexpr uint64_t kCostAll = 1 << 16;
constexpr uint64_t kCostBlock = 1024;
constexpr uint64_t kCostStride = 8;

constexpr uint32_t kAutoStreams = 64;  // choose_shape's limit on S

// N and S for a payload of about `bits` whose largest pass has `positions`. Integers only: equal latents must give
// equal bytes everywhere. Streams are added only when each can have 32 lanes. A non-zero argument is taken as it is.
FASTCODEC_INLINE constexpr Shape choose_shape(uint64_t bits, uint64_t positions, uint32_t preset, uint32_t lanes,
                                              uint32_t streams) {
    const uint64_t budget = preset == kPresetLatency ? bits / 30 : bits / 400;
    Shape shape{lanes, streams};
    if (lanes == 0) {
        shape.lanes = 1;
        const uint64_t affordable = budget / kLaneBits / (streams == 0 ? 1 : streams);
        while (shape.lanes < kMaxLanes && shape.lanes * 2 <= affordable) {
            shape.lanes *= 2;
        }
    }
    if (streams == 0) {
        uint64_t count =
            shape.lanes < kMaxLanes && lanes == 0 ? 1 : budget / (shape.lanes * kLaneBits + kDirectoryBits);
        count = count > kAutoStreams ? kAutoStreams : count;
        count = count > positions ? positions : count;
        shape.streams = count == 0 ? 1 : static_cast<uint32_t>(count);
    }
    return shape;
}

}  // namespace fastcodec::rans
