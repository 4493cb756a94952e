// The CPU coder's plain C interface, called through ctypes (which lets go of Python's lock): table sets, batches of
// tiles in and out, threads. The loops themselves are in cpu_scalar.cpp, cpu_avx2.cpp and cpu_avx512.cpp.
//
// Every function returns a Status or a rans::Error and throws nothing. Results do not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "cpu.h"
#include "entries.h"
#include "host.h"
#include "payload.h"

using namespace fastcodec::rans;

#define FASTCODEC_API extern "C" __attribute__((visibility("default")))

namespace {

enum CpuStatus : int {
    kStatusIndexRange = kStatusOthers,  // an index names no table of the set
    kStatusSymbolRange,                 // a symbol outside int16
    kStatusSymbolSkipped,               // a symbol other than 0 where nothing is coded
};

enum Isa : int { kIsaScalar = 0, kIsaAvx2 = 1, kIsaAvx512 = 2 };

// Runs at most this many elements on one thread: starting another takes as long as coding some ten thousand symbols.
constexpr uint64_t kElementsPerThread = 1 << 15;

const Kernels& kernels_of([[maybe_unused]] int isa) {
#if defined(__x86_64__)
    if (isa == kIsaAvx512) {
        return avx512_kernels();
    }
    if (isa == kIsaAvx2) {
        return avx2_kernels();
    }
#endif
    return scalar_kernels();
}

// Memory that is not cleared: pages that a stream does not touch cost nothing.
template <typename T>
class Buffer {
   public:
    explicit Buffer(size_t n) : data_(static_cast<T*>(std::malloc((n == 0 ? 1 : n) * sizeof(T)))) {
        if (data_ == nullptr) {
            throw std::bad_alloc();
        }
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(data_); }
    T* get() { return data_; }

