// The CPU coder's C interface to encode.

#include <bit>
#include <memory>

#include "library.h"
#include "../payload.h"

using namespace fastcodec::rans;

namespace {

// A pass of either kind: of indexes, or of mixtures.
struct Pass {
    const void* symbols;  // [positions, channels], int16 or int32
    uint64_t positions;
    uint64_t channels;
    uint32_t symbol_bytes;   // 2 or 4
    uint32_t components;     // of a mixture; 0: indexed
    const uint8_t* indexes;  // [positions, channels]
    const CpuTables* tables;
    const uint16_t* weights;  // [components, positions, channels], as are means and scales
    const int16_t* means;
    const uint8_t* scales;

    size_t elements() const { return positions * channels; }
    bool skips() const { return components == 0 && tables->view.skip; }
    // The first element of a stream.
    size_t begin(Shape shape, uint32_t stream) const {
        return stream_begin(positions, shape.streams, stream) * channels;
    }
};

// What is known of a pass before the states are: of mixtures and of short passes, nearly everything.
struct Preparation {
    int status = kStatusOk;
    uint64_t cost = 0;                        // 1/256 bit
    std::unique_ptr<Buffer<int16_t>> narrow;  // the symbols, when they came as int32
    const int16_t* symbols = nullptr;
    std::unique_ptr<Buffer<uint32_t>> codes;  // of all symbols, if they are known already
};

// Whether a pass's cost is added up: as choose_shape wants it, or exactly.
enum class Costing { kNone, kEstimate, kExact };

// False if a symbol does not fit int16.
bool narrow_symbols(const Pass& pass, Preparation& out) {
    out.symbols = static_cast<const int16_t*>(pass.symbols);
    if (pass.symbol_bytes != 4) {
        return true;
    }
    const size_t n = pass.elements();
    const int32_t* wide = static_cast<const int32_t*>(pass.symbols);
    out.narrow = std::make_unique<Buffer<int16_t>>(n);
    int16_t* narrow = out.narrow->get();
    int32_t changed = 0;
    for (size_t i = 0; i < n; ++i) {
        narrow[i] = static_cast<int16_t>(wide[i]);
        changed |= wide[i] ^ narrow[i];
    }
    out.symbols = narrow;
    return changed == 0;
}

constexpr size_t kMaxRowCodes = 1 << 19;  // 2 MB: more would not stay in the second cache

Rows make_rows(const Tables& tables) {
    int32_t least = INT16_MAX;
    int32_t greatest = INT16_MIN;
    for (uint32_t i = 0; i < tables.count; ++i) {
        const Table t = tables.tables[i];
        least = std::min<int32_t>(least, t.first - 1);
        greatest = std::max<int32_t>(greatest, t.first + t.size - 1);
    }
    Rows rows;
    rows.low = static_cast<int16_t>(std::max<int32_t>(least, INT16_MIN));
    rows.high = static_cast<int16_t>(std::min<int32_t>(greatest, INT16_MAX));
    // Whole cache lines, and an odd number of them: else the middles of all rows would share a few sets of the cache.
    const size_t stride = (static_cast<size_t>(rows.high - rows.low) / 16 | 1) * 16 + 16;
    if (stride > UINT16_MAX || stride * tables.count > kMaxRowCodes) {
        return rows;
    }
    rows.stride = static_cast<uint16_t>(stride);
    rows.codes.resize(stride * tables.count);
    for (uint32_t i = 0; i < tables.count; ++i) {
        for (int32_t symbol = rows.low; symbol <= rows.high; ++symbol) {
            rows.codes[i * stride + static_cast<size_t>(symbol - rows.low)] = code_of(tables, i, symbol);
        }
    }
    return rows;
}

// The codes of n symbols of an indexed pass.
void code_symbols(const CpuTables& set, const uint8_t* indexes, const int16_t* symbols, size_t n, uint32_t* codes) {
    std::call_once(set.rows_made, [&] { set.rows = make_rows(set.view); });
    const Rows& rows = set.rows;
    if (rows.stride == 0) {
        for (size_t j = 0; j < n; ++j) {
            codes[j] = code_of(set.view, indexes[j], symbols[j]);
        }
        return;
    }
    const int16_t low = rows.low;
    const int16_t high = rows.high;
    const uint16_t stride = rows.stride;
    // First where the codes are, which the compiler does by vectors, then the loads. A gather is slower than these.
    for (size_t j = 0; j < n; ++j) {
        const int16_t symbol = std::min(std::max(symbols[j], low), high);
        codes[j] = uint32_t{stride} * indexes[j] + static_cast<uint16_t>(symbol - low);
    }
    const uint32_t* const row_codes = rows.codes.data();
#pragma GCC unroll 8
    for (size_t j = 0; j < n; ++j) {
        codes[j] = row_codes[codes[j]];
    }
}

struct EntryCosts {
    uint16_t values[kProbabilityTotal + 1] = {};  // of a frequency
    EntryCosts() {
        for (uint32_t f = 1; f <= kProbabilityTotal; ++f) {
            values[f] = static_cast<uint16_t>(entry_cost(f, false));
        }
    }
};

// The cost of n coded symbols, in 1/256 bit.
uint64_t cost_of(const uint32_t* codes, size_t n) {
    static const EntryCosts costs;
    uint64_t sum = 0;
    uint64_t escapes = 0;
    for (size_t j = 0; j < n; ++j) {
        sum += costs.values[code_frequency(codes[j])];
        escapes += codes[j] / kCodeEscape;
    }
    return sum + escapes * (entry_cost(1, true) - entry_cost(1, false));
}

// The sum of cost(first, count) over the blocks that `estimate` takes in: of n elements, all or some.
template <typename Cost>
uint64_t add_up(size_t n, Costing costing, const Cost& cost) {
    if (costing == Costing::kNone) {
        return 0;
    }
    const size_t stride = costing == Costing::kEstimate && n > kCostAll ? kCostStride : 1;
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i += kCostBlock * stride) {
        sum += cost(i, std::min(size_t{kCostBlock}, n - i));
    }
    return sum * stride;
}

