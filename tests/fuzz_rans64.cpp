// Feeds damaged and random streams, indexes and CDFs to CompressAI's coder. Meant to be built with AddressSanitizer and
// UndefinedBehaviorSanitizer, which see every read or write outside what the coder was given.
//
//     fuzz_rans64 [cases] [seed]
//
// The same seed gives the same cases. A stream that is accepted must mean the same after it was encoded again.

#include <algorithm>
#include <memory>

#include "driver.h"
#include "rans64/rans64.h"

using namespace fastcodec::rans64;

extern "C" {
int fastcodec_rans64_tables_new(uint64_t, const int32_t*, const uint64_t*, const int32_t*, const int32_t*, uint64_t*,
                                void**);
void fastcodec_rans64_tables_free(void*);
int fastcodec_rans64_check(const Segment*, uint64_t*);
int fastcodec_rans64_encode(uint64_t, const uint64_t*, const Segment*, uint32_t, uint64_t*, void**);
const void* fastcodec_rans64_encoded_stream(const void*, uint64_t, uint64_t*);
void fastcodec_rans64_encoded_free(void*);
int fastcodec_rans64_start(Stream*, const uint8_t*, uint64_t);
int fastcodec_rans64_decode(uint64_t, Stream*, const Segment*, uint32_t, uint64_t*);
int fastcodec_rans64_finish(const Stream*);
}

namespace {

[[noreturn]] void fail(const char* what, uint32_t number) {
    std::printf("case %u: %s\n", number, what);
    fail();
}

struct Matrix {
    std::vector<int32_t> cdfs;
    std::vector<uint64_t> begins;
    std::vector<int32_t> sizes;
    std::vector<int32_t> offsets;
};

Matrix random_matrix(Random& random) {
    Matrix m;
    for (uint32_t i = 1 + random.below(6); i > 0; --i) {
        const uint32_t entries = 1 + random.below(random.below(4) == 0 ? 3000 : 12);
        const uint32_t total = random.below(5) == 0 ? 1u << (12 + random.below(4)) : kProbabilityTotal;
        m.begins.push_back(m.cdfs.size());
        m.sizes.push_back(static_cast<int32_t>(entries) + 1);
        m.offsets.push_back(static_cast<int32_t>(random.below(2001)) - 1000);
        uint32_t at = 0;
        m.cdfs.push_back(0);
        for (uint32_t left = entries; left > 1; --left) {
            at += 1 + random.below((total - at) / left);
            m.cdfs.push_back(static_cast<int32_t>(at));
        }
        m.cdfs.push_back(static_cast<int32_t>(total));
    }
    return m;
}

int make_tables(const Matrix& m, void** tables) {
    uint64_t where = 0;
    return fastcodec_rans64_tables_new(m.sizes.size(), m.cdfs.data(), m.begins.data(), m.sizes.data(), m.offsets.data(),
                                       &where, tables);
}

struct Case {
    std::shared_ptr<void> tables;
    uint32_t count = 0;
    std::vector<int32_t> symbols;
    std::vector<int32_t> indexes;
    std::vector<uint8_t> stream;
};

int encode(Case& c) {
    const Segment segment = {c.symbols.data(), c.indexes.data(), c.symbols.size(),
                             static_cast<const Tables*>(c.tables.get())};
    const uint64_t begins[] = {0, 1};
    void* encoded = nullptr;
    uint64_t where[2];
    const int status = fastcodec_rans64_encode(1, begins, &segment, 1, where, &encoded);
    if (status != fastcodec_rans64_check(&segment, where)) {
        fail("check and encode disagree", 0);
    }
    if (status == kOk) {
        uint64_t size = 0;
        const auto* data = static_cast<const uint8_t*>(fastcodec_rans64_encoded_stream(encoded, 0, &size));
        c.stream.assign(data, data + size);
        fastcodec_rans64_encoded_free(encoded);
    }
    return status;
}

// What the coder says of a stream, decoded in one or more parts. The stream is copied to memory of just its size.
int decode(const std::vector<uint8_t>& bytes, Case& c, uint32_t parts) {
    const std::unique_ptr<uint8_t[]> data(new uint8_t[bytes.size()]);
    std::copy(bytes.begin(), bytes.end(), data.get());
    Stream stream;
    int status = fastcodec_rans64_start(&stream, data.get(), bytes.size());
    c.symbols.assign(c.indexes.size(), 0);
    size_t begin = 0;
    for (uint32_t part = 1; part <= parts && status == kOk; ++part) {
        const size_t end = c.indexes.size() * part / parts;
        const Segment segment = {c.symbols.data() + begin, c.indexes.data() + begin, end - begin,
                                 static_cast<const Tables*>(c.tables.get())};
        uint64_t where[2];
        status = fastcodec_rans64_decode(1, &stream, &segment, 1, where);
        begin = end;
    }
    return status == kOk ? fastcodec_rans64_finish(&stream) : status;
}

Case random_case(Random& random) {
    Case c;
    const Matrix m = random_matrix(random);
    void* tables = nullptr;
    if (make_tables(m, &tables) != kOk) {
        fail("valid tables are refused", 0);
    }
    c.tables = {tables, fastcodec_rans64_tables_free};
    c.count = static_cast<uint32_t>(m.sizes.size());
    for (uint32_t i = random.below(150); i > 0; --i) {
        const uint32_t index = random.below(c.count);
        const int64_t outside = random.below(12) == 0 ? 1ll << random.below(30) : 0;
        const int64_t span = m.sizes[index] - 1 + 2 * outside;
        c.indexes.push_back(static_cast<int32_t>(index));
        c.symbols.push_back(
            static_cast<int32_t>(m.offsets[index] - outside + static_cast<int64_t>(random.next() % span)));
    }
    return c;
}

void damage(Random& random, std::vector<uint8_t>& stream, const std::vector<uint8_t>& other) {
    const uint32_t size = static_cast<uint32_t>(stream.size());
    switch (random.below(6)) {
        case 0: stream[random.below(size)] ^= static_cast<uint8_t>(1u << random.below(8)); break;
        case 1: stream[random.below(size)] = static_cast<uint8_t>(random.next()); break;
        case 2:
            stream.resize(random.below(4) == 0 ? random.below(size) : size / 4 * 4 - 4 * random.below(size / 4));
            break;
        case 3: stream.insert(stream.end(), 4 * random.below(3) + random.below(8) / 7, 0xFF); break;
        case 4: std::fill(stream.begin() + random.below(size), stream.end(), random.below(2) ? 0xFF : 0x00); break;
        default: stream = other; break;
    }
}

}  // namespace

