// Tiles of indexed passes and passes of mixtures, and the CPU coder on them. For the drivers that compare twins:
// fuzz_mixture.cpp and cuda_mixture.cpp.
#pragma once

#include "rans/status.h"
#include "rans_cases.h"

extern "C" {
int fastcodec_rans_decoder_decode_mixtures(void*, const uint32_t*, const uint16_t* const*, const int16_t* const*,
                                           const uint8_t* const*, const uint64_t*, const uint64_t*, int16_t* const*,
                                           uint32_t, uint32_t*, uint32_t*);
}

namespace {

// A pass of either kind; components 0 is an indexed one. Every array has exactly the pass's size, so that reads past
// its end show.
struct MixedPass {
    PassData data;
    uint32_t components = 0;
    std::vector<uint16_t> weights;
    std::vector<int16_t> means;
    std::vector<uint8_t> scales;
};

// Any parameters, the most extreme included.
MixedPass make_mixture(Random& random, uint32_t components, uint64_t positions, uint64_t channels) {
    MixedPass p;
    p.data = {nullptr, positions, channels, {}, {}};
    p.components = components;
    const size_t n = p.data.positions * p.data.channels;
    p.weights.resize(p.components * n);
    p.means.resize(p.components * n);
    p.scales.resize(p.components * n);
    p.data.symbols.resize(n);
    const uint32_t wide = random.below(4);
    const uint32_t escapes = random.below(3) == 0 ? random.below(100) : 0;
    for (size_t i = 0; i < n; ++i) {
        uint32_t left = 4096;
        for (uint32_t k = 0; k < p.components; ++k) {
            const bool last = k + 1 == p.components;
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
        p.data.symbols[i] = static_cast<int16_t>(random.below(100) < escapes ? random.next() : near);
    }
    return p;
}

MixedPass make_mixture(Random& random, uint32_t components) {
    const uint64_t positions = random.below(40);
    return make_mixture(random, components, positions, 1 + random.below(24));
}

std::vector<uint8_t> encode(const std::vector<MixedPass>& passes, uint32_t lanes, uint32_t streams, int isa,
                            uint32_t preset = 0) {
    std::vector<Pass> views;
    for (const MixedPass& p : passes) {
        if (p.components == 0) {
            views.push_back(view(p.data));
            continue;
        }
        views.push_back({p.data.symbols.data(), p.data.positions, p.data.channels, 2, p.components, nullptr, nullptr,
                         p.weights.data(), p.means.data(), p.scales.data()});
    }
    return encode(views, lanes, streams, isa, preset);
}

Outcome decode(const std::vector<uint8_t>& payload, const std::vector<MixedPass>& passes, uint32_t threads, int isa) {
    Outcome outcome;
    const uint8_t* data = payload.data();
    const size_t size = payload.size();
    uint32_t tile;
    void* decoder = nullptr;
    fastcodec_rans_decoder_new(1, &data, &size, isa, &outcome.start, &tile, &decoder);
    if (outcome.start != 0) {
        return outcome;
    }
    for (const MixedPass& p : passes) {
        // Not zeros: symbols left unwritten show.
        std::vector<int16_t> symbols(p.data.symbols.size(), 0x5a5a);
        int16_t* out = symbols.data();
        uint32_t error = 0;
        int status;
        if (p.components == 0) {
            const uint8_t* indexes = p.data.indexes.data();
            status = fastcodec_rans_decoder_decode(decoder, p.data.tables->handle, &indexes, &p.data.positions,
                                                   &p.data.channels, &out, threads, &error, &tile);
        } else {
            const uint16_t* weights = p.weights.data();
            const int16_t* means = p.means.data();
            const uint8_t* scales = p.scales.data();
            status = fastcodec_rans_decoder_decode_mixtures(decoder, &p.components, &weights, &means, &scales,
                                                            &p.data.positions, &p.data.channels, &out, threads, &error,
                                                            &tile);
        }
        outcome.passes.push_back(status != 0 ? 0x100u + static_cast<uint32_t>(status) : error);
        outcome.symbols.push_back(symbols);
    }
    fastcodec_rans_decoder_finish(decoder, &outcome.end, &tile);
    fastcodec_rans_decoder_free(decoder);
    return outcome;
}

}  // namespace