int prepare_indexed(const Pass& pass, const Kernels& kernels, Costing costing, Preparation& out) {
    const size_t n = pass.elements();
    const CpuTables& set = *pass.tables;
    if (n != 0 && largest(pass.indexes, n) >= set.view.count) {
        return kStatusIndexRange;
    }
    if (!narrow_symbols(pass, out)) {
        return kStatusSymbolRange;
    }
    if (!set.view.skip && costing == Costing::kEstimate && n <= kCostAll) {  // all of them are needed now
        out.codes = std::make_unique<Buffer<uint32_t>>(n);
        code_symbols(set, pass.indexes, out.symbols, n, out.codes->get());
        out.cost = cost_of(out.codes->get(), n);
        return kStatusOk;
    }
    uint8_t indexes[kCostBlock + kSlack];
    int16_t symbols[kCostBlock + kSlack];
    uint32_t codes[kCostBlock];
    bool lost = false;
    out.cost = add_up(n, costing, [&](size_t i, size_t block) {
        if (!set.view.skip) {
            code_symbols(set, pass.indexes + i, out.symbols + i, block, codes);
            return cost_of(codes, block);
        }
        const size_t coded = kernels.compact_indexes(pass.indexes + i, block, indexes);
        kernels.compact_symbols(pass.indexes + i, out.symbols + i, block, symbols, lost);
        code_symbols(set, indexes, symbols, coded, codes);
        return cost_of(codes, coded);
    });
    return lost ? kStatusSymbolSkipped : kStatusOk;
}

int prepare_mixtures(const Pass& pass, const Kernels& kernels, Costing costing, Preparation& out) {
    const size_t n = pass.elements();
    const Mixtures mixtures{pass.weights, pass.means, pass.scales, pass.components, n};
    if (!weights_fit(mixtures)) {
        return kStatusWeights;
    }
    if (!narrow_symbols(pass, out)) {
        return kStatusSymbolRange;
    }
    out.codes = std::make_unique<Buffer<uint32_t>>(n);
    uint32_t* const codes = out.codes->get();
    kernels.code_mixtures(mixtures, out.symbols, n, codes);
    out.cost = add_up(n, costing, [&](size_t i, size_t block) { return cost_of(codes + i, block); });
    return kStatusOk;
}

// Checks one pass, narrows its symbols to int16 and adds up its cost.
void prepare_pass(const Pass& pass, const Kernels& kernels, Costing costing, Preparation& out) {
    out.status = pass.components == 0 ? prepare_indexed(pass, kernels, costing, out)
                                      : prepare_mixtures(pass, kernels, costing, out);
}

// One of a stream's sections, which is written from its end downwards.
class Section {
   public:
    // At most n values. What is not touched takes no memory.
    uint16_t* allocate(size_t n) {
        buffer_ = std::make_unique<Buffer<uint16_t>>(n + kSlack);
        uint16_t* const end = buffer_->get() + n + kSlack;
        begin_ = end_ = end;
        return end;
    }
    void set_begin(const uint16_t* begin) { begin_ = begin; }
    const uint16_t* begin() const { return begin_; }
    size_t size() const { return static_cast<size_t>(end_ - begin_); }

