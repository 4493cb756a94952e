// A table set's entries as rans.h's Tables wants them, from its frequencies: what the host sides of all twins begin
// with.
#pragma once

#include <vector>

#include "rans.h"

namespace fastcodec::rans {

struct Entries {
    std::vector<uint16_t> cumulative;
    std::vector<uint16_t> costs;
    std::vector<Table> tables;
};

// False when the set breaks a bound: a number of tables, of entries or of symbols out of range, frequencies that do not
// sum to 2^14.
inline bool build_entries(Entries& out, uint32_t count, const int16_t* firsts, const uint16_t* sizes,
                          const uint16_t* frequencies, size_t entries) {
    if (count == 0 || count > kMaxTables) {
        return false;
    }
    size_t total = 0;
    for (uint32_t i = 0; i < count; ++i) {
        const int32_t last_symbol = firsts[i] + static_cast<int32_t>(sizes[i]) - 2;
        if (sizes[i] == 0 || sizes[i] > kMaxEntries || last_symbol > INT16_MAX) {
            return false;
        }
        total += sizes[i];
    }
    if (total != entries) {
        return false;
    }
    out.tables.resize(count);
    out.cumulative.assign(entries + count + kWindow, 0);
    out.costs.assign(entries + count + kWindow, 0);
    uint32_t base = 0;
    for (uint32_t i = 0; i < count; ++i) {
        out.tables[i] = {base, firsts[i], sizes[i]};
        uint32_t start = 0;
        for (uint32_t k = 0; k < sizes[i]; ++k) {
            const uint32_t frequency = frequencies[base - i + k];
            if (frequency == 0 || frequency > kProbabilityTotal - start) {
                return false;
            }
            out.cumulative[base + k] = static_cast<uint16_t>(start);
            out.costs[base + k] = static_cast<uint16_t>(entry_cost(frequency, k + 1u == sizes[i]));
            start += frequency;
        }
        if (start != kProbabilityTotal) {
            return false;
        }
        out.cumulative[base + sizes[i]] = kProbabilityTotal;
        base += sizes[i] + 1u;
    }
    return true;
}

}  // namespace fastcodec::rans
