// Table sets, passes and payloads, good and bad, from a seed; and the CPU coder on them. For the drivers that compare
// twins: fuzz_rans.cpp and cuda_rans.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "rans/rans.h"

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
int fastcodec_rans_decoder_finish(const void*, uint32_t*, uint32_t*);
}

namespace {

struct Random {
    uint64_t state;
    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    uint32_t below(uint64_t n) { return n == 0 ? 0 : static_cast<uint32_t>(next() % n); }
};

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

struct PassData {
    const TableSet* tables;
    uint64_t positions;
    uint64_t channels;
    std::vector<uint8_t> indexes;
    std::vector<int16_t> symbols;
};

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
    PassData pass{&tables, positions, channels, {}, {}};
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

Pass view(const PassData& p) {
    return {p.symbols.data(), p.positions,      p.channels, 2,       0,
            p.indexes.data(), p.tables->handle, nullptr,    nullptr, nullptr};
}

std::vector<uint8_t> encode(const std::vector<Pass>& passes, uint32_t lanes, uint32_t streams, int isa,
                            uint32_t preset) {
    const uint32_t begin[2] = {0, static_cast<uint32_t>(passes.size())};
    uint32_t where[2];
    void* encoded = nullptr;
    if (fastcodec_rans_encode(1, begin, passes.data(), preset, lanes, streams, 1, isa, where, &encoded) != 0) {
        std::fprintf(stderr, "encoding failed\n");
        std::exit(2);
    }
    size_t size;
    const uint8_t* data = fastcodec_rans_encoded_payload(encoded, 0, &size);
    std::vector<uint8_t> payload(data, data + size);
    fastcodec_rans_encoded_free(encoded);
    return payload;
}

std::vector<uint8_t> encode(const std::vector<PassData>& passes, uint32_t lanes, uint32_t streams, int isa,
                            uint32_t preset = 0) {
    std::vector<Pass> views;
    for (const PassData& p : passes) {
        views.push_back(view(p));
    }
    return encode(views, lanes, streams, isa, preset);
}

// Everything that a decode lets one see.
struct Outcome {
    uint32_t start = 0;
    std::vector<uint32_t> passes;
    uint32_t end = 0;
    std::vector<std::vector<int16_t>> symbols;
    bool operator==(const Outcome&) const = default;
};

Outcome decode(const std::vector<uint8_t>& payload, const std::vector<PassData>& passes, uint32_t threads, int isa) {
    Outcome outcome;
    const uint8_t* data = payload.data();
    const size_t size = payload.size();
    uint32_t tile;
    void* decoder = nullptr;
    fastcodec_rans_decoder_new(1, &data, &size, isa, &outcome.start, &tile, &decoder);
    if (outcome.start != 0) {
        return outcome;
    }
    for (const PassData& p : passes) {
        // Exactly as large as the pass, and not zeros: writes past the end and symbols left unwritten show.
        std::vector<int16_t> symbols(p.symbols.size(), 0x5a5a);
        const uint8_t* indexes = p.indexes.data();
        int16_t* out = symbols.data();
        uint32_t error = 0;
        fastcodec_rans_decoder_decode(decoder, p.tables->handle, &indexes, &p.positions, &p.channels, &out, threads,
                                      &error, &tile);
        outcome.passes.push_back(error);
        outcome.symbols.push_back(symbols);
    }
    fastcodec_rans_decoder_finish(decoder, &outcome.end, &tile);
    fastcodec_rans_decoder_free(decoder);
    return outcome;
}

void put_varint(std::vector<uint8_t>& out, uint64_t value) {
    for (; value >= 0x80; value >>= 7) {
        out.push_back(static_cast<uint8_t>(value | 0x80));
    }
    out.push_back(static_cast<uint8_t>(value));
}

// A header whose numbers are likely to pass the first checks, before bytes that are likely to be states and words.
std::vector<uint8_t> forge(Random& random) {
    std::vector<uint8_t> out{static_cast<uint8_t>(random.below(random.below(8) == 0 ? 256 : 6))};
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

void mutate(Random& random, std::vector<uint8_t>& payload, const std::vector<uint8_t>& other) {
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

[[noreturn]] inline void fail() { std::_Exit(1); }  // at once: what was not freed by then is no leak