   private:
    std::unique_ptr<Buffer<uint16_t>> buffer_;
    const uint16_t* begin_ = nullptr;
    const uint16_t* end_ = nullptr;
};

struct EncodedStream {
    int status = kStatusOk;
    size_t pass = 0;  // of a status other than ok
    std::vector<uint32_t> states;
    Section words;
    Section escapes;
};

constexpr size_t kCodeBlock = 1024;  // codes that are made before they are pushed: they stay in the first cache
static_assert(kCodeBlock % kMaxLanes == 0, "a block begins with lane 0");

// Encodes n coded symbols of an indexed pass, last to first.
void push_indexed(EncodeStream& stream, uint32_t lanes, const CpuTables& set, const uint8_t* indexes,
                  const int16_t* symbols, size_t n, const Kernels& kernels) {
    uint32_t codes[kCodeBlock];
    while (n != 0) {
        const size_t begin = (n - 1) / kCodeBlock * kCodeBlock;
        code_symbols(set, indexes + begin, symbols + begin, n - begin, codes);
        kernels.push(stream, lanes, codes, symbols + begin, n - begin);
        n = begin;
    }
}

void encode_stream(const Pass* passes, const Preparation* prepared, size_t count, Shape shape, uint32_t stream,
                   const Kernels& kernels, EncodedStream& out) {
    const Kernels& pusher = kernels_for(kernels, shape.lanes);
    uint64_t total = 0;
    uint64_t most = 0;  // of a pass that skips
    bool skip = false;
    for (size_t p = 0; p < count; ++p) {
        const uint64_t n = passes[p].begin(shape, stream + 1) - passes[p].begin(shape, stream);
        total += n;
        if (passes[p].skips()) {
            skip = true;
            most = std::max(most, n);
        }
    }
    Buffer<uint8_t> packed_indexes(skip ? most + kSlack : 0);
    Buffer<int16_t> packed_symbols(skip ? most + kSlack : 0);
    EncodeStream state;
    std::fill(state.states, state.states + kMaxLanes, kStateLow);
    state.words = out.words.allocate(total);  // a symbol writes at most one word and one escape
    state.escapes = out.escapes.allocate(total);
    for (size_t p = count; p-- > 0;) {
        const Pass& pass = passes[p];
        const size_t begin = pass.begin(shape, stream);
        const int16_t* symbols = prepared[p].symbols + begin;
        size_t n = pass.begin(shape, stream + 1) - begin;
        if (prepared[p].codes) {
            pusher.push(state, shape.lanes, prepared[p].codes->get() + begin, symbols, n);
            continue;
        }
        const uint8_t* indexes = pass.indexes + begin;
        if (pass.skips()) {
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
        push_indexed(state, shape.lanes, *pass.tables, indexes, symbols, n, pusher);
    }
    out.states.assign(state.states, state.states + shape.lanes);
    out.words.set_begin(state.words);
    out.escapes.set_begin(state.escapes);
}

// Little endian.
void append(std::vector<uint8_t>& out, const Section& section) {
    const uint16_t* const values = section.begin();
    if constexpr (std::endian::native == std::endian::little) {
        const auto* const bytes = reinterpret_cast<const uint8_t*>(values);
        out.insert(out.end(), bytes, bytes + 2 * section.size());
    } else {
        for (size_t i = 0; i < section.size(); ++i) {
            out.push_back(static_cast<uint8_t>(values[i]));
            out.push_back(static_cast<uint8_t>(values[i] >> 8));
        }
    }
}

std::vector<uint8_t> write_payload(Shape shape, const EncodedStream* streams) {
    size_t size = 16;
    for (uint32_t s = 0; s < shape.streams; ++s) {
        size += 10 + 4 * shape.lanes + 2 * (streams[s].words.size() + streams[s].escapes.size());
    }
    std::vector<uint8_t> out;
    out.reserve(size);
    out.push_back(static_cast<uint8_t>(__builtin_ctz(shape.lanes)));
    write_varint(out, shape.streams);
    for (uint32_t s = 0; s < shape.streams; ++s) {
        write_varint(out, static_cast<uint32_t>(streams[s].escapes.size()));
    }
    for (uint32_t s = 0; s + 1 < shape.streams; ++s) {
        write_varint(out, static_cast<uint32_t>(streams[s].words.size()));
    }
    for (uint32_t s = 0; s < shape.streams; ++s) {
        for (const uint32_t state : streams[s].states) {
            for (int shift = 0; shift < 32; shift += 8) {
                out.push_back(static_cast<uint8_t>(state >> shift));
            }
        }
    }
    for (uint32_t s = 0; s < shape.streams; ++s) {
        append(out, streams[s].words);
    }
    for (uint32_t s = 0; s < shape.streams; ++s) {
        append(out, streams[s].escapes);
    }
    return out;
}

struct Encoded {
    std::vector<std::vector<uint8_t>> payloads;
};

}  // namespace

