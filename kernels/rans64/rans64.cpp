// The coder of rans64.h and its plain C interface, called through ctypes (which lets go of Python's lock).
//
// Every function returns a Status and throws nothing. Results do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "../host.h"
#include "rans64.h"

using namespace fastcodec::rans64;

namespace {

// How many threads are of use: starting one takes as long as coding some thousands of symbols.
size_t useful_threads(uint32_t threads, uint64_t symbols) {
    return static_cast<size_t>(std::min<uint64_t>(threads, (symbols >> 14) + 1));
}

// More buckets make the search shorter and their cache lines colder.
constexpr uint32_t kMaxBucketBits = 11;

struct CdfTables : Tables {
    std::vector<Table> rows;
    std::vector<uint32_t> cdfs;
    std::vector<uint16_t> buckets;
};

template <typename Body>
int guarded(const Body& body) {
    return fastcodec::guarded<kNoMemory, kInternal>(body);
}

uint32_t bucket_bits(uint32_t entries) {
    return std::min(kMaxBucketBits, static_cast<uint32_t>(std::bit_width(entries)) + 1);
}

bool valid(const int32_t* cdf, int64_t size, int64_t offset) {
    if (size < 2 || size > int64_t{kProbabilityTotal} + 1 || cdf[0] != 0) {
        return false;
    }
    for (int64_t i = 1; i < size; ++i) {
        if (cdf[i] <= cdf[i - 1]) {
            return false;
        }
    }
    return cdf[size - 1] <= int64_t{kProbabilityTotal} && offset + size <= std::numeric_limits<int32_t>::max();
}

// Words in the opposite order: encoding runs backwards.
class WordStack {
   public:
    // Room for so many more words; they are pushed without a check.
    void reserve(size_t more) {
        if (size_ + more > words_.size()) {
            words_.resize(std::max(2 * words_.size(), size_ + more));
        }
    }
    void push(uint64_t word) { words_[size_++] = static_cast<uint32_t>(word); }
    std::vector<uint32_t> reversed() && {
        words_.resize(size_);
        std::reverse(words_.begin(), words_.end());
        return std::move(words_);
    }

