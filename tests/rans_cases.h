// Table sets, passes and payloads, good and bad, from a seed; and the CPU coder on them. For the drivers that compare
// twins: fuzz_rans.cpp and cuda_rans.cpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>

#include "driver.h"
#include "rans/rans.h"
#include "rans/status.h"

using fastcodec::rans::kProbabilityTotal;

// The library's plain C interface; see kernels/rans/cpu/.
struct Pass {
    const void* symbols;
    uint64_t positions;
    uint64_t channels;
    uint32_t symbol_bytes;
    uint32_t components;
    const uint8_t* indexes;
    const void* tables;
    const uint16_t* weights;
    const int16_t* means;
    const uint8_t* scales;
};

extern "C" {
uint32_t fastcodec_rans_isas();
const char* fastcodec_rans_error_text(uint32_t);
int fastcodec_rans_tables_new(uint32_t, int, const int16_t*, const uint16_t*, const uint16_t*, size_t, void**);
void fastcodec_rans_tables_free(void*);
int fastcodec_rans_encode(uint32_t, const uint32_t*, const Pass*, uint32_t, uint32_t, uint32_t, uint32_t, int,
                          uint32_t*, void**);
const uint8_t* fastcodec_rans_encoded_payload(const void*, uint32_t, size_t*);
void fastcodec_rans_encoded_free(void*);
int fastcodec_rans_decoder_new(uint32_t, const uint8_t* const*, const size_t*, int, uint32_t*, uint32_t*, void**);
void fastcodec_rans_decoder_free(void*);
int fastcodec_rans_decoder_decode(void*, const void*, const uint8_t* const*, const uint64_t*, const uint64_t*,
                                  int16_t* const*, uint32_t, uint32_t*, uint32_t*);
int fastcodec_rans_decoder_decode_mixtures(void*, const uint32_t*, const uint16_t* const*, const int16_t* const*,
                                           const uint8_t* const*, const uint64_t*, const uint64_t*, int16_t* const*,
                                           uint32_t, uint32_t*, uint32_t*);
int fastcodec_rans_decoder_finish(const void*, uint32_t*, uint32_t*);
}

