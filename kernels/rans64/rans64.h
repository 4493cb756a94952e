// The rule of CompressAI's entropy coder, stated once: one 64-bit range-ANS state per stream, one table per symbol.
//
// fastcodec's own format is kernels/rans. This one is for files that exist already and for readers that know only them:
// what it writes is what `compressai.ans` writes, byte for byte.
//
// The format
// ----------
// A stream is a sequence of 32-bit little-endian words without a header: the final state, low word first, then the
// words in the order in which the decoder reads them. Symbols are encoded last to first, from state L = 2^31.
//
//  * A table is a CDF of K + 1 integers, cdf[0] = 0 < cdf[1] < ... < cdf[K] <= 2^16, with an offset. Entry i < K - 1
//    codes the symbol offset + i; the last entry, K - 1, is the escape.
//  * A push of an entry of frequency f: x >= f 2^47 writes the low word of x and keeps the high one; then
//    x = (x / f) 2^16 + x mod f + start. With L <= x < 2^63 before, x < f 2^47 at the division, and x stays in
//    [L, 2^63) after.
//  * An escape codes v = symbol - offset, counted from the entries on its side: raw = 2 (v - (K - 1)) for v >= K - 1,
//    raw = -2 v - 1 for v < 0. In decoding order: the escape entry, the number of nibbles of raw, then its nibbles,
//    low first; each as 4 bits of probability 2^-4. A count of 15 would be followed by another, but 32 bits are eight.
//
// CompressAI reads past the end of a short stream, and divides by 0 or loops without end on some input. None of this
// can happen here: the decoder checks every read, and an invariant holds for any bytes. With L <= x < 2^63 and
// f >= 1, a pop gives 2^15 <= x' < 2^63, so that one word always brings it back to L; likewise 4 bits leave 2^27.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fastcodec::rans64 {

static_assert(std::endian::native == std::endian::little, "words are read and written as they lie in memory");

constexpr int kProbabilityBits = 16;
constexpr uint32_t kProbabilityTotal = 1u << kProbabilityBits;
constexpr uint64_t kStateLow = 1ull << 31;  // L; states lie in [L, 2^63)
constexpr uint64_t kStateEnd = 1ull << 63;
constexpr int kWordBits = 32;
constexpr int kPushShift = 63 - kProbabilityBits;  // a push writes a word first when x >= frequency << kPushShift
constexpr int kBypassBits = 4;
constexpr uint32_t kBypassMask = (1u << kBypassBits) - 1;
constexpr int kMaxNibbles = 32 / kBypassBits;
// CompressAI's decoder holds raw in a signed integer of 32 bits.
constexpr uint32_t kMaxRaw = (1u << 31) - 1;
// Of one symbol: its entry, the count and the nibbles write at most one word each.
constexpr size_t kMaxWordsPerSymbol = 2 + kMaxNibbles;

enum Status : int {
    kOk = 0,
    kNoMemory = 1,
    kBadTable = 2,       // a CDF breaks the rules above
    kIndexRange = 3,     // an index names no table
    kSymbolRange = 4,    // a symbol so far outside its table that raw would exceed kMaxRaw
    kNoStart = 5,        // shorter than a state, not of whole words, or a state that no encoder leaves
    kExhausted = 6,      // the stream has no word left where one must be read
    kNoSymbol = 7,       // beyond the end of a CDF that ends below 2^16
    kBadEscape = 8,      // more nibbles than a symbol has, or a symbol that is none
    kNotAtEnd = 9,       // the state or the cursor are not where the encoder began
    kFailedBefore = 10,  // an earlier call met an error
    kInternal = 11,
};

// A table as the loops see it. The first entry whose end may lie above a slot is buckets[slot >> bucket_shift]: a few
// steps from there find it.
struct Table {
    const uint32_t* cdf;  // [entries + 1]
    const uint16_t* buckets;
    uint32_t entries;
    int32_t offset;
    uint32_t bucket_shift;
};

struct Tables {
    const Table* tables;
    uint32_t count;
};

// A stream while it is decoded. The data may lie at any alignment.
struct Stream {
    const uint8_t* data;
    uint64_t words;
    uint64_t cursor;  // the next word to read
    uint64_t state;   // 0 after an error
};

// Symbols of one stream, in coding order, each with the index of its table.
struct Segment {
    int32_t* symbols;
    const int32_t* indexes;
    uint64_t count;
    const Tables* tables;
};

// Opens a stream of `size` bytes.
inline Status start(Stream& stream, const uint8_t* data, uint64_t size) {
    stream = {data, size / 4, 2, 0};
    if (size < 8 || size % 4 != 0) {
        return kNoStart;
    }
    std::memcpy(&stream.state, data, 8);
    if (stream.state < kStateLow || stream.state >= kStateEnd) {
        stream.state = 0;
        return kNoStart;
    }
    return kOk;
}

// Whether all of the stream was decoded.
inline Status finish(const Stream& stream) {
    if (stream.state == 0) {
        return kFailedBefore;
    }
    return stream.state == kStateLow && stream.cursor == stream.words ? kOk : kNotAtEnd;
}

// The raw value of an escape for v outside [0, last), or more than kMaxRaw.
inline uint64_t escape_raw(int64_t v, int64_t last) {
    return v < 0 ? 2 * static_cast<uint64_t>(-v) - 1 : 2 * static_cast<uint64_t>(v - last);
}

inline int nibbles(uint32_t raw) { return (static_cast<int>(std::bit_width(raw)) + kBypassBits - 1) / kBypassBits; }

}  // namespace fastcodec::rans64