   private:
    std::vector<uint32_t> words_;
    size_t size_ = 0;
};

inline void push(uint64_t& x, WordStack& out, uint32_t start, uint64_t frequency) {
    if (x >= frequency << kPushShift) {
        out.push(x);
        x >>= kWordBits;
    }
    x = ((x / frequency) << kProbabilityBits) + x % frequency + start;
}

inline void push_bits(uint64_t& x, WordStack& out, uint32_t value) {
    if (x >= 1ull << (63 - kBypassBits)) {
        out.push(x);
        x >>= kWordBits;
    }
    x = x << kBypassBits | value;
}

void push_escape(uint64_t& x, WordStack& out, uint32_t raw) {
    const int count = nibbles(raw);
    for (int i = count; i-- > 0;) {
        push_bits(x, out, raw >> (i * kBypassBits) & kBypassMask);
    }
    push_bits(x, out, static_cast<uint32_t>(count));
}

// Encodes a segment, last symbol to first. On an error `position` is the symbol.
Status encode_segment(uint64_t& state, WordStack& out, const Segment& segment, uint64_t& position) {
    const Tables tables = *segment.tables;
    constexpr uint64_t kBlock = 512;
    uint64_t x = state;
    for (uint64_t end = segment.count; end > 0;) {
        const uint64_t begin = end > kBlock ? end - kBlock : 0;
        out.reserve((end - begin) * kMaxWordsPerSymbol);
        for (uint64_t i = end; i-- > begin;) {
            const auto index = static_cast<uint32_t>(segment.indexes[i]);
            if (index >= tables.count) {
                position = i;
                return kIndexRange;
            }
            const Table& table = tables.tables[index];
            const int64_t last = int64_t{table.entries} - 1;
            int64_t v = int64_t{segment.symbols[i]} - table.offset;
            if (static_cast<uint64_t>(v) >= static_cast<uint64_t>(last)) {
                const uint64_t raw = escape_raw(v, last);
                if (raw > kMaxRaw) {
                    position = i;
                    return kSymbolRange;
                }
                push_escape(x, out, static_cast<uint32_t>(raw));
                v = last;
            }
            push(x, out, table.cdf[v], table.cdf[v + 1] - table.cdf[v]);
        }
        end = begin;
    }
    state = x;
    return kOk;
}

Status check_indexes(const Segment& segment, uint64_t& position) {
    for (uint64_t i = 0; i < segment.count; ++i) {
        if (static_cast<uint32_t>(segment.indexes[i]) >= segment.tables->count) {
            position = i;
            return kIndexRange;
        }
    }
    return kOk;
}

// Reads the next word if the state needs one. Returns false if there is none.
inline bool refill(uint64_t& x, uint64_t& cursor, const Stream& stream) {
    if (x < kStateLow) {
        if (cursor == stream.words) {
            return false;
        }
        uint32_t word;
        std::memcpy(&word, stream.data + 4 * cursor++, 4);
        x = x << kWordBits | word;
    }
    return true;
}

// Reads the value of an escape. v is relative to the table's offset.
Status pop_escape(uint64_t& x, uint64_t& cursor, const Stream& stream, int64_t last, int64_t& v) {
    const auto count = static_cast<int>(x & kBypassMask);
    x >>= kBypassBits;
    if (!refill(x, cursor, stream)) {
        return kExhausted;
    }
    if (count > kMaxNibbles) {
        return kBadEscape;
    }
    uint32_t raw = 0;
    for (int i = 0; i < count; ++i) {
        raw |= static_cast<uint32_t>(x & kBypassMask) << (i * kBypassBits);
        x >>= kBypassBits;
        if (!refill(x, cursor, stream)) {
            return kExhausted;
        }
    }
    if (raw > kMaxRaw) {
        return kBadEscape;
    }
    const auto half = static_cast<int64_t>(raw >> 1);
    v = raw & 1 ? -half - 1 : half + last;
    return kOk;
}

// Decodes a segment whose indexes are checked. After an error the stream gives nothing more.
Status decode_segment(Stream& stream, const Segment& segment) {
    if (stream.state == 0) {
        return kFailedBefore;
    }
    const Table* tables = segment.tables->tables;
    uint64_t x = std::exchange(stream.state, 0);
    uint64_t cursor = stream.cursor;
    for (uint64_t i = 0; i < segment.count; ++i) {
        const Table& table = tables[segment.indexes[i]];
        const uint32_t slot = x & (kProbabilityTotal - 1);
        if (slot >= table.cdf[table.entries]) {
            return kNoSymbol;
        }
        uint32_t entry = table.buckets[slot >> table.bucket_shift];
        while (table.cdf[entry + 1] <= slot) {
            ++entry;
        }
        const uint32_t begin = table.cdf[entry];
        x = (table.cdf[entry + 1] - begin) * (x >> kProbabilityBits) + (slot - begin);
        if (!refill(x, cursor, stream)) {
            return kExhausted;
        }
        int64_t v = entry;
        if (entry + 1 == table.entries) {
            if (const Status status = pop_escape(x, cursor, stream, entry, v); status != kOk) {
                return status;
            }
            if (v + table.offset != static_cast<int32_t>(v + table.offset)) {
                return kBadEscape;
            }
        }
        segment.symbols[i] = static_cast<int32_t>(v + table.offset);
    }
    stream.state = x;
    stream.cursor = cursor;
    return kOk;
}

struct Encoded {
    std::vector<std::vector<uint32_t>> streams;
};

// The first stream that failed, for `position` [2], with the symbol in it.
int first_error(const std::vector<Status>& statuses, const std::vector<uint64_t>& positions, uint64_t* position) {
    for (size_t i = 0; i < statuses.size(); ++i) {
        if (statuses[i] != kOk) {
            position[0] = i;
            position[1] = positions[i];
            return statuses[i];
        }
    }
    return kOk;
}

}  // namespace

FASTCODEC_API void fastcodec_rans64_constants(uint64_t* values) {
    values[0] = kProbabilityBits;
    values[1] = kStateLow;
    values[2] = kBypassBits;
    values[3] = kMaxRaw;
}

