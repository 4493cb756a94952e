// The C interface to mixture passes on the CPU: tiles whose passes are indexed (cpu.cpp) or mixtures (mixture.h), coded
// by one set of states. The loops are in mixture_lanes.h.
//
// A mixture pass runs on the same decoder, streams and threads as an indexed one. They are cpu.cpp's own, so the two
// are one translation unit.

#include "cpu.cpp"

#include "cpu_mixture.h"

namespace {

enum MixtureStatus : int {
    kStatusWeights = kStatusSymbolSkipped + 1,  // an element's weights do not sum to 2^12
};

const MixtureKernels& mixture_kernels_of([[maybe_unused]] const Kernels& kernels) {
#if defined(__x86_64__)
    if (&kernels == &avx512_kernels()) {
        return avx512_mixture_kernels();
    }
    if (&kernels == &avx2_kernels()) {
        return avx2_mixture_kernels();
    }
#endif
    return scalar_mixture_kernels();
}

// A pass of either kind. `components` 0 is an indexed one, `indexes` and `tables` are then in use; else the parameters
// are, each [components, positions, channels].
struct AnyPass {
    Pass pass;
    const uint16_t* weights;
    const int16_t* means;
    const uint8_t* scales;
    uint64_t components;
};

Mixtures mixtures_of(const AnyPass& p) {
    return {p.weights, p.means, p.scales, static_cast<uint32_t>(p.components), p.pass.positions * p.pass.channels};
}

bool weights_fit(const Mixtures& mixtures) {
    uint32_t wrong = 0;
    for (size_t i = 0; i < mixtures.plane; ++i) {
        uint32_t sum = 0;
        for (uint32_t k = 0; k < mixtures.components; ++k) {
            sum += mixtures.weights[k * mixtures.plane + i];
        }
        wrong |= sum ^ kMixtureWeightTotal;
    }
    return wrong == 0;
}

// What is known of a pass before the states are: for a mixture pass nearly everything.
struct AnyPreparation {
    Preparation prepared;
    std::unique_ptr<Buffer<uint32_t>> codes;  // of a mixture pass's symbols
};

void prepare_mixtures(const AnyPass& p, const MixtureKernels& kernels, Costing costing, AnyPreparation& out) {
    const Mixtures mixtures = mixtures_of(p);
    const size_t n = mixtures.plane;
    Preparation& prepared = out.prepared;
    if (!weights_fit(mixtures)) {
        prepared.status = kStatusWeights;
        return;
    }
    prepared.symbols = static_cast<const int16_t*>(p.pass.symbols);
    if (p.pass.symbol_bytes == 4) {
        const int32_t* wide = static_cast<const int32_t*>(p.pass.symbols);
        prepared.narrow = std::make_unique<Buffer<int16_t>>(n);
        int16_t* narrow = prepared.narrow->get();
        int32_t changed = 0;
        for (size_t i = 0; i < n; ++i) {
            narrow[i] = static_cast<int16_t>(wide[i]);
            changed |= wide[i] ^ narrow[i];
        }
        if (changed != 0) {
            prepared.status = kStatusSymbolRange;
            return;
        }
        prepared.symbols = narrow;
    }
    out.codes = std::make_unique<Buffer<uint32_t>>(n);
    uint32_t* codes = out.codes->get();
    kernels.code(mixtures, prepared.symbols, n, codes);
    if (costing == Costing::kNone) {
        return;
    }
    const size_t stride = costing == Costing::kEstimate && n > kCostAll ? kCostStride : 1;
    for (size_t i = 0; i < n; i += kCostBlock * stride) {
        for (size_t j = i; j < std::min(i + kCostBlock, n); ++j) {
            prepared.cost += entry_cost(code_frequency(codes[j]), (codes[j] & kCodeEscape) != 0);
        }
    }
    prepared.cost *= stride;
}

void prepare_any(const AnyPass& p, const Kernels& kernels, Costing costing, AnyPreparation& out) {
    if (p.components == 0) {
        prepare_pass(p.pass, kernels, costing, out.prepared);
    } else {
        prepare_mixtures(p, mixture_kernels_of(kernels), costing, out);
    }
}

// The encoder's serial part: n coded symbols, last to first.
void push_codes(EncodeStream& stream, uint32_t lanes, const uint32_t* codes, const int16_t* symbols, size_t n) {
    uint16_t* words = stream.words;
    for (size_t j = n; j-- > 0;) {
        const uint32_t frequency = code_frequency(codes[j]);
        uint32_t& state = stream.states[j & (lanes - 1)];
        uint32_t x = state;
        const bool emits = encode_emits(x, frequency);
        words[-1] = static_cast<uint16_t>(x);
        words -= emits;
        x = emits ? x >> kWordBits : x;
        state = encode_push(x, code_start(codes[j]), frequency);
        if (codes[j] & kCodeEscape) [[unlikely]] {
            *--stream.escapes = static_cast<uint16_t>(symbols[j]);
        }
    }
    stream.words = words;
}

// cpu.cpp's encode_stream for passes of both kinds.
void encode_any_stream(const AnyPass* passes, const AnyPreparation* prepared, size_t count, Shape shape,
                       uint32_t stream, const Kernels& kernels, EncodedStream& out) {
    const auto begin_of = [&](const Pass& pass, uint32_t s) {
        return stream_begin(pass.positions, shape.streams, s) * pass.channels;
    };
    uint64_t total = 0;
    uint64_t most = 0;
    for (size_t p = 0; p < count; ++p) {
        const uint64_t n = begin_of(passes[p].pass, stream + 1) - begin_of(passes[p].pass, stream);
        total += n;
        if (passes[p].components == 0 && passes[p].pass.tables->view.skip) {
            most = std::max(most, n);
        }
    }
    // A symbol writes at most one word and one escape. What is not touched takes no memory.
    Buffer<uint16_t> words(total + kSlack);
    Buffer<uint16_t> escapes(total + kSlack);
    Buffer<uint8_t> packed_indexes(most + kSlack);
    Buffer<int16_t> packed_symbols(most + kSlack);
    uint16_t* const words_end = words.get() + total + kSlack;
    uint16_t* const escapes_end = escapes.get() + total + kSlack;
    EncodeStream state;
    std::fill(state.states, state.states + kMaxLanes, kStateLow);
    state.words = words_end;
    state.escapes = escapes_end;
    for (size_t p = count; p-- > 0;) {
        const Pass& pass = passes[p].pass;
        const size_t begin = begin_of(pass, stream);
        size_t n = begin_of(pass, stream + 1) - begin;
        const int16_t* symbols = prepared[p].prepared.symbols + begin;
        if (passes[p].components != 0) {
            push_codes(state, shape.lanes, prepared[p].codes->get() + begin, symbols, n);
            continue;
        }
        const Tables& tables = pass.tables->view;
        const uint8_t* indexes = pass.indexes + begin;
        if (tables.skip) {
            bool lost = false;
            kernels.compact_symbols(indexes, symbols, n, packed_symbols.get(), lost);
            n = kernels.compact_indexes(indexes, n, packed_indexes.get());
            if (lost) {
                out.status = kStatusSymbolSkipped;
                out.pass = p;
                return;
            }
            indexes = packed_indexes.get();
            symbols = packed_symbols.get();
        }
        kernels_for(kernels, shape.lanes).encode(state, shape.lanes, tables, indexes, symbols, n);
    }
    out.states.assign(state.states, state.states + shape.lanes);
    out.words.assign(state.words, words_end);
    out.escapes.assign(state.escapes, escapes_end);
}

}  // namespace

