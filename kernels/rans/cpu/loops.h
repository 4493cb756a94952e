// What the CPU twins share: the streams as they see them and the loops that each one implements.
//
// The twins are compiled with different instruction sets, so their sources use raw pointers only: a standard library
// template instantiated in one of them could be the copy that the linker keeps for all.
#pragma once

#include "../mixture.h"

namespace fastcodec::rans {

// Buffers that the loops read or write may be overrun by this many bytes, never used beyond their end.
constexpr size_t kSlack = 64;

// Bits of the slot that choose a bucket: more make misses rarer and the buckets' cache lines colder. All sets of the
// CPU library have so many, so its loops shift by a constant.
constexpr uint32_t kBucketBits = 9;

inline Tables with_constant_bits(Tables tables) {
    tables.bucket_bits = kBucketBits;
    return tables;
}

// A stream while it is decoded. Its sections lie in a payload, at any alignment, with kSlack readable bytes after it.
struct DecodeStream {
    uint32_t* states;  // [lanes]
    const uint8_t* words;
    const uint8_t* words_end;
    const uint8_t* escapes;
    const uint8_t* escapes_end;
};

// A stream while it is encoded: both sections grow downwards, and kSlack bytes below each cursor may be overwritten.
struct EncodeStream {
    uint32_t states[kMaxLanes];
    uint16_t* words;
    uint16_t* escapes;
};

// The parameters of a pass of mixtures: component k of element i is at [k * plane + i].
struct Mixtures {
    const uint16_t* weights;
    const int16_t* means;
    const uint8_t* scales;
    uint32_t components;
    size_t plane;
};

inline Mixtures from_element(const Mixtures& mixtures, size_t at) {
    return {mixtures.weights + at, mixtures.means + at, mixtures.scales + at, mixtures.components, mixtures.plane};
}

// How a symbol is coded, in one word: everything that the serial part of encoding needs. An entry has 2^14 slots at
// most, of which the first is below 2^14.
constexpr int kCodeFrequency = kProbabilityBits;  // where the frequency begins, in 15 bits
constexpr uint32_t kCodeEscape = 1u << 31;
FASTCODEC_INLINE uint32_t pack_code(uint32_t start, uint32_t frequency, bool escape) {
    return start | frequency << kCodeFrequency | (escape ? kCodeEscape : 0);
}
FASTCODEC_INLINE uint32_t code_start(uint32_t code) { return code & (kProbabilityTotal - 1); }
FASTCODEC_INLINE uint32_t code_frequency(uint32_t code) { return code >> kCodeFrequency & (2 * kProbabilityTotal - 1); }

FASTCODEC_INLINE uint32_t code_of(const Tables& tables, uint32_t index, int32_t symbol) {
    const uint32_t entry = entry_of(tables, index, symbol);
    const uint32_t start = tables.cumulative[entry];
    const uint32_t end = tables.cumulative[entry + 1];
    return pack_code(start, end - start, end == kProbabilityTotal);
}

FASTCODEC_INLINE uint32_t load_word(const uint8_t* bytes) { return bytes[0] | static_cast<uint32_t>(bytes[1]) << 8; }

struct Kernels {
    const char* name;
    uint32_t least_lanes;          // with fewer lanes,
    const Kernels& (*narrower)();  // these have the faster loops (and give the same)

    // Passes of indexes. Decodes n coded symbols of one pass. On an error the failing step's symbols and all later ones
    // are 0.
    Error (*decode)(DecodeStream& stream, uint32_t lanes, const Tables& tables, const uint8_t* indexes, size_t n,
                    int16_t* symbols);
    // Encodes n coded symbols of one pass, of either kind, last to first.
    void (*push)(EncodeStream& stream, uint32_t lanes, const uint32_t* codes, const int16_t* symbols, size_t n);

    // Packs the non-zero indexes, in order. Returns how many there are; `packed` has room for n and kSlack bytes.
    size_t (*compact_indexes)(const uint8_t* indexes, size_t n, uint8_t* packed);
    // Packs the symbols whose index is not 0; sets `lost` when one whose index is 0 is not 0 itself.
    size_t (*compact_symbols)(const uint8_t* indexes, const int16_t* symbols, size_t n, int16_t* packed, bool& lost);
    // The inverse: spreads packed symbols to where the index is not 0, and writes 0 elsewhere.
    void (*expand_symbols)(const uint8_t* indexes, size_t n, const int16_t* packed, int16_t* symbols);

    // Passes of mixtures, for every number of lanes. Decodes the next n elements, a stream's part of a pass; on an
    // error as `decode`.
    Error (*decode_mixtures)(DecodeStream& stream, uint32_t lanes, const Mixtures& mixtures, size_t n,
                             int16_t* symbols);
    // The codes of n symbols.
    void (*code_mixtures)(const Mixtures& mixtures, const int16_t* symbols, size_t n, uint32_t* codes);
};

const Kernels& scalar_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

// The kernels whose loops suit this many lanes.
inline const Kernels& kernels_for(const Kernels& kernels, uint32_t lanes) {
    const Kernels* k = &kernels;
    while (lanes < k->least_lanes) {
        k = &k->narrower();
    }
    return *k;
}

}  // namespace fastcodec::rans