// Copies `count` CDFs: table i is the sizes[i] integers from cdfs[begins[i]]. On kBadTable `position` is the table.
FASTCODEC_API int fastcodec_rans64_tables_new(uint64_t count, const int32_t* cdfs, const uint64_t* begins,
                                              const int32_t* sizes, const int32_t* offsets, uint64_t* position,
                                              void** tables) {
    return guarded([&]() -> int {
        size_t entries = 0;
        size_t buckets = 0;
        for (uint64_t i = 0; i < count; ++i) {
            if (!valid(cdfs + begins[i], sizes[i], offsets[i])) {
                *position = i;
                return kBadTable;
            }
            entries += sizes[i];
            buckets += size_t{1} << bucket_bits(sizes[i] - 1);
        }
        auto set = std::make_unique<CdfTables>();
        set->rows.reserve(count);
        set->cdfs.reserve(entries);
        set->buckets.reserve(buckets);
        for (uint64_t i = 0; i < count; ++i) {
            const int32_t* cdf = cdfs + begins[i];
            const uint32_t size = sizes[i];
            const uint32_t shift = kProbabilityBits - bucket_bits(size - 1);
            set->rows.push_back({set->cdfs.data() + set->cdfs.size(), set->buckets.data() + set->buckets.size(),
                                 size - 1, offsets[i], shift});
            set->cdfs.insert(set->cdfs.end(), cdf, cdf + size);
            uint32_t entry = 0;
            for (uint32_t slot = 0; slot < kProbabilityTotal; slot += 1u << shift) {
                // Buckets beyond the end of the CDF are never used.
                while (entry + 2 < size && static_cast<uint32_t>(cdf[entry + 1]) <= slot) {
                    ++entry;
                }
                set->buckets.push_back(static_cast<uint16_t>(entry));
            }
        }
        set->tables = set->rows.data();
        set->count = static_cast<uint32_t>(count);
        *tables = static_cast<Tables*>(set.release());
        return kOk;
    });
}

FASTCODEC_API void fastcodec_rans64_tables_free(void* tables) {
    delete static_cast<CdfTables*>(static_cast<Tables*>(tables));
}

// Whether the tables are those of a matrix of `count` rows, `columns` integers apart.
FASTCODEC_API int fastcodec_rans64_tables_are(const void* tables, uint64_t count, const int32_t* cdfs, uint64_t columns,
                                              const int32_t* sizes, const int32_t* offsets) {
    const auto& rows = static_cast<const CdfTables*>(static_cast<const Tables*>(tables))->rows;
    if (rows.size() != count) {
        return 0;
    }
    for (uint64_t i = 0; i < count; ++i) {
        const Table& row = rows[i];
        const uint64_t size = uint64_t{row.entries} + 1;
        if (sizes[i] != static_cast<int64_t>(size) || offsets[i] != row.offset || size > columns ||
            std::memcmp(row.cdf, cdfs + i * columns, size * sizeof(uint32_t)) != 0) {
            return 0;
        }
    }
    return 1;
}

// What encoding the segment would say of it. On an error `position` is the symbol.
FASTCODEC_API int fastcodec_rans64_check(const Segment* segment, uint64_t* position) {
    if (const Status status = check_indexes(*segment, *position); status != kOk) {
        return status;
    }
    for (uint64_t i = 0; i < segment->count; ++i) {
        const Table& table = segment->tables->tables[segment->indexes[i]];
        const int64_t last = int64_t{table.entries} - 1;
        const int64_t v = int64_t{segment->symbols[i]} - table.offset;
        if ((v < 0 || v >= last) && escape_raw(v, last) > kMaxRaw) {
            *position = i;
            return kSymbolRange;
        }
    }
    return kOk;
}

// Encodes `count` streams; stream s has the segments[begins[s]] .. segments[begins[s + 1] - 1], in decoding order. On
// an error `position` [2] is the stream and the symbol in its segment.
FASTCODEC_API int fastcodec_rans64_encode(uint64_t count, const uint64_t* begins, const Segment* segments,
                                          uint32_t threads, uint64_t* position, void** encoded) {
    return guarded([&]() -> int {
        auto out = std::make_unique<Encoded>();
        out->streams.resize(count);
        std::vector<Status> statuses(count, kOk);
        std::vector<uint64_t> positions(count, 0);
        uint64_t symbols = 0;
        for (uint64_t i = 0; i < begins[count]; ++i) {
            symbols += segments[i].count;
        }
        fastcodec::parallel_for(count, useful_threads(threads, symbols), [&](size_t s) {
            WordStack words;
            uint64_t state = kStateLow;
            for (uint64_t i = begins[s + 1]; i-- > begins[s] && statuses[s] == kOk;) {
                statuses[s] = encode_segment(state, words, segments[i], positions[s]);
            }
            words.reserve(2);
            words.push(state >> kWordBits);
            words.push(state);
            out->streams[s] = std::move(words).reversed();
        });
        if (const int status = first_error(statuses, positions, position); status != kOk) {
            return status;
        }
        *encoded = out.release();
        return kOk;
    });
}

