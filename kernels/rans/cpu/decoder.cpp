// The CPU coder's C interface to decode.

#include <cstring>
#include <memory>

#include "library.h"
#include "../payload.h"

using namespace fastcodec::rans;

namespace {

struct DecoderTile {
    uint32_t lanes;
    uint32_t streams;
    size_t first;  // of its streams among the decoder's
};

struct DecoderStream {
    DecodeStream cursors;
    uint32_t tile;
    Error error;
};

struct Decoder {
    std::vector<uint8_t>
        data;  // the payloads, copied: a caller may change or free theirs; kSlack bytes follow the last
    std::vector<uint32_t> states;
    std::vector<DecoderTile> tiles;
    std::vector<DecoderStream> streams;
    const Kernels* kernels;
};

Error decode_indexed(DecodeStream& stream, uint32_t lanes, const Kernels& kernels, const Tables& tables,
                     const uint8_t* indexes, size_t n, int16_t* symbols) {
    const Kernels& loops = kernels_for(kernels, lanes);
    if (!tables.skip) {
        return loops.decode(stream, lanes, tables, indexes, n, symbols);
    }
    Buffer<uint8_t> packed(n + kSlack);
    const size_t coded = kernels.compact_indexes(indexes, n, packed.get());
    if (coded == n) {
        return loops.decode(stream, lanes, tables, indexes, n, symbols);
    }
    Buffer<int16_t> decoded(coded + kSlack);
    const Error error = loops.decode(stream, lanes, tables, packed.get(), coded, decoded.get());
    kernels.expand_symbols(indexes, n, decoded.get(), symbols);
    return error;
}

Error final_error(const DecoderStream& stream, uint32_t lanes) {
    const DecodeStream& s = stream.cursors;
    if (stream.error != kOk) {
        return stream.error;
    }
    if (s.words != s.words_end) {
        return kWordsLeft;
    }
    if (s.escapes != s.escapes_end) {
        return kEscapesLeft;
    }
    return std::all_of(s.states, s.states + lanes, [](uint32_t x) { return x == kStateLow; }) ? kOk : kFinalState;
}

// The first failing tile, or ok.
template <typename Report>
Error first_error(const Decoder& decoder, const Report& report, uint32_t* tile) {
    for (const DecoderStream& stream : decoder.streams) {
        if (const Error error = report(stream); error != kOk) {
            *tile = stream.tile;
            return error;
        }
    }
    return kOk;
}

// What decoding a pass of either kind has in common: positions, channels and symbols are those of each tile.
struct DecodePass {
    const uint64_t* positions;
    const uint64_t* channels;
    int16_t* const* symbols;

    size_t elements(uint32_t tile) const { return positions[tile] * channels[tile]; }
};

// Decodes every stream's part of a pass: decode(cursors, lanes, tile, first element, elements, symbols).
template <typename Decode>
int decode_streams(Decoder& d, const DecodePass& pass, uint32_t threads, uint32_t* error, uint32_t* tile,
                   const Decode& decode) {
    uint64_t elements = 0;
    for (uint32_t t = 0; t < d.tiles.size(); ++t) {
        elements += pass.elements(t);
    }
    parallel_for(d.streams.size(), useful_threads(threads, elements), [&](size_t i) {
        DecoderStream& stream = d.streams[i];
        const uint32_t t = stream.tile;
        const DecoderTile& owner = d.tiles[t];
        const size_t number = i - owner.first;
        const size_t begin = stream_begin(pass.positions[t], owner.streams, number) * pass.channels[t];
        const size_t n = stream_begin(pass.positions[t], owner.streams, number + 1) * pass.channels[t] - begin;
        if (n == 0) {
            return;
        }
        int16_t* const symbols = pass.symbols[t] + begin;
        if (stream.error != kOk) {
            std::memset(symbols, 0, n * sizeof(*symbols));
            return;
        }
        stream.error = decode(stream.cursors, owner.lanes, t, begin, n, symbols);
    });
    *error = first_error(d, [](const DecoderStream& stream) { return stream.error; }, tile);
    return kStatusOk;
}

}  // namespace

