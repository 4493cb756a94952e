// Table sets as the kernels read them: one blob each, of the sections that layout.h names.

#include <algorithm>
#include <cstring>
#include <vector>

#include "../entries.h"
#include "../status.h"
#include "layout.h"

using namespace fastcodec::rans;
using namespace fastcodec::rans::cuda;

namespace {

// One table's buckets of 2^bits, and for each the position of its first entry. Returns how many slots miss theirs, the
// sentinel's aside.
uint32_t fill_slots(const uint16_t* edges, Table table, uint32_t bits, Slots* buckets, uint32_t* positions) {
    const uint32_t width = 1u << (kProbabilityBits - bits);
    const uint32_t symbols = table.size - 1u;  // entries but for the sentinel
    uint32_t missed = 0;
    uint32_t entry = 0;
    for (uint32_t b = 0; b < 1u << bits; ++b) {
        const uint32_t begin = b * width;
        const uint32_t end = begin + width;
        while (edges[entry + 1] <= begin) {
            ++entry;
        }
        // With no symbol of its own a bucket is the sentinel's, of no slots: its first entry is the sentinel.
        Slots best{edges[symbols], 0, 0, 0};
        uint32_t best_entry = symbols;
        uint32_t most = 0;
        for (uint32_t k = entry; k < symbols && edges[k] < end; ++k) {
            const uint32_t last = std::min(k + 2, symbols);
            const uint32_t covered = std::min(uint32_t{edges[last]}, end) - std::max(uint32_t{edges[k]}, begin);
            if (covered > most) {
                most = covered;
                best_entry = k;
                best = {edges[k], static_cast<uint16_t>(edges[k + 1] - edges[k]),
                        static_cast<uint16_t>(edges[last] - edges[k + 1]),
                        static_cast<int16_t>(table.first + static_cast<int32_t>(k))};
            }
        }
        const uint32_t coded = std::min(uint32_t{edges[symbols]}, end);
        missed += (coded > begin ? coded - begin : 0) - most;
        if (buckets != nullptr) {
            buckets[b] = best;
            positions[b] = table.base + best_entry;
        }
    }
    return missed;
}

// How many bits each table's buckets take: all tables miss as rarely as the memory for buckets allows.
std::vector<uint32_t> choose_bucket_bits(const Entries& e) {
    std::vector<uint32_t> missed(e.tables.size() * (kMaxBucketBits + 1));
    for (size_t i = 0; i < e.tables.size(); ++i) {
        for (uint32_t bits = kMinBucketBits; bits <= kMaxBucketBits; ++bits) {
            missed[i * (kMaxBucketBits + 1) + bits] =
                fill_slots(e.cumulative.data() + e.tables[i].base, e.tables[i], bits, nullptr, nullptr);
        }
    }
    std::vector<uint32_t> result(e.tables.size());
    for (uint32_t tolerated = 0;; tolerated = tolerated * 5 / 4 + 1) {
        size_t buckets = 1u << kMinBucketBits;  // the one of indexes that name no table
        for (size_t i = 0; i < e.tables.size(); ++i) {
            uint32_t bits = kMinBucketBits;
            while (bits < kMaxBucketBits && missed[i * (kMaxBucketBits + 1) + bits] > tolerated) {
                ++bits;
            }
            result[i] = bits;
            buckets += size_t{1} << bits;
        }
        if (buckets * sizeof(Slots) <= kBucketBytes) {
            return result;
        }
    }
}

}  // namespace

// A table set's blob, `layout->end` bytes of it; without one, only its layout. Arguments as fastcodec_rans_tables_new.
FASTCODEC_API int fastcodec_rans_cuda_tables(uint32_t count, int skip, const int16_t* firsts, const uint16_t* sizes,
                                             const uint16_t* frequencies, size_t entries, DeviceTables* layout,
                                             uint8_t* blob) {
    return guarded([&]() -> int {
        Entries e;
        if (!build_entries(e, count, firsts, sizes, frequencies, entries)) {
            return kStatusBadTables;
        }
        const std::vector<uint32_t> bits = choose_bucket_bits(e);
        size_t buckets = size_t{1} << kMinBucketBits;
        for (const uint32_t b : bits) {
            buckets += size_t{1} << b;
        }
        const size_t locators_bytes = kLocators * sizeof(uint32_t);
        const size_t positions_at = locators_bytes + aligned(buckets * sizeof(Slots));
        const size_t cumulative_at = positions_at + aligned(buckets * sizeof(uint32_t));
        const size_t tables_at = cumulative_at + aligned(e.cumulative.size() * sizeof(uint16_t));
        const size_t costs_at = tables_at + aligned(count * sizeof(Table));
        const size_t end = costs_at + aligned(e.costs.size() * sizeof(uint16_t));
        *layout = {nullptr,
                   static_cast<uint32_t>(positions_at),
                   static_cast<uint32_t>(cumulative_at),
                   static_cast<uint32_t>(tables_at),
                   static_cast<uint32_t>(costs_at),
                   static_cast<uint32_t>(end),
                   count,
                   skip != 0,
                   0};
        if (blob == nullptr) {
            return kStatusOk;
        }
        std::memset(blob, 0, end);
        uint32_t* const locators = reinterpret_cast<uint32_t*>(blob);
        Slots* const slots = reinterpret_cast<Slots*>(blob + locators_bytes);
        uint32_t* const positions = reinterpret_cast<uint32_t*>(blob + positions_at);
        size_t bucket = size_t{1} << kMinBucketBits;
        std::fill(positions, positions + bucket, kNoTable);
        for (uint32_t i = 0; i < kLocators; ++i) {
            if (i >= count) {
                locators[i] = static_cast<uint32_t>(locators_bytes) | kProbabilityBits;
                continue;
            }
            locators[i] = static_cast<uint32_t>(locators_bytes + bucket * sizeof(Slots)) | (kProbabilityBits - bits[i]);
            fill_slots(e.cumulative.data() + e.tables[i].base, e.tables[i], bits[i], slots + bucket,
                       positions + bucket);
            bucket += size_t{1} << bits[i];
        }
        std::memcpy(blob + tables_at, e.tables.data(), count * sizeof(Table));
        std::memcpy(blob + cumulative_at, e.cumulative.data(), e.cumulative.size() * sizeof(uint16_t));
        std::memcpy(blob + costs_at, e.costs.data(), e.costs.size() * sizeof(uint16_t));
        return kStatusOk;
    });
}

// The blob for passes of mixtures, likewise.
FASTCODEC_API void fastcodec_rans_cuda_mixture_tables(DeviceTables* layout, uint8_t* blob) {
    static constexpr MixtureTableValues values = make_mixture_tables();
    *layout = {};
    layout->end = kMixtureTableBytes;
    if (blob != nullptr) {
        std::memset(blob, 0, kMixtureTableBytes);
        std::memcpy(blob, values.phi, sizeof(values.phi));
        std::memcpy(blob + kMixturePhiEntries * sizeof(uint32_t), values.scales, sizeof(values.scales));
    }
}