// The constants of mixture.h, for readers in other languages: components at most, bits of a weight, of a mean's
// fraction, scale steps an octave, the scale of sigma = 1.
FASTCODEC_API void fastcodec_rans_mixture_constants(uint32_t values[5]) {
    const uint32_t constants[5] = {kMixtureComponents, kMixtureWeightBits, kMixtureMeanBits, kMixtureScaleSteps,
                                   kMixtureScaleOrigin};
    std::memcpy(values, constants, sizeof(constants));
}

// The cost of one mixture pass in 1/256 bit. Checks the pass as encoding would.
FASTCODEC_API int fastcodec_rans_mixture_cost(const AnyPass* pass, int isa, uint64_t* cost) {
    return guarded([&]() -> int {
        AnyPreparation out;
        prepare_any(*pass, kernels_of(isa), Costing::kExact, out);
        *cost = out.prepared.cost;
        return out.prepared.status;
    });
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

// As fastcodec_rans_encode, for passes of both kinds. Tiles without mixture passes give the bytes that it gives.
FASTCODEC_API int fastcodec_rans_mixture_encode(uint32_t tiles, const uint32_t* pass_begin, const AnyPass* passes,
                                                uint32_t preset, uint32_t lanes, uint32_t streams, uint32_t threads,
                                                int isa, uint32_t* where, void** encoded) {
    return guarded([&]() -> int {
        const Kernels& kernels = kernels_of(isa);
        const uint32_t count = pass_begin[tiles];
        uint64_t elements = 0;
        for (uint32_t p = 0; p < count; ++p) {
            elements += passes[p].pass.positions * passes[p].pass.channels;
        }
        std::vector<AnyPreparation> prepared(count);
        const Costing costing = lanes == 0 || streams == 0 ? Costing::kEstimate : Costing::kNone;
        parallel_for(count, threads, elements,
                     [&](size_t p) { prepare_any(passes[p], kernels, costing, prepared[p]); });
        std::vector<Shape> shapes(tiles);
        std::vector<size_t> first(tiles + 1, 0);
        for (uint32_t t = 0; t < tiles; ++t) {
            uint64_t cost = 0;
            uint64_t positions = 0;
            for (uint32_t p = pass_begin[t]; p < pass_begin[t + 1]; ++p) {
                if (prepared[p].prepared.status != kStatusOk) {
                    where[0] = t;
                    where[1] = p - pass_begin[t];
                    return prepared[p].prepared.status;
                }
                cost += prepared[p].prepared.cost;
                positions = std::max(positions, passes[p].pass.positions);
            }
            shapes[t] = choose_shape(cost / 256, positions, preset, lanes, streams);
            first[t + 1] = first[t] + shapes[t].streams;
        }
        std::vector<uint32_t> tile_of(first[tiles]);
        for (uint32_t t = 0; t < tiles; ++t) {
            std::fill(tile_of.begin() + first[t], tile_of.begin() + first[t + 1], t);
        }
        std::vector<EncodedStream> results(first[tiles]);
        parallel_for(results.size(), threads, elements, [&](size_t i) {
            const uint32_t t = tile_of[i];
            const uint32_t p = pass_begin[t];
            encode_any_stream(passes + p, prepared.data() + p, pass_begin[t + 1] - p, shapes[t],
                              static_cast<uint32_t>(i - first[t]), kernels, results[i]);
        });
        for (size_t i = 0; i < results.size(); ++i) {
            if (results[i].status != kStatusOk) {
                where[0] = tile_of[i];
                where[1] = static_cast<uint32_t>(results[i].pass);
                return results[i].status;
            }
        }
        auto out = std::make_unique<Encoded>();
        for (uint32_t t = 0; t < tiles; ++t) {
            out->payloads.push_back(write_payload(shapes[t], results.data() + first[t]));
        }
        *encoded = out.release();
        return kStatusOk;
    });
}

// As fastcodec_rans_decoder_decode, for a pass of mixtures: weights[t], means[t] and scales[t] are [components,
// positions[t], channels[t]]. An element whose weights do not sum to 2^12 is refused before anything is decoded.
FASTCODEC_API int fastcodec_rans_decoder_decode_mixtures(void* decoder, uint32_t components,
                                                         const uint16_t* const* weights, const int16_t* const* means,
                                                         const uint8_t* const* scales, const uint64_t* positions,
                                                         const uint64_t* channels, int16_t* const* symbols,
                                                         uint32_t threads, uint32_t* error, uint32_t* tile) {
    return guarded([&]() -> int {
        Decoder& d = *static_cast<Decoder*>(decoder);
        const MixtureKernels& kernels = mixture_kernels_of(*d.kernels);
        *error = kOk;
        uint64_t elements = 0;
        std::vector<Mixtures> mixtures(d.tiles.size());
        for (uint32_t t = 0; t < d.tiles.size(); ++t) {
            mixtures[t] = {weights[t], means[t], scales[t], components, positions[t] * channels[t]};
            elements += mixtures[t].plane;
            if (!weights_fit(mixtures[t])) {
                *tile = t;
                return kStatusWeights;
            }
        }
        parallel_for(d.streams.size(), threads, elements, [&](size_t i) {
            DecoderStream& stream = d.streams[i];
            const uint32_t t = stream.tile;
            const DecoderTile& owner = d.tiles[t];
            const size_t number = i - owner.first;
            const size_t begin = stream_begin(positions[t], owner.streams, number) * channels[t];
            const size_t n = stream_begin(positions[t], owner.streams, number + 1) * channels[t] - begin;
            if (n == 0) {
                return;
            }
            if (stream.error != kOk) {
                std::memset(symbols[t] + begin, 0, n * sizeof(int16_t));
                return;
            }
            stream.error =
                kernels.decode(stream.cursors, owner.lanes, from_element(mixtures[t], begin), n, symbols[t] + begin);
        });
        *error = first_error(d, [](const DecoderStream& stream) { return stream.error; }, tile);
        return kStatusOk;
    });
}