// A decoder of `tiles` payloads, which are copied. `error` receives a rans::Error and `tile` whose it is; then there is
// no decoder.
FASTCODEC_API int fastcodec_rans_decoder_new(uint32_t tiles, const uint8_t* const* payloads, const size_t* sizes,
                                             int isa, uint32_t* error, uint32_t* tile, void** decoder) {
    return guarded([&]() -> int {
        *error = kOk;
        auto out = std::make_unique<Decoder>();
        out->kernels = &kernels_of(isa);
        size_t total = kSlack;
        for (uint32_t t = 0; t < tiles; ++t) {
            total += sizes[t];
        }
        out->data.reserve(total);
        std::vector<Layout> layouts(tiles);
        size_t streams = 0;
        size_t states = 0;
        for (uint32_t t = 0; t < tiles; ++t) {
            if (const Error bad = parse_payload(payloads[t], sizes[t], layouts[t]); bad != kOk) {
                *error = bad;
                *tile = t;
                return kStatusOk;
            }
            out->tiles.push_back({layouts[t].lanes, layouts[t].streams, streams});
            streams += layouts[t].streams;
            states += size_t{layouts[t].streams} * layouts[t].lanes;
        }
        out->streams.reserve(streams);
        out->states.reserve(states);
        for (uint32_t t = 0; t < tiles; ++t) {
            const Layout& layout = layouts[t];
            const uint8_t* base = out->data.data() + out->data.size();
            out->data.insert(out->data.end(), payloads[t], payloads[t] + sizes[t]);
            for (uint32_t s = 0; s < layout.streams; ++s) {
                uint32_t* first_state = out->states.data() + out->states.size();
                for (uint32_t lane = 0; lane < layout.lanes; ++lane) {
                    out->states.push_back(load_u32(base + layout.states + 4 * (size_t{s} * layout.lanes + lane)));
                }
                out->streams.push_back({{first_state, base + layout.words[s], base + layout.words[s + 1],
                                         base + layout.escapes[s], base + layout.escapes[s + 1]},
                                        t,
                                        kOk});
            }
        }
        out->data.resize(total);
        *decoder = out.release();
        return kStatusOk;
    });
}

FASTCODEC_API void fastcodec_rans_decoder_free(void* decoder) { delete static_cast<Decoder*>(decoder); }

// The lanes and streams of a tile.
FASTCODEC_API void fastcodec_rans_decoder_shape(const void* decoder, uint32_t tile, uint32_t* lanes,
                                                uint32_t* streams) {
    const DecoderTile& t = static_cast<const Decoder*>(decoder)->tiles[tile];
    *lanes = t.lanes;
    *streams = t.streams;
}

// Decodes the next pass of every tile: symbols[t] [positions[t], channels[t]] from indexes[t] of the same shape. On an
// error, `error` and `tile` name the first failing tile; its failing streams, and no others, end in zeros.
FASTCODEC_API int fastcodec_rans_decoder_decode(void* decoder, const void* tables, const uint8_t* const* indexes,
                                                const uint64_t* positions, const uint64_t* channels,
                                                int16_t* const* symbols, uint32_t threads, uint32_t* error,
                                                uint32_t* tile) {
    return guarded([&]() -> int {
        Decoder& d = *static_cast<Decoder*>(decoder);
        const Tables& view = static_cast<const CpuTables*>(tables)->view;
        const DecodePass pass{positions, channels, symbols};
        *error = kOk;
        for (uint32_t t = 0; t < d.tiles.size(); ++t) {
            const size_t n = pass.elements(t);
            if (n != 0 && view.count < kMaxTables && largest(indexes[t], n) >= view.count) {
                *tile = t;
                return kStatusIndexRange;
            }
        }
        return decode_streams(
            d, pass, threads, error, tile,
            [&](DecodeStream& stream, uint32_t lanes, uint32_t t, size_t begin, size_t n, int16_t* out) {
                return decode_indexed(stream, lanes, *d.kernels, view, indexes[t] + begin, n, out);
            });
    });
}

// Likewise a pass of mixtures: weights[t], means[t] and scales[t] are [components[t], positions[t], channels[t]].
FASTCODEC_API int fastcodec_rans_decoder_decode_mixtures(void* decoder, const uint32_t* components,
                                                         const uint16_t* const* weights, const int16_t* const* means,
                                                         const uint8_t* const* scales, const uint64_t* positions,
                                                         const uint64_t* channels, int16_t* const* symbols,
                                                         uint32_t threads, uint32_t* error, uint32_t* tile) {
    return guarded([&]() -> int {
        Decoder& d = *static_cast<Decoder*>(decoder);
        const DecodePass pass{positions, channels, symbols};
        *error = kOk;
        std::vector<Mixtures> mixtures(d.tiles.size());
        for (uint32_t t = 0; t < d.tiles.size(); ++t) {
            mixtures[t] = {weights[t], means[t], scales[t], components[t], pass.elements(t)};
            if (!weights_fit(mixtures[t])) {
                *tile = t;
                return kStatusWeights;
            }
        }
        return decode_streams(
            d, pass, threads, error, tile,
            [&](DecodeStream& stream, uint32_t lanes, uint32_t t, size_t begin, size_t n, int16_t* out) {
                return d.kernels->decode_mixtures(stream, lanes, from_element(mixtures[t], begin), n, out);
            });
    });
}

// Checks that every stream ended as it must.
FASTCODEC_API int fastcodec_rans_decoder_finish(const void* decoder, uint32_t* error, uint32_t* tile) {
    const Decoder& d = *static_cast<const Decoder*>(decoder);
    *error = first_error(
        d, [&](const DecoderStream& stream) { return final_error(stream, d.tiles[stream.tile].lanes); }, tile);
    return kStatusOk;
}