FASTCODEC_API const void* fastcodec_rans64_encoded_stream(const void* encoded, uint64_t stream, uint64_t* size) {
    const std::vector<uint32_t>& words = static_cast<const Encoded*>(encoded)->streams[stream];
    *size = words.size() * sizeof(uint32_t);
    return words.data();
}

FASTCODEC_API void fastcodec_rans64_encoded_free(void* encoded) { delete static_cast<Encoded*>(encoded); }

// Opens a stream. The data must stay where it is.
FASTCODEC_API int fastcodec_rans64_start(Stream* stream, const uint8_t* data, uint64_t size) {
    return start(*stream, data, size);
}

// Decodes segments[s] of each stream; nothing if an index names no table. On an error `position` [2] is the stream and,
// for an index, the symbol.
FASTCODEC_API int fastcodec_rans64_decode(uint64_t count, Stream* streams, const Segment* segments, uint32_t threads,
                                          uint64_t* position) {
    return guarded([&]() -> int {
        std::vector<Status> statuses(count, kOk);
        std::vector<uint64_t> positions(count, 0);
        uint64_t symbols = 0;
        for (uint64_t s = 0; s < count; ++s) {
            symbols += segments[s].count;
            statuses[s] = check_indexes(segments[s], positions[s]);
        }
        if (const int status = first_error(statuses, positions, position); status != kOk) {
            return status;
        }
        fastcodec::parallel_for(count, useful_threads(threads, symbols),
                                [&](size_t s) { statuses[s] = decode_segment(streams[s], segments[s]); });
        return first_error(statuses, positions, position);
    });
}

FASTCODEC_API int fastcodec_rans64_finish(const Stream* stream) { return finish(*stream); }

// CompressAI's quantised CDF of `size` probabilities, rounded to `precision` bits, into cdf [size + 1]: every entry
// gets at least 1, taken from the least frequency above 1, the first one of these. kBadTable: not finite, negative, too
// large, all 0, or more entries than 2^precision.
FASTCODEC_API int fastcodec_rans64_quantise_pmf(uint64_t size, const float* pmf, int precision, uint32_t* cdf) {
    return guarded([&]() -> int {
        const uint64_t whole = uint64_t{1} << precision;
        if (size == 0 || size > whole) {
            return kBadTable;
        }
        std::vector<uint64_t> frequencies(size);
        uint64_t total = 0;
        for (uint64_t i = 0; i < size; ++i) {
            const float scaled = std::round(pmf[i] * static_cast<float>(whole));
            if (!(pmf[i] >= 0 && scaled < 0x1p32f)) {
                return kBadTable;
            }
            frequencies[i] = static_cast<uint64_t>(scaled);
            total += frequencies[i];
        }
        if (total == 0 || total >> 32 != 0) {
            return kBadTable;
        }
        uint64_t sum = 0;
        for (uint64_t& frequency : frequencies) {
            frequency = whole * frequency / total;
            sum += frequency;
        }
        frequencies.back() += whole - sum;
        std::vector<uint32_t> donors;
        for (uint32_t i = 0; i < size; ++i) {
            if (frequencies[i] > 1) {
                donors.push_back(i);
            }
        }
        // One that has given stays the least until it is down to 1, so that one order serves for all.
        std::stable_sort(donors.begin(), donors.end(),
                         [&](uint32_t a, uint32_t b) { return frequencies[a] < frequencies[b]; });
        auto donor = donors.begin();
        for (uint64_t& frequency : frequencies) {
            if (frequency == 0) {
                frequency = 1;
                if (--frequencies[*donor] == 1) {
                    ++donor;
                }
            }
        }
        cdf[0] = 0;
        for (uint64_t i = 0; i < size; ++i) {
            cdf[i + 1] = cdf[i] + static_cast<uint32_t>(frequencies[i]);
        }
        return kOk;
    });
}
