// The SIMD loops, written once for every vector width. A twin's source defines the operations of its instruction set as
// static functions of a struct V and instantiates these templates in its own unnamed namespace.
//
// V::kWidth lanes make a vector; Count vectors make a step, so N = Count * V::kWidth lanes. They share one cursor, but the
// long part of a step (table lookups, the multiplication) does not wait for it: only the refill does.
//
// These loops do whole steps that succeed. A pass's last, partial step, and a step that would run out of words or of
// escapes, is left untouched to the scalar loops, which finish the pass: so all twins agree on errors by construction.
#pragma once

#include "cpu.h"

namespace fastcodec::rans {
namespace {

template <typename V>
struct Lookup {
    typename V::U32 interval;
    typename V::U32 info;  // the symbol in the low 16 bits
    uint32_t escapes;      // one bit a lane
};

// rans.h's lookup for a vector of lanes.
template <typename V>
FASTCODEC_INLINE Lookup<V> lookup_lanes(const Tables& t, typename V::U32 index, typename V::U32 slot, int bucket_bits) {
    using U32 = typename V::U32;
    const U32 at = V::add(V::shift_left(index, bucket_bits), V::shift_right(slot, kProbabilityBits - bucket_bits));
    const U32 bucket = V::template gather<4>(t.buckets, at);
    const U32 code = V::template shift_right<kBucketSymbolShift>(bucket);
    Lookup<V> result{bucket, V::subtract(code, V::set(kBucketSymbolBias)), 0};
    const typename V::Mask slow = V::equal(code, V::set(0));
    if (V::bits(slow) == 0) [[likely]] {
        return result;
    }
    // The lanes whose buckets hold no symbol walk from the entry that the bucket names; the others stay at entry 0.
    U32 entry = V::select(slow, bucket, V::set(0));
    U32 interval = V::template gather<8>(t.entries, entry);
    for (;;) {
        const U32 last = V::bit_and(V::template shift_right<kProbabilityBits>(interval), V::set(kProbabilityTotal - 1));
        const U32 start = V::bit_and(interval, V::set(kProbabilityTotal - 1));
        // slot - start > frequency - 1: all three are below 2^15, so signed comparison serves.
        const typename V::Mask beyond = V::both(slow, V::greater(slot, V::add(start, last)));
        if (V::bits(beyond) == 0) {
            break;
        }
        entry = V::increment(entry, beyond);
        interval = V::template gather<8>(t.entries, entry);
    }
    const U32 info = V::template gather<8>(&t.entries->info, entry);
    result.interval = V::select(slow, interval, result.interval);
    result.info = V::select(slow, info, result.info);
    result.escapes = V::bits(slow) & V::sign_bits(info);  // bit 31 is kEntryEscape
    return result;
}

FASTCODEC_INLINE uint32_t load_u16(const uint8_t* bytes) { return bytes[0] | static_cast<uint32_t>(bytes[1]) << 8; }

template <typename V, int Count>
Error decode_vectors(DecodeStream& stream, const Tables& tables, const uint8_t* indexes, size_t n, int16_t* symbols) {
    using U32 = typename V::U32;
    constexpr size_t kLanes = size_t{Count} * V::kWidth;
    const Tables t = tables;
    const int bucket_bits = static_cast<int>(t.bucket_bits);
    U32 state[Count];
    for (int v = 0; v < Count; ++v) {
        state[v] = V::load(stream.states + v * V::kWidth);
    }
    const uint8_t* words = stream.words;
    const uint8_t* const words_end = stream.words_end;
    size_t j = 0;
    for (; j + kLanes <= n; j += kLanes) {
        Lookup<V> found[Count];
        U32 advanced[Count];
        uint32_t refill[Count];
        uint32_t needed[Count];  // words that the vectors before this one, and it, need
        uint32_t escapes = 0;
        for (int v = 0; v < Count; ++v) {
            const U32 index = V::load_indexes(indexes + j + v * V::kWidth);
            const U32 slot = V::bit_and(state[v], V::set(kProbabilityTotal - 1));
            found[v] = lookup_lanes<V>(t, index, slot, bucket_bits);
            const U32 interval = found[v].interval;
            const U32 start = V::bit_and(interval, V::set(kProbabilityTotal - 1));
            const U32 last = V::bit_and(V::template shift_right<kProbabilityBits>(interval), V::set(kProbabilityTotal - 1));
            const U32 high = V::template shift_right<kProbabilityBits>(state[v]);
            // frequency * high + slot - start, with frequency = last + 1
            advanced[v] = V::add(V::multiply(last, high), V::add(high, V::subtract(slot, start)));
            refill[v] = V::bits(V::equal(V::template shift_right<kWordBits>(advanced[v]), V::set(0)));
            needed[v] = static_cast<uint32_t>(__builtin_popcount(refill[v])) + (v == 0 ? 0 : needed[v - 1]);
            escapes |= found[v].escapes;
        }
        if (2 * size_t{needed[Count - 1]} > static_cast<size_t>(words_end - words)) [[unlikely]] {
            break;
        }
        if (escapes != 0) [[unlikely]] {
            size_t count = 0;
            for (int v = 0; v < Count; ++v) {
                count += static_cast<size_t>(__builtin_popcount(found[v].escapes));
            }
            if (2 * count > static_cast<size_t>(stream.escapes_end - stream.escapes)) {
                break;
            }
        }
        for (int v = 0; v < Count; ++v) {
            state[v] = V::refill(advanced[v], refill[v], words + (v == 0 ? 0 : 2 * needed[v - 1]));
            V::store_symbols(symbols + j + v * V::kWidth, found[v].info);
        }
        words += 2 * needed[Count - 1];
        if (escapes != 0) [[unlikely]] {
            for (int v = 0; v < Count; ++v) {
                for (uint32_t left = found[v].escapes; left != 0; left &= left - 1) {
                    symbols[j + v * V::kWidth + static_cast<size_t>(__builtin_ctz(left))] =
                        static_cast<int16_t>(load_u16(stream.escapes));
                    stream.escapes += 2;
                }
            }
        }
    }
    for (int v = 0; v < Count; ++v) {
        V::store(stream.states + v * V::kWidth, state[v]);
    }
    stream.words = words;
    return j == n ? kOk : scalar_kernels().decode(stream, kLanes, tables, indexes + j, n - j, symbols + j);
}

template <typename V>
struct Coding {
    typename V::U32 entry;
    uint32_t escapes;  // one bit a lane
};

// rans.h's entry_of for a vector of symbols.
template <typename V>
FASTCODEC_INLINE Coding<V> entries_of(const Tables& t, const uint8_t* indexes, const int16_t* symbols) {
    using U32 = typename V::U32;
    const U32 index = V::load_indexes(indexes);
    const U32 symbol = V::load_symbols(symbols);
    const U32 base = V::template gather<8>(t.tables, index);
    const U32 shape = V::template gather<8>(&t.tables->first, index);  // first, and size above it
    const U32 first = V::sign_extend_16(shape);
    const U32 last = V::subtract(V::template shift_right<16>(shape), V::set(1));
    const U32 position = V::subtract(symbol, first);
    const U32 bounded = V::minimum(position, last);  // unsigned: below first is far above last
    return {V::add(base, bounded), V::bits(V::equal(bounded, last))};
}

template <typename V, int Count>
void encode_vectors(EncodeStream& stream, const Tables& tables, const uint8_t* indexes, const int16_t* symbols,
                    size_t n) {
    using U32 = typename V::U32;
    constexpr size_t kLanes = size_t{Count} * V::kWidth;
    size_t j = n / kLanes * kLanes;
    if (j != n) {
        scalar_kernels().encode(stream, kLanes, tables, indexes + j, symbols + j, n - j);
    }
    const Tables t = tables;
    U32 state[Count];
    for (int v = 0; v < Count; ++v) {
        state[v] = V::load(stream.states + v * V::kWidth);
    }
    uint16_t* words = stream.words;
    while (j != 0) {
        j -= kLanes;
        for (int v = Count - 1; v >= 0; --v) {
            const size_t at = j + v * V::kWidth;
            const Coding<V> coding = entries_of<V>(t, indexes + at, symbols + at);
            const U32 interval = V::template gather<8>(t.entries, coding.entry);
            const U32 start = V::bit_and(interval, V::set(kProbabilityTotal - 1));
            const U32 last = V::bit_and(V::template shift_right<kProbabilityBits>(interval), V::set(kProbabilityTotal - 1));
            const U32 frequency = V::add(last, V::set(1));
            U32 x = state[v];
            // Both sides are below 2^15 or so: signed comparison serves.
            const typename V::Mask emits = V::greater(V::template shift_right<kEmitShift>(x), last);
            const uint32_t emitted = V::bits(emits);
            V::store_words_below(words, x, emitted);
            words -= __builtin_popcount(emitted);
            x = V::select(emits, V::template shift_right<kWordBits>(x), x);
            // The division that encode_push's comment proves.
            const U32 quotient = V::quotient_or_one_less(x, frequency);
            const U32 remainder = V::subtract(x, V::multiply(quotient, frequency));
            const typename V::Mask less = V::greater(remainder, last);
            const U32 gap = V::subtract(V::set(kProbabilityTotal), frequency);
            // x + quotient * (2^14 - frequency) + start, with the quotient raised by one where it was one less
            U32 pushed = V::add(V::add(x, start), V::multiply(quotient, gap));
            pushed = V::add(pushed, V::select(less, gap, V::set(0)));
            state[v] = pushed;
            for (uint32_t left = coding.escapes; left != 0;) [[unlikely]] {
                const uint32_t lane = 31u - static_cast<uint32_t>(__builtin_clz(left));
                *--stream.escapes = static_cast<uint16_t>(symbols[at + lane]);
                left ^= 1u << lane;
            }
        }
    }
    for (int v = 0; v < Count; ++v) {
        V::store(stream.states + v * V::kWidth, state[v]);
    }
    stream.words = words;
}

template <typename V>
uint64_t cost_vectors(const Tables& tables, const uint8_t* indexes, const int16_t* symbols, size_t n) {
    using U32 = typename V::U32;
    constexpr size_t kFlush = size_t{V::kWidth} << 16;  // 2^16 costs below 2^13 fit a lane
    uint64_t sum = 0;
    size_t j = 0;
    while (j + V::kWidth <= n) {
        U32 sums = V::set(0);
        const size_t end = n - j > kFlush ? j + kFlush : n;
        for (; j + V::kWidth <= end; j += V::kWidth) {
            const Coding<V> coding = entries_of<V>(tables, indexes + j, symbols + j);
            const U32 info = V::template gather<8>(&tables.entries->info, coding.entry);
            sums = V::add(sums, V::bit_and(V::template shift_right<kEntryCostShift>(info), V::set(kEntryCostMask)));
        }
        uint32_t lanes[V::kWidth];
        V::store(lanes, sums);
        for (const uint32_t lane : lanes) {
            sum += lane;
        }
    }
    return sum + scalar_kernels().cost(tables, indexes + j, symbols + j, n - j);
}

}  // namespace
}  // namespace fastcodec::rans