   private:
    T* data_;
};

// Calls body(0) .. body(items - 1), each once, on at most `threads` threads; passes on the first exception.
template <typename Body>
void parallel_for(size_t items, uint32_t threads, uint64_t elements, const Body& body) {
    const size_t useful = static_cast<size_t>(elements / kElementsPerThread) + 1;
    const size_t count = std::min({items, static_cast<size_t>(threads), useful});
    if (count <= 1) {
        for (size_t i = 0; i < items; ++i) {
            body(i);
        }
        return;
    }
    std::atomic<size_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr failure;
    const auto work = [&] {
        try {
            for (size_t i; (i = next.fetch_add(1)) < items;) {
                body(i);
            }
        } catch (...) {
            if (!failed.exchange(true)) {
                failure = std::current_exception();
            }
            next.store(items);
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(count - 1);
    try {
        while (helpers.size() + 1 < count) {
            helpers.emplace_back(work);
        }
    } catch (const std::system_error&) {
        // No more threads to be had: those that run share the work.
    }
    work();
    for (std::thread& helper : helpers) {
        helper.join();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

uint32_t largest(const uint8_t* indexes, size_t n) {
    uint8_t result = 0;
    for (size_t i = 0; i < n; ++i) {
        result = std::max(result, indexes[i]);
    }
    return result;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tables

struct TableSet {
    Entries entries;
    std::vector<Bucket> buckets;
    std::vector<uint32_t> positions;
    Tables view;
};

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

bool build_tables(TableSet& set, uint32_t count, bool skip, const int16_t* firsts, const uint16_t* sizes,
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

// ---------------------------------------------------------------------------------------------------------------------
// Encoder

struct Pass {
    const void* symbols;     // [positions, channels], int16 or int32
    const uint8_t* indexes;  // [positions, channels]
    uint64_t positions;
    uint64_t channels;
    const TableSet* tables;
    uint32_t symbol_bytes;  // 2 or 4
    uint32_t reserved;
};

struct Preparation {
    int status = kStatusOk;
    uint64_t cost = 0;                        // 1/256 bit
    std::unique_ptr<Buffer<int16_t>> narrow;  // the symbols, when they came as int32
    const int16_t* symbols = nullptr;
};

// Whether a pass's cost is added up: as choose_shape wants it, or exactly.
enum class Costing { kNone, kEstimate, kExact };

// Checks one pass, narrows its symbols to int16 and adds up its cost.
void prepare_pass(const Pass& pass, const Kernels& kernels, Costing costing, Preparation& out) {
    const size_t n = pass.positions * pass.channels;
    const Tables& tables = pass.tables->view;
    if (n != 0 && largest(pass.indexes, n) >= tables.count) {
        out.status = kStatusIndexRange;
        return;
    }
    out.symbols = static_cast<const int16_t*>(pass.symbols);
    if (pass.symbol_bytes == 4) {
        const int32_t* wide = static_cast<const int32_t*>(pass.symbols);
        out.narrow = std::make_unique<Buffer<int16_t>>(n);
        int16_t* narrow = out.narrow->get();
        int32_t changed = 0;
        for (size_t i = 0; i < n; ++i) {
            narrow[i] = static_cast<int16_t>(wide[i]);
            changed |= wide[i] ^ narrow[i];
        }
        if (changed != 0) {
            out.status = kStatusSymbolRange;
            return;
        }
        out.symbols = narrow;
    }
    if (costing == Costing::kNone) {
        return;
    }
    const size_t stride = costing == Costing::kEstimate && n > kCostAll ? kCostStride : 1;
    uint8_t indexes[kCostBlock + kSlack];
    int16_t symbols[kCostBlock + kSlack];
    bool lost = false;
    for (size_t i = 0; i < n; i += kCostBlock * stride) {
        const size_t block = std::min(size_t{kCostBlock}, n - i);
        if (!tables.skip) {
            out.cost += kernels.cost(tables, pass.indexes + i, out.symbols + i, block);
            continue;
        }
        const size_t coded = kernels.compact_indexes(pass.indexes + i, block, indexes);
        kernels.compact_symbols(pass.indexes + i, out.symbols + i, block, symbols, lost);
        out.cost += kernels.cost(tables, indexes, symbols, coded);
    }
    out.cost *= stride;
    if (lost) {
        out.status = kStatusSymbolSkipped;
    }
}

struct EncodedStream {
    int status = kStatusOk;
    size_t pass = 0;  // of a status other than ok
    std::vector<uint32_t> states;
    std::vector<uint16_t> words;
    std::vector<uint16_t> escapes;
};

void encode_stream(const Pass* passes, const Preparation* prepared, size_t count, Shape shape, uint32_t stream,
                   const Kernels& kernels, EncodedStream& out) {
    uint64_t total = 0;
    uint64_t most = 0;
    bool skip = false;
    for (size_t p = 0; p < count; ++p) {
        const uint64_t n = (stream_begin(passes[p].positions, shape.streams, stream + 1) -
                            stream_begin(passes[p].positions, shape.streams, stream)) *
                           passes[p].channels;
        total += n;
        if (passes[p].tables->view.skip) {
            skip = true;
            most = std::max(most, n);
        }
    }
    // A symbol writes at most one word and one escape. What is not touched takes no memory.
    Buffer<uint16_t> words(total + kSlack);
    Buffer<uint16_t> escapes(total + kSlack);
    Buffer<uint8_t> packed_indexes(skip ? most + kSlack : 0);
    Buffer<int16_t> packed_symbols(skip ? most + kSlack : 0);
    uint16_t* const words_end = words.get() + total + kSlack;
    uint16_t* const escapes_end = escapes.get() + total + kSlack;
    EncodeStream state;
    std::fill(state.states, state.states + kMaxLanes, kStateLow);
    state.words = words_end;
    state.escapes = escapes_end;
    for (size_t p = count; p-- > 0;) {
        const Pass& pass = passes[p];
        const Tables& tables = pass.tables->view;
        const size_t begin = stream_begin(pass.positions, shape.streams, stream) * pass.channels;
        const size_t end = stream_begin(pass.positions, shape.streams, stream + 1) * pass.channels;
        const uint8_t* indexes = pass.indexes + begin;
        const int16_t* symbols = prepared[p].symbols + begin;
        size_t n = end - begin;
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
        const Kernels& loops = kernels_for(kernels, shape.lanes);
        loops.encode(state, shape.lanes, tables, indexes, symbols, n);
    }
    out.states.assign(state.states, state.states + shape.lanes);
    out.words.assign(state.words, words_end);
    out.escapes.assign(state.escapes, escapes_end);
}

void append_u16(std::vector<uint8_t>& out, const std::vector<uint16_t>& values) {
    for (const uint16_t value : values) {
        out.push_back(static_cast<uint8_t>(value));
        out.push_back(static_cast<uint8_t>(value >> 8));
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
        append_u16(out, streams[s].words);
    }
    for (uint32_t s = 0; s < shape.streams; ++s) {
        append_u16(out, streams[s].escapes);
    }
    return out;
}

struct Encoded {
    std::vector<std::vector<uint8_t>> payloads;
};

// ---------------------------------------------------------------------------------------------------------------------
// Decoder

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

void decode_stream(DecoderStream& stream, const DecoderTile& tile, uint32_t number, const Kernels& kernels,
                   const Tables& tables, const uint8_t* indexes, uint64_t positions, uint64_t channels,
                   int16_t* symbols) {
    const size_t begin = stream_begin(positions, tile.streams, number) * channels;
    const size_t n = stream_begin(positions, tile.streams, number + 1) * channels - begin;
    indexes += begin;
    symbols += begin;
    if (n == 0) {
        return;
    }
    if (stream.error != kOk) {
        std::memset(symbols, 0, n * sizeof(*symbols));
        return;
    }
    const Kernels& loops = kernels_for(kernels, tile.lanes);
    if (!tables.skip) {
        stream.error = loops.decode(stream.cursors, tile.lanes, tables, indexes, n, symbols);
        return;
    }
    Buffer<uint8_t> packed(n + kSlack);
    const size_t coded = kernels.compact_indexes(indexes, n, packed.get());
    if (coded == n) {
        stream.error = loops.decode(stream.cursors, tile.lanes, tables, indexes, n, symbols);
        return;
    }
    Buffer<int16_t> decoded(coded + kSlack);
    stream.error = loops.decode(stream.cursors, tile.lanes, tables, packed.get(), coded, decoded.get());
    kernels.expand_symbols(indexes, n, decoded.get(), symbols);
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

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// The interface

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
        auto set = std::make_unique<TableSet>();
        if (!build_tables(*set, count, skip != 0, firsts, sizes, frequencies, entries)) {
            return kStatusBadTables;
        }
        *tables = set.release();
        return kStatusOk;
    });
}

FASTCODEC_API void fastcodec_rans_tables_free(void* tables) { delete static_cast<TableSet*>(tables); }

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
// override the preset unless 0. On an error `where` [2] holds the tile and the pass.
FASTCODEC_API int fastcodec_rans_encode(uint32_t tiles, const uint32_t* pass_begin, const Pass* passes, uint32_t preset,
                                        uint32_t lanes, uint32_t streams, uint32_t threads, int isa, uint32_t* where,
                                        void** encoded) {
    return guarded([&]() -> int {
        const Kernels& kernels = kernels_of(isa);
        const uint32_t count = pass_begin[tiles];
        uint64_t elements = 0;
        for (uint32_t p = 0; p < count; ++p) {
            elements += passes[p].positions * passes[p].channels;
        }
        std::vector<Preparation> prepared(count);
        const Costing costing = lanes == 0 || streams == 0 ? Costing::kEstimate : Costing::kNone;
        parallel_for(count, threads, elements,
                     [&](size_t p) { prepare_pass(passes[p], kernels, costing, prepared[p]); });
        std::vector<Shape> shapes(tiles);
        std::vector<size_t> first(tiles + 1, 0);
        for (uint32_t t = 0; t < tiles; ++t) {
            uint64_t cost = 0;
            uint64_t positions = 0;
            for (uint32_t p = pass_begin[t]; p < pass_begin[t + 1]; ++p) {
                if (prepared[p].status != kStatusOk) {
                    where[0] = t;
                    where[1] = p - pass_begin[t];
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
        parallel_for(results.size(), threads, elements, [&](size_t i) {
            const uint32_t t = tile_of[i];
            const uint32_t p = pass_begin[t];
            encode_stream(passes + p, prepared.data() + p, pass_begin[t + 1] - p, shapes[t],
                          static_cast<uint32_t>(i - first[t]), kernels, results[i]);
        });
        int status = kStatusOk;
        for (size_t i = results.size(); i-- > 0;) {
            if (results[i].status != kStatusOk) {
                status = results[i].status;
                where[0] = tile_of[i];
                where[1] = static_cast<uint32_t>(results[i].pass);
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
        const Tables& view = static_cast<const TableSet*>(tables)->view;
        *error = kOk;
        uint64_t elements = 0;
        for (uint32_t t = 0; t < d.tiles.size(); ++t) {
            const size_t n = positions[t] * channels[t];
            elements += n;
            if (n != 0 && view.count < kMaxTables && largest(indexes[t], n) >= view.count) {
                *tile = t;
                return kStatusIndexRange;
            }
        }
        parallel_for(d.streams.size(), threads, elements, [&](size_t i) {
            DecoderStream& stream = d.streams[i];
            const DecoderTile& owner = d.tiles[stream.tile];
            decode_stream(stream, owner, static_cast<uint32_t>(i - owner.first), *d.kernels, view, indexes[stream.tile],
                          positions[stream.tile], channels[stream.tile], symbols[stream.tile]);
        });
        *error = first_error(d, [](const DecoderStream& stream) { return stream.error; }, tile);
        return kStatusOk;
    });
}

// Checks that every stream ended as it must.
FASTCODEC_API int fastcodec_rans_decoder_finish(const void* decoder, uint32_t* error, uint32_t* tile) {
    const Decoder& d = *static_cast<const Decoder*>(decoder);
    *error = first_error(
        d, [&](const DecoderStream& stream) { return final_error(stream, d.tiles[stream.tile].lanes); }, tile);
    return kStatusOk;
}