int main(int argc, char** argv) {
    Arguments arguments(argc, argv, 10000);
    Random& random = arguments.random;
    std::vector<Case> bases(64);
    for (Case& base : bases) {
        base = random_case(random);
        if (encode(base) != kOk) {
            fail("valid symbols are refused", 0);
        }
        Case copy = base;
        if (decode(base.stream, copy, 3) != kOk || copy.symbols != base.symbols) {
            fail("no round trip", 0);
        }
    }
    uint32_t seen[kFailedBefore + 1] = {};
    for (uint32_t number = 0; number < arguments.cases; ++number) {
        Case c = bases[random.below(bases.size())];
        const uint32_t kind = random.below(16);
        if (kind == 0) {  // CDFs
            Matrix m = random_matrix(random);
            for (uint32_t n = 1 + random.below(3); n > 0; --n) {
                const uint32_t row = random.below(static_cast<uint32_t>(m.sizes.size()));
                switch (random.below(3)) {
                    case 0:
                        m.cdfs[random.below(static_cast<uint32_t>(m.cdfs.size()))] =
                            static_cast<int32_t>(random.next());
                        break;
                    case 1: m.sizes[row] -= static_cast<int32_t>(random.below(m.sizes[row] + 3)); break;
                    default: m.offsets[row] = static_cast<int32_t>(random.next()); break;
                }
            }
            void* tables = nullptr;
            const int status = make_tables(m, &tables);
            ++seen[status];
            if (status != kOk) {
                continue;
            }
            c.tables = {tables, fastcodec_rans64_tables_free};
        } else if (kind == 1 && !c.indexes.empty()) {  // an index
            c.indexes[random.below(static_cast<uint32_t>(c.indexes.size()))] =
                random.below(2) ? static_cast<int32_t>(random.next()) : static_cast<int32_t>(c.count);
        } else if (kind == 2 && !c.symbols.empty()) {  // a symbol
            c.symbols[random.below(static_cast<uint32_t>(c.symbols.size()))] = static_cast<int32_t>(random.next());
            ++seen[encode(c)];
            continue;
        } else if (kind == 3) {  // anything that begins as a stream does
            c.stream.resize(8 + 4 * random.below(40));
            for (uint8_t& byte : c.stream) {
                byte = static_cast<uint8_t>(random.next());
            }
            c.stream[7] &= 0x7F;
        } else {
            damage(random, c.stream, bases[random.below(bases.size())].stream);
        }
        Case again = c;
        const int status = decode(c.stream, c, 1);
        if (decode(c.stream, again, 1 + random.below(5)) != status && status != kIndexRange) {
            fail("parts are not the whole", number);
        }
        ++seen[status];
        if (status == kOk) {
            again = c;
            if (encode(again) != kOk || decode(again.stream, again, 1) != kOk || again.symbols != c.symbols) {
                fail("an accepted stream means something else after encoding", number);
            }
        }
    }
    const char* names[] = {"accepted",  "no memory", "bad table",  "index range",    "symbol range", "no start",
                           "exhausted", "no symbol", "bad escape", "not at its end", "failed before"};
    for (int status = 0; status <= kFailedBefore; ++status) {
        std::printf("%6u %s\n", seen[status], names[status]);
    }
    return 0;
}