// The cost of one pass in 1/256 bit. Checks the pass as encoding would.
FASTCODEC_API int fastcodec_rans_cost(const Pass* pass, int isa, uint64_t* cost) {
    return guarded([&]() -> int {
        Preparation prepared;
        prepare_pass(*pass, kernels_of(isa), Costing::kExact, prepared);
        *cost = prepared.cost;
        return prepared.status;
    });
}

// Encodes `tiles` tiles; tile t has the passes[pass_begin[t]] .. passes[pass_begin[t + 1] - 1]. lanes and streams
// override the preset unless 0. On an error `position` [2] holds the tile and the pass.
FASTCODEC_API int fastcodec_rans_encode(uint32_t tiles, const uint32_t* pass_begin, const Pass* passes, uint32_t preset,
                                        uint32_t lanes, uint32_t streams, uint32_t threads, int isa, uint32_t* position,
                                        void** encoded) {
    return guarded([&]() -> int {
        const Kernels& kernels = kernels_of(isa);
        const uint32_t count = pass_begin[tiles];
        uint64_t elements = 0;
        for (uint32_t p = 0; p < count; ++p) {
            elements += passes[p].elements();
        }
        std::vector<Preparation> prepared(count);
        const Costing costing = lanes == 0 || streams == 0 ? Costing::kEstimate : Costing::kNone;
        parallel_for(count, useful_threads(threads, elements),
                     [&](size_t p) { prepare_pass(passes[p], kernels, costing, prepared[p]); });
        std::vector<Shape> shapes(tiles);
        std::vector<size_t> first(tiles + 1, 0);
        for (uint32_t t = 0; t < tiles; ++t) {
            uint64_t cost = 0;
            uint64_t positions = 0;
            for (uint32_t p = pass_begin[t]; p < pass_begin[t + 1]; ++p) {
                if (prepared[p].status != kStatusOk) {
                    position[0] = t;
                    position[1] = p - pass_begin[t];
                    return prepared[p].status;
                }
                cost += prepared[p].cost;
                positions = std::max(positions, passes[p].positions);
            }
            shapes[t] = choose_shape(cost / 256, positions, preset, lanes, streams);
            first[t + 1] = first[t] + shapes[t].streams;
        }
        std::vector<uint32_t> tile_of(first[tiles]);
        for (uint32_t t = 0; t < tiles; ++t) {
            std::fill(tile_of.begin() + first[t], tile_of.begin() + first[t + 1], t);
        }
        std::vector<EncodedStream> results(first[tiles]);
        parallel_for(results.size(), useful_threads(threads, elements), [&](size_t i) {
            const uint32_t t = tile_of[i];
            const uint32_t p = pass_begin[t];
            encode_stream(passes + p, prepared.data() + p, pass_begin[t + 1] - p, shapes[t],
                          static_cast<uint32_t>(i - first[t]), kernels, results[i]);
        });
        int status = kStatusOk;
        for (size_t i = results.size(); i-- > 0;) {
            if (results[i].status != kStatusOk) {
                status = results[i].status;
                position[0] = tile_of[i];
                position[1] = static_cast<uint32_t>(results[i].pass);
            }
        }
        if (status != kStatusOk) {
            return status;
        }
        auto out = std::make_unique<Encoded>();
        for (uint32_t t = 0; t < tiles; ++t) {
            out->payloads.push_back(write_payload(shapes[t], results.data() + first[t]));
        }
        *encoded = out.release();
        return kStatusOk;
    });
}

FASTCODEC_API const uint8_t* fastcodec_rans_encoded_payload(const void* encoded, uint32_t tile, size_t* size) {
    const std::vector<uint8_t>& payload = static_cast<const Encoded*>(encoded)->payloads[tile];
    *size = payload.size();
    return payload.data();
}

FASTCODEC_API void fastcodec_rans_encoded_free(void* encoded) { delete static_cast<Encoded*>(encoded); }
