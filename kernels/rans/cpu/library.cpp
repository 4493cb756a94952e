// The CPU library's C interface but for coding itself (encoder.cpp, decoder.cpp): constants, instruction sets,
// what errors mean, and distributions. The loops are in the twins: scalar.cpp, avx2.cpp and avx512.cpp.

#include <algorithm>
#include <cstring>
#include <memory>

#include "library.h"

using namespace fastcodec::rans;

namespace {

// The buckets of one table, whose cumulative values begin at `edges`.
void fill_buckets(const uint16_t* edges, Table table, Bucket* buckets, uint32_t* positions) {
    constexpr uint32_t kSlots = 1u << (kProbabilityBits - kBucketBits);
    uint32_t entry = 0;
    for (uint32_t b = 0; b < 1u << kBucketBits; ++b) {
        const uint32_t begin = b * kSlots;
        const uint32_t end = begin + kSlots;
        while (edges[entry + 1] <= begin) {
            ++entry;
        }
        positions[b] = table.base + entry;
        uint32_t best = 0;
        for (uint32_t k = entry; k < table.size && edges[k] < end; ++k) {
            const uint32_t last = std::min(k + 2, uint32_t{table.size});
            const uint32_t covered = std::min(uint32_t{edges[last]}, end) - std::max(uint32_t{edges[k]}, begin);
            if (covered > best) {
                best = covered;
                buckets[b] = {edges[k], edges[k + 1], edges[last],
                              static_cast<int16_t>(table.first + static_cast<int32_t>(k))};
            }
        }
    }
}

bool build_tables(CpuTables& set, uint32_t count, bool skip, const int16_t* firsts, const uint16_t* sizes,
                  const uint16_t* frequencies, size_t entries) {
    if (!build_entries(set.entries, count, firsts, sizes, frequencies, entries)) {
        return false;
    }
    const Entries& e = set.entries;
    set.buckets.resize(size_t{count} << kBucketBits);
    set.positions.resize(size_t{count} << kBucketBits);
    for (uint32_t i = 0; i < count; ++i) {
        const size_t first = size_t{i} << kBucketBits;
        fill_buckets(e.cumulative.data() + e.tables[i].base, e.tables[i], set.buckets.data() + first,
                     set.positions.data() + first);
    }
    set.view = {set.buckets.data(),  set.positions.data(),
                e.cumulative.data(), e.costs.data(),
                e.tables.data(),     count,
                kBucketBits,         skip};
    return true;
}

}  // namespace

// The constants of the format, for readers in other languages: probability bits, lower bound of a state, most lanes,
// most streams, most tables, bits of an escape.
FASTCODEC_API void fastcodec_rans_constants(uint32_t values[6]) {
    const uint32_t constants[6] = {kProbabilityBits, kStateLow, kMaxLanes, kMaxStreams, kMaxTables, kEscapeBits};
    std::memcpy(values, constants, sizeof(constants));
}

// Bit i: the instruction set numbered i (Isa) can run here.
FASTCODEC_API uint32_t fastcodec_rans_isas() {
    uint32_t mask = 1u << kIsaScalar;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
        mask |= 1u << kIsaAvx2;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vbmi2")) {
            mask |= 1u << kIsaAvx512;
        }
    }
#endif
    return mask;
}

// What an Error means, in words that end the sentence "corrupt tile: ...".
FASTCODEC_API const char* fastcodec_rans_error_text(uint32_t error) {
    switch (error) {
        case kOk: return "no error";
        case kTruncated: return "a section reaches past the payload's end";
        case kReservedBits: return "reserved bits of the first byte are set";
        case kBadStreamCount: return "the number of streams is out of range";
        case kBadVarint: return "a number is not in its shortest form or too large";
        case kOddLength: return "the payload ends within a word";
        case kBadState: return "a coder state is below its lower bound";
        case kWordsExhausted: return "a stream ran out of words";
        case kEscapesExhausted: return "a stream ran out of escapes";
        case kFinalState: return "a coder state did not return to its origin";
        case kWordsLeft: return "words are left over";
        case kEscapesLeft: return "escapes are left over";
        default: return "unknown error";
    }
}

// A set of `count` tables: table i codes the symbols firsts[i] .. firsts[i] + sizes[i] - 2 and, by its last entry, all
// others. frequencies [entries] holds all tables, one after the other; each must sum to 2^14 with every entry at
// least 1.
FASTCODEC_API int fastcodec_rans_tables_new(uint32_t count, int skip, const int16_t* firsts, const uint16_t* sizes,
                                            const uint16_t* frequencies, size_t entries, void** tables) {
    return guarded([&] {
        auto set = std::make_unique<CpuTables>();
        if (!build_tables(*set, count, skip != 0, firsts, sizes, frequencies, entries)) {
            return kStatusBadTables;
        }
        *tables = set.release();
        return kStatusOk;
    });
}

FASTCODEC_API void fastcodec_rans_tables_free(void* tables) { delete static_cast<CpuTables*>(tables); }

// The constants of mixture.h, for readers in other languages: components at most, bits of a weight, of a mean's
// fraction, scale steps an octave, the scale of sigma = 1.
FASTCODEC_API void fastcodec_rans_mixture_constants(uint32_t values[5]) {
    const uint32_t constants[5] = {kMixtureComponents, kMixtureWeightBits, kMixtureMeanBits, kMixtureScaleSteps,
                                   kMixtureScaleOrigin};
    std::memcpy(values, constants, sizeof(constants));
}

// The distribution of one element: its first symbol, and by `frequencies` [capacity] its `entries` frequencies, the
// sentinel's last. Nothing is written beyond the capacity.
FASTCODEC_API void fastcodec_rans_mixture_frequencies(const uint16_t* weights, const int16_t* means,
                                                      const uint8_t* scales, uint32_t components, int32_t* first,
                                                      uint32_t* entries, uint16_t* frequencies, uint32_t capacity) {
    static constexpr MixtureTableValues values = make_mixture_tables();
    const MixtureTables tables{values.phi, values.scales};
    const MixtureElement<kMixtureComponents> e =
        mixture_element(tables, load_mixture<kMixtureComponents>(weights, means, scales, components, 1, 0));
    *first = e.first;
    *entries = e.size + 1;
    for (uint32_t j = 0; j < std::min(*entries, capacity); ++j) {
        frequencies[j] = static_cast<uint16_t>(mixture_code(tables, e, e.first + static_cast<int32_t>(j)).frequency);
    }
}
