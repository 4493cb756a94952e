// The SIMD loops of indexed passes, written once for every vector width. A twin's source defines the operations of its
// instruction set as static functions of a struct V and instantiates these templates in its own unnamed namespace.
//
// V::kWidth lanes make a vector; Count vectors make a step, so N = Count * V::kWidth lanes. They share one cursor, but
// the long part of a step (table lookups, the multiplication) does not wait for it: only the refill does.
//
// The loops do whole steps, and decode those that succeed. A pass's last, partial step, and one that would run out of
// words or of escapes, is left untouched to the scalar loops, which finish the pass: so all twins agree on errors by
// construction.
#pragma once

#include "loops.h"

namespace fastcodec::rans {
namespace {

template <typename V>
struct FoundLanes {
    typename V::U32 start;
    typename V::U32 frequency;
    typename V::U32 symbol;  // in the low 16 bits
    typename V::Mask escape;
};

// rans.h's lookup for a vector of lanes. When a lane misses its bucket all of them walk: that is rare, and gives the
// others what they have already.
template <typename V>
FASTCODEC_INLINE FoundLanes<V> lookup_lanes(const Tables& t, typename V::U32 index, typename V::U32 slot) {
    using U32 = typename V::U32;
    using Mask = typename V::Mask;
    const U32 low16 = V::set(0xffff);
    const U32 number = V::add(V::template shift_left<kBucketBits>(index),
                              V::template shift_right<kProbabilityBits - int{kBucketBits}>(slot));
    U32 low;   // start, middle
    U32 high;  // end, symbol
    V::template gather_pairs<8>(t.buckets, number, low, high);
    U32 start = V::bit_and(low, low16);
    U32 middle = V::template shift_right<16>(low);
    U32 end = V::bit_and(high, low16);
    U32 symbol = V::template shift_right<16>(high);
    if (!V::all(V::within(slot, start, end))) [[unlikely]] {
        U32 base;
        U32 shape;  // first, and size above it
        V::template gather_pairs<8>(t.tables, index, base, shape);
        U32 position = V::template gather<4>(t.positions, number);
        for (;;) {
            V::template gather_pairs<2>(t.cumulative, position, low, high);
            start = V::bit_and(low, low16);
            middle = V::template shift_right<16>(low);
            end = V::bit_and(high, low16);
            // The sentinel ends its table: then `end` is of the next one, and means nothing.
            const Mask found = V::either(V::greater(middle, slot), V::greater(end, slot));
            if (V::all(found)) {
                break;
            }
            position = V::add(position, V::select(found, V::set(0), V::set(2)));
        }
        symbol = V::add(shape, V::subtract(position, base));
    }
    const Mask first = V::greater(middle, slot);
    const U32 from = V::select(first, start, middle);
    const U32 to = V::select(first, middle, end);
    return {from, V::subtract(to, from), V::select(first, symbol, V::add(symbol, V::set(1))),
            V::equal(to, V::set(kProbabilityTotal))};
}

template <typename V, int Count>
Error decode_vectors(DecodeStream& stream, const Tables& tables, const uint8_t* indexes, size_t n, int16_t* symbols) {
    using U32 = typename V::U32;
    constexpr size_t kLanes = size_t{Count} * V::kWidth;
    const Tables t = tables;
    U32 state[Count];
    for (int v = 0; v < Count; ++v) {
        state[v] = V::load(stream.states + v * V::kWidth);
    }
    const uint8_t* words = stream.words;
    const uint8_t* const words_end = stream.words_end;
    size_t j = 0;
    for (; j + kLanes <= n; j += kLanes) {
        FoundLanes<V> found[Count];
        U32 advanced[Count];
        typename V::Mask refill[Count];
        uint32_t needed[Count];  // words that the vectors up to this one need
        uint32_t escapes = 0;
        for (int v = 0; v < Count; ++v) {
            const U32 index = V::load_indexes(indexes + j + v * V::kWidth);
            const U32 slot = V::bit_and(state[v], V::set(kProbabilityTotal - 1));
            found[v] = lookup_lanes<V>(t, index, slot);
            advanced[v] = V::add(V::multiply(found[v].frequency, V::template shift_right<kProbabilityBits>(state[v])),
                                 V::subtract(slot, found[v].start));
            refill[v] = V::below_word(advanced[v]);
            needed[v] = V::count(refill[v]) + (v == 0 ? 0 : needed[v - 1]);
            escapes |= V::bits(found[v].escape);
        }
        if (2 * size_t{needed[Count - 1]} > static_cast<size_t>(words_end - words)) [[unlikely]] {
            break;
        }
        if (escapes != 0) [[unlikely]] {
            size_t count = 0;
            for (int v = 0; v < Count; ++v) {
                count += V::count(found[v].escape);
            }
            if (2 * count > static_cast<size_t>(stream.escapes_end - stream.escapes)) {
                break;
            }
        }
        for (int v = 0; v < Count; ++v) {
            state[v] = V::refill(advanced[v], refill[v], words + (v == 0 ? 0 : 2 * needed[v - 1]));
            V::store_symbols(symbols + j + v * V::kWidth, found[v].symbol);
        }
        words += 2 * needed[Count - 1];
        if (escapes != 0) [[unlikely]] {
            for (int v = 0; v < Count; ++v) {
                for (uint32_t left = V::bits(found[v].escape); left != 0; left &= left - 1) {
                    symbols[j + v * V::kWidth + static_cast<size_t>(__builtin_ctz(left))] =
                        static_cast<int16_t>(load_word(stream.escapes));
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

template <typename V, int Count>
void push_vectors(EncodeStream& stream, const uint32_t* codes, const int16_t* symbols, size_t n) {
    using U32 = typename V::U32;
    constexpr size_t kLanes = size_t{Count} * V::kWidth;
    size_t j = n / kLanes * kLanes;
    if (j != n) {
        scalar_kernels().push(stream, kLanes, codes + j, symbols + j, n - j);
    }
    U32 state[Count];
    for (int v = 0; v < Count; ++v) {
        state[v] = V::load(stream.states + v * V::kWidth);
    }
    uint16_t* words = stream.words;
    while (j != 0) {
        j -= kLanes;
#pragma GCC unroll 4
        for (int v = Count - 1; v >= 0; --v) {
            const size_t at = j + v * V::kWidth;
            const U32 code = V::load(codes + at);
            const U32 start = V::bit_and(code, V::set(kProbabilityTotal - 1));
            const U32 frequency =
                V::bit_and(V::template shift_right<kCodeFrequency>(code), V::set(2 * kProbabilityTotal - 1));
            const U32 last = V::subtract(frequency, V::set(1));
            const U32 gap = V::subtract(V::set(kProbabilityTotal), frequency);
            // Of the division that encode_push's comment proves, what does not wait for the state.
            const typename V::F32 inverse = V::divide(V::set_float(1.0f), V::to_float(frequency));
            U32 x = state[v];
            // Both sides are below 2^15 or so: signed comparison serves.
            const typename V::Mask emits = V::greater(V::template shift_right<kEmitShift>(x), last);
            const uint32_t emitted = V::bits(emits);
            V::store_words_below(words, x, emitted);
            words -= __builtin_popcount(emitted);
            x = V::select(emits, V::template shift_right<kWordBits>(x), x);
            const U32 quotient = V::truncate(V::multiply_add(V::unsigned_to_float(x), inverse, V::set_float(-0.0625f)));
            const U32 remainder = V::subtract(x, V::multiply(quotient, frequency));
            const typename V::Mask less = V::greater(remainder, last);
            // x + quotient * (2^14 - frequency) + start, with the quotient raised by one where it was one less
            U32 pushed = V::add(V::add(x, start), V::multiply(quotient, gap));
            pushed = V::add(pushed, V::select(less, gap, V::set(0)));
            state[v] = pushed;
            for (uint32_t left = V::sign_bits(code); left != 0;) [[unlikely]] {
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

}  // namespace
}  // namespace fastcodec::rans