namespace {

struct TableSet {
    void* handle = nullptr;
    bool skip = false;
    std::vector<int16_t> firsts;
    std::vector<uint16_t> sizes;
    std::vector<uint16_t> frequencies;
};

// Frequencies that halve from entry to entry, by a random factor, in random order of the ends; sum 2^14.
std::vector<uint16_t> random_table(Random& random, uint32_t size) {
    std::vector<uint32_t> f(size, 1);
    uint32_t left = kProbabilityTotal - size;
    const uint32_t centre = random.below(size);
    const uint32_t share = 2 + random.below(6);
    for (uint32_t step = 0; step < size; ++step) {
        const uint32_t at = (centre + step) % size;
        const uint32_t taken = left / share;
        f[at] += taken;
        left -= taken;
    }
    f[centre] += left;
    return {f.begin(), f.end()};
}

TableSet make_tables(Random& random, uint32_t count, bool skip, uint32_t largest) {
    TableSet set;
    set.skip = skip;
    std::vector<uint16_t> all;
    for (uint32_t i = 0; i < count; ++i) {
        const uint32_t size = skip && i == 0 ? 1 : 1 + random.below(largest);
        set.sizes.push_back(static_cast<uint16_t>(size));
        set.firsts.push_back(skip && i == 0 ? 0 : static_cast<int16_t>(-static_cast<int>(random.below(size + 1))));
        for (const uint16_t f : random_table(random, size)) {
            all.push_back(f);
        }
    }
    if (fastcodec_rans_tables_new(count, skip, set.firsts.data(), set.sizes.data(), all.data(), all.size(),
                                  &set.handle)) {
        std::fprintf(stderr, "tables refused\n");
        std::exit(2);
    }
    set.frequencies = std::move(all);
    return set;
}

// Sets of many sizes, from a table with few entries to one with too many for a GPU's shared memory.
std::vector<TableSet> make_sets(Random& random) {
    std::vector<TableSet> sets;
    sets.push_back(make_tables(random, 64, true, 40));
    sets.push_back(make_tables(random, 20, false, 3));
    sets.push_back(make_tables(random, 256, true, 12));
    sets.push_back(make_tables(random, 9, false, 16384));
    return sets;
}

// A pass of either kind; components 0 is an indexed one, and a pass of mixtures has no tables. Every array has exactly
// the pass's size, so that reads past its end show.
struct PassData {
    const TableSet* tables = nullptr;
    uint64_t positions = 0;
    uint64_t channels = 0;
    std::vector<uint8_t> indexes;
    std::vector<int16_t> symbols;
    uint32_t components = 0;
    std::vector<uint16_t> weights;
    std::vector<int16_t> means;
    std::vector<uint8_t> scales;
};

using Tile = std::vector<PassData>;
using Payload = std::vector<uint8_t>;

// A symbol as likely as its table says, but never the sentinel.
int likely_symbol(Random& random, const TableSet& tables, uint32_t index) {
    const uint16_t* frequencies = tables.frequencies.data();
    for (uint32_t i = 0; i < index; ++i) {
        frequencies += tables.sizes[i];
    }
    uint32_t slot = random.below(kProbabilityTotal);
    int entry = 0;
    while (entry + 2 < tables.sizes[index] && slot >= frequencies[entry]) {
        slot -= frequencies[entry++];
    }
    return tables.firsts[index] + entry;
}

// Of `escapes` percent escapes, with the first `used` tables in random order; symbols are as likely as their tables
// say, or all equally.
PassData make_pass(Random& random, const TableSet& tables, uint64_t positions, uint64_t channels, uint32_t escapes,
                   uint32_t used, bool likely = false) {
    PassData pass;
    pass.tables = &tables;
    pass.positions = positions;
    pass.channels = channels;
    for (uint64_t i = 0; i < pass.positions * pass.channels; ++i) {
        const uint32_t index = random.below(used);
        int symbol = likely ? likely_symbol(random, tables, index)
                            : tables.firsts[index] + static_cast<int>(random.below(tables.sizes[index]));
        if (random.below(100) < escapes) {
            symbol = static_cast<int16_t>(random.next());
        }
        pass.indexes.push_back(static_cast<uint8_t>(index));
        pass.symbols.push_back(tables.skip && index == 0 ? 0 : static_cast<int16_t>(symbol));
    }
    return pass;
}

PassData make_pass(Random& random, const TableSet& tables) {
    const uint64_t positions = random.below(40);
    const uint64_t channels = 1 + random.below(24);
    const uint32_t escapes = random.below(3) == 0 ? random.below(100) : 0;
    return make_pass(random, tables, positions, channels, escapes, 1 + random.below(tables.sizes.size()));
}

// A pass of mixtures with any parameters, the most extreme included.
PassData make_mixture(Random& random, uint32_t components, uint64_t positions, uint64_t channels) {
    PassData p;
    p.positions = positions;
    p.channels = channels;
    p.components = components;
    const size_t n = positions * channels;
    p.weights.resize(components * n);
    p.means.resize(components * n);
    p.scales.resize(components * n);
    p.symbols.resize(n);
    const uint32_t wide = random.below(4);
    const uint32_t escapes = random.below(3) == 0 ? random.below(100) : 0;
    for (size_t i = 0; i < n; ++i) {
        uint32_t left = 4096;
        for (uint32_t k = 0; k < components; ++k) {
            const bool last = k + 1 == components;
            const uint32_t weight = last ? left : random.below(3) == 0 ? 0 : random.below(left + 1);
            left -= weight;
            p.weights[k * n + i] = static_cast<uint16_t>(weight);
            const int extreme = random.below(2) != 0 ? INT16_MAX : INT16_MIN;
            p.means[k * n + i] = static_cast<int16_t>(wide == 3   ? extreme
                                                      : wide == 2 ? static_cast<int16_t>(random.next())
                                                                  : static_cast<int>(random.below(1280)) - 640);
            p.scales[k * n + i] = static_cast<uint8_t>(wide == 0 ? random.below(110) : random.next());
        }
        const int near = (p.means[i] >> 6) + static_cast<int>(random.below(9)) - 4;
        p.symbols[i] = static_cast<int16_t>(random.below(100) < escapes ? random.next() : near);
    }
    return p;
}

PassData make_mixture(Random& random, uint32_t components) {
    const uint64_t positions = random.below(40);
    return make_mixture(random, components, positions, 1 + random.below(24));
}

Payload encode(const Tile& passes, uint32_t lanes, uint32_t streams, int isa, uint32_t preset = 0) {
    std::vector<Pass> views;
    for (const PassData& p : passes) {
        views.push_back({p.symbols.data(), p.positions, p.channels, 2, p.components, p.indexes.data(),
                         p.tables != nullptr ? p.tables->handle : nullptr, p.weights.data(), p.means.data(),
                         p.scales.data()});
    }
    const uint32_t begin[2] = {0, static_cast<uint32_t>(passes.size())};
    uint32_t where[2];
    void* encoded = nullptr;
    if (fastcodec_rans_encode(1, begin, views.data(), preset, lanes, streams, 1, isa, where, &encoded) != 0) {
        std::fprintf(stderr, "encoding failed\n");
        std::exit(2);
    }
    size_t size;
    const uint8_t* data = fastcodec_rans_encoded_payload(encoded, 0, &size);
    Payload payload(data, data + size);
    fastcodec_rans_encoded_free(encoded);
    return payload;
}

// Everything that a decode lets one see. errors: of each pass, 256 and more for a status that the pass was refused
// with.
struct Outcome {
    uint32_t start = 0;
    std::vector<uint32_t> errors;
    uint32_t end = 0;
    uint32_t tile = 0;
    std::vector<std::vector<std::vector<int16_t>>> symbols;  // of each pass and tile
    bool operator==(const Outcome&) const = default;
};

// Passes of equal number are of one kind, indexed by one set or mixtures. Decoding goes on after an error.
Outcome decode(const std::vector<Payload>& payloads, const std::vector<Tile>& tiles, uint32_t threads, int isa) {
    Outcome outcome;
    std::vector<const uint8_t*> data;
    std::vector<size_t> sizes;
    for (const Payload& payload : payloads) {
        data.push_back(payload.data());
        sizes.push_back(payload.size());
    }
    void* decoder = nullptr;
    fastcodec_rans_decoder_new(static_cast<uint32_t>(payloads.size()), data.data(), sizes.data(), isa, &outcome.start,
                               &outcome.tile, &decoder);
    if (outcome.start != 0) {
        return outcome;
    }
    for (size_t p = 0; p < tiles[0].size(); ++p) {
        std::vector<std::vector<int16_t>> symbols;
        std::vector<uint32_t> components;
        std::vector<uint64_t> positions, channels;
        std::vector<const uint8_t*> indexes, scales;
        std::vector<const uint16_t*> weights;
        std::vector<const int16_t*> means;
        std::vector<int16_t*> out;
        for (const Tile& tile : tiles) {
            const PassData& pass = tile[p];
            // Exactly as large as the pass, and not zeros: writes past the end and symbols left unwritten show.
            symbols.emplace_back(pass.symbols.size(), int16_t{0x5a5a});
            out.push_back(symbols.back().data());  // which stays where it is when `symbols` grows
            positions.push_back(pass.positions);
            channels.push_back(pass.channels);
            components.push_back(pass.components);
            indexes.push_back(pass.indexes.data());
            weights.push_back(pass.weights.data());
            means.push_back(pass.means.data());
            scales.push_back(pass.scales.data());
        }
        uint32_t error = 0;
        uint32_t tile;
        const TableSet* tables = tiles[0][p].tables;
        const int status =
            tables != nullptr ? fastcodec_rans_decoder_decode(decoder, tables->handle, indexes.data(), positions.data(),
                                                              channels.data(), out.data(), threads, &error, &tile)
                              : fastcodec_rans_decoder_decode_mixtures(
                                    decoder, components.data(), weights.data(), means.data(), scales.data(),
                                    positions.data(), channels.data(), out.data(), threads, &error, &tile);
        outcome.errors.push_back(error != 0 || status == 0 ? error : 0x100u + static_cast<uint32_t>(status));
        outcome.symbols.push_back(std::move(symbols));
    }
    fastcodec_rans_decoder_finish(decoder, &outcome.end, &outcome.tile);
    fastcodec_rans_decoder_free(decoder);
    return outcome;
}

void put_varint(Payload& out, uint64_t value) {
    for (; value >= 0x80; value >>= 7) {
        out.push_back(static_cast<uint8_t>(value | 0x80));
    }
    out.push_back(static_cast<uint8_t>(value));
}

// A header whose numbers are likely to pass the first checks, before bytes that are likely to be states and words.
Payload forge(Random& random) {
    Payload out{static_cast<uint8_t>(random.below(random.below(8) == 0 ? 256 : 6))};
    const uint32_t streams = random.below(20) == 0 ? random.below(70000) : 1 + random.below(4);
    put_varint(out, streams);
    const uint32_t lanes = 1u << (out[0] & 7);
    for (uint32_t s = 0; s < 2 * streams && out.size() < 4000; ++s) {
        put_varint(out, random.below(30) == 0 ? random.next() >> random.below(40) : random.below(12));
    }
    const uint64_t states = uint64_t{streams} * lanes;
    for (uint64_t i = 0; i < states && out.size() < 8000; ++i) {
        const uint32_t state = static_cast<uint32_t>(random.next()) | (random.below(300) == 0 ? 0 : 0x10000);
        for (int shift = 0; shift < 32; shift += 8) {
            out.push_back(static_cast<uint8_t>(state >> shift));
        }
    }
    for (uint32_t bytes = random.below(600); bytes > 0; --bytes) {
        out.push_back(static_cast<uint8_t>(random.next()));
    }
    return out;
}

void mutate(Random& random, Payload& payload, const Payload& other) {
    const auto at = [&](size_t n) { return random.below(n); };
    switch (random.below(9)) {
        case 0:
            for (uint32_t n = 1 + random.below(4); n > 0 && !payload.empty(); --n) {
                payload[at(payload.size())] ^= static_cast<uint8_t>(1u << random.below(8));
            }
            break;
        case 1: payload.resize(at(payload.size() + 1)); break;
        case 2: payload.resize(payload.size() - std::min<size_t>(payload.size(), 1 + random.below(8))); break;
        case 3:
            for (uint32_t n = 1 + random.below(40); n > 0; --n) {
                payload.push_back(static_cast<uint8_t>(random.below(2) ? 0 : random.next()));
            }
            break;
        case 4:
            if (!payload.empty()) {
                payload[at(payload.size())] = static_cast<uint8_t>(random.next());
            }
            break;
        case 5:  // the header's bytes
            if (!payload.empty()) {
                payload[at(std::min<size_t>(payload.size(), 12))] = static_cast<uint8_t>(random.next());
            }
            break;
        case 6:
            if (!payload.empty()) {
                payload.erase(payload.begin() + at(payload.size()));
            }
            break;
        case 7: payload.insert(payload.begin() + at(payload.size() + 1), static_cast<uint8_t>(random.next())); break;
        default:  // another payload's tail
            if (!other.empty() && !payload.empty()) {
                const size_t from = at(std::min(payload.size(), other.size()));
                payload.resize(from);
                payload.insert(payload.end(), other.begin() + from, other.end());
            }
    }
}

}  // namespace
