// The mixture coder's loops, written once. A twin's source defines the operations of its instruction set as static
// functions of a struct V (as for lanes.h) and instantiates these templates in its own unnamed namespace; the scalar
// twin takes the parts that go element by element.
//
// V::kWidth lanes make a vector; Count vectors make a step, so N = Count * V::kWidth lanes. A step's search for its
// entries is nearly all of the work and does not depend on the order of words, so it takes all lanes at once; the
// states are then advanced and refilled lane by lane, as they are in a pass's last, partial step.
#pragma once

#include <cstring>

#include "cpu_mixture.h"

namespace fastcodec::rans {
namespace {

constexpr MixtureTableValues kTableValues = make_mixture_tables();

FASTCODEC_INLINE MixtureTables mixture_tables() { return {kTableValues.phi, kTableValues.scales}; }

// Element `at` of a pass of K components.
template <uint32_t K>
FASTCODEC_INLINE MixtureElement<K> element_at(const Mixtures& m, size_t at) {
    return mixture_element(mixture_tables(), load_mixture<K>(m.weights, m.means, m.scales, K, m.plane, at));
}

// ---------------------------------------------------------------------------------------------------------------------
// Element by element

// A step's entries.
template <size_t Lanes>
struct Entries {
    alignas(64) uint32_t start[Lanes];
    alignas(64) uint32_t end[Lanes];
    alignas(64) uint32_t symbol[Lanes];
    uint32_t escapes;  // a bit for each lane
};

FASTCODEC_INLINE uint32_t load_word(const uint8_t* bytes) { return bytes[0] | static_cast<uint32_t>(bytes[1]) << 8; }

// The second half of a step of `count` symbols whose entries are known.
template <size_t Lanes>
FASTCODEC_INLINE Error advance_lanes(DecodeStream& s, const Entries<Lanes>& entries, size_t count, int16_t* symbols) {
    uint32_t advanced[Lanes];
    size_t needed = 0;
    for (size_t lane = 0; lane < count; ++lane) {
        advanced[lane] = decode_advance(s.states[lane], entries.start[lane], entries.end[lane] - entries.start[lane]);
        needed += decode_needs_word(advanced[lane]);
        symbols[lane] = static_cast<int16_t>(entries.symbol[lane]);
    }
    if (needed > static_cast<size_t>(s.words_end - s.words) / 2) [[unlikely]] {
        return kWordsExhausted;
    }
    const uint8_t* words = s.words;
    for (size_t lane = 0; lane < count; ++lane) {
        // Read in any case (there is slack) and keep it by masks: a branch could not be predicted.
        const uint32_t taken = 0u - static_cast<uint32_t>(decode_needs_word(advanced[lane]));
        s.states[lane] = (advanced[lane] & ~taken) | (decode_refill(advanced[lane], load_word(words)) & taken);
        words += taken & 2;
    }
    s.words = words;
    for (uint32_t left = entries.escapes; left != 0; left &= left - 1) {
        if (s.escapes == s.escapes_end) {
            return kEscapesExhausted;
        }
        symbols[__builtin_ctz(left)] = static_cast<int16_t>(load_word(s.escapes));
        s.escapes += 2;
    }
    return kOk;
}

// A step of `count` symbols, one search after the other.
template <uint32_t K, size_t Lanes>
Error decode_one_by_one(DecodeStream& s, const Mixtures& mixtures, size_t at, size_t count, int16_t* symbols) {
    Entries<Lanes> entries;
    entries.escapes = 0;
    for (size_t lane = 0; lane < count; ++lane) {
        const Found found = mixture_find(mixture_tables(), element_at<K>(mixtures, at + lane), slot_of(s.states[lane]));
        entries.start[lane] = found.start;
        entries.end[lane] = found.start + found.frequency;
        entries.symbol[lane] = found.symbol;
        entries.escapes |= static_cast<uint32_t>(found.escape) << lane;
    }
    return advance_lanes<Lanes>(s, entries, count, symbols);
}

// Decodes n elements; `whole(stream, at, symbols)` does whole steps.
template <uint32_t K, size_t Lanes, typename Whole>
FASTCODEC_INLINE Error decode_steps(DecodeStream& stream, const Mixtures& mixtures, size_t n, int16_t* symbols,
                                    const Whole& whole) {
    // States in a local array, so that stores of symbols cannot be taken for changes of them.
    alignas(64) uint32_t states[Lanes];
    std::memcpy(states, stream.states, sizeof(states));
    DecodeStream s = stream;
    s.states = states;
    Error error = kOk;
    size_t j = 0;
    for (; j + Lanes <= n && error == kOk; j += Lanes) {
        error = whole(s, j, symbols + j);
    }
    if (error != kOk) {
        j -= Lanes;
    } else if (j < n) {
        error = decode_one_by_one<K, Lanes>(s, mixtures, j, n - j, symbols + j);
    }
    if (error != kOk) {
        std::memset(symbols + j, 0, (n - j) * sizeof(*symbols));
    }
    std::memcpy(stream.states, states, sizeof(states));
    s.states = stream.states;
    stream = s;
    return error;
}

template <uint32_t K, size_t Lanes>
Error decode_scalar(DecodeStream& stream, const Mixtures& mixtures, size_t n, int16_t* symbols) {
    return decode_steps<K, Lanes>(stream, mixtures, n, symbols, [&](DecodeStream& s, size_t at, int16_t* out) {
        return decode_one_by_one<K, Lanes>(s, mixtures, at, Lanes, out);
    });
}

template <uint32_t K>
FASTCODEC_INLINE void code_scalar(const Mixtures& mixtures, const int16_t* symbols, size_t from, size_t n,
                                  uint32_t* codes) {
    for (size_t i = from; i < n; ++i) {
        const Found found = mixture_code(mixture_tables(), element_at<K>(mixtures, i), symbols[i]);
        codes[i] = pack_code(found.start, found.frequency, found.escape);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// By vectors

// The elements of V::kWidth lanes, K components each.
template <typename V, uint32_t K>
struct Elements {
    using U32 = typename V::U32;
    U32 first;
    U32 size;
    U32 weights[K];
    U32 distances[K];  // of entry 0's lower edge from the means
    U32 multipliers[K];
    U32 shifts[K];
};

// mixture.h's mixture_element.
template <typename V, uint32_t K>
FASTCODEC_INLINE Elements<V, K> load_elements(const Mixtures& m, size_t at) {
    using U32 = typename V::U32;
    Elements<V, K> e;
    U32 low = V::set(static_cast<uint32_t>(kReachNone));
    U32 high = V::set(static_cast<uint32_t>(-kReachNone));
    U32 means[K];
    for (uint32_t k = 0; k < K; ++k) {
        const U32 packed = V::gather(kTableValues.scales, V::load_bytes(m.scales + k * m.plane + at));
        const U32 reach = V::template shift_right<16>(packed);
        e.weights[k] = V::load_unsigned(m.weights + k * m.plane + at);
        means[k] = V::load_signed(m.means + k * m.plane + at);
        const typename V::Mask absent = V::equal(e.weights[k], V::set(0));
        low = V::minimum(low, V::select(absent, low, V::subtract(means[k], reach)));
        high = V::maximum(high, V::select(absent, high, V::add(means[k], reach)));
        e.multipliers[k] = V::bit_and(V::template shift_right<2>(packed), V::set(0x3ffc));
        e.shifts[k] = V::bit_and(packed, V::set(15));
    }
    const U32 half = V::set(1u << (kMixtureMeanBits - 1));
    e.first = V::template shift_right_signed<kMixtureMeanBits>(V::add(low, half));
    const U32 last = V::template shift_right_signed<kMixtureMeanBits>(V::add(high, half));
    e.size = V::add(V::subtract(last, e.first), V::set(1));
    const U32 edge = V::subtract(V::template shift_left<kMixtureMeanBits>(e.first), half);
    for (uint32_t k = 0; k < K; ++k) {
        e.distances[k] = V::subtract(edge, means[k]);
    }
    return e;
}

// mixture.h's E(j).
template <typename V, uint32_t K>
FASTCODEC_INLINE typename V::U32 edges(const Elements<V, K>& e, typename V::U32 j) {
    using U32 = typename V::U32;
    const U32 moved = V::template shift_left<kMixtureMeanBits>(j);
    const U32 limit = V::set(kDeviateLimit);
    U32 sum = V::set(0);
    for (uint32_t k = 0; k < K; ++k) {
        const U32 z = V::shift_right_by(V::multiply(V::add(e.distances[k], moved), e.multipliers[k]), e.shifts[k]);
        // Clamped after the addition: the same, as it does not overflow.
        const U32 t = V::minimum(V::maximum(V::add(z, limit), V::set(0)), V::set(2 * kDeviateLimit));
        const U32 packed = V::gather(kTableValues.phi, V::template shift_right<kDeviateRest>(t));
        const U32 slope = V::bit_and(packed, V::set((1u << kPhiSlopeBits) - 1));
        const U32 rest = V::multiply(slope, V::bit_and(t, V::set((1u << kDeviateRest) - 1)));
        const U32 phi =
            V::add(V::template shift_right<kPhiSlopeBits>(packed), V::template shift_right<kDeviateRest>(rest));
        sum = V::add(sum, V::multiply(e.weights[k], phi));
    }
    const U32 g = V::template shift_right<kMixtureWeightBits + kPhiBits - kMixtureBits>(sum);
    const U32 spread = V::subtract(V::set(kProbabilityTotal - 1), e.size);
    const U32 rounded = V::add(V::multiply(g, spread), V::set(1u << (kMixtureBits - 1)));
    return V::add(j, V::template shift_right<kMixtureBits>(rounded));
}

// mixture.h's search for all lanes at once: as many rounds as the widest element needs.
template <typename V, int Count, uint32_t K>
FASTCODEC_INLINE void find_entries(const Elements<V, K>* e, const uint32_t* states, Entries<Count * V::kWidth>& out) {
    using U32 = typename V::U32;
    U32 slots[Count];
    U32 lower[Count];
    U32 upper[Count];
    U32 start[Count];
    U32 end[Count];
    for (int v = 0; v < Count; ++v) {
        slots[v] = V::bit_and(V::load(states + v * V::kWidth), V::set(kProbabilityTotal - 1));
        lower[v] = start[v] = V::set(0);
        upper[v] = V::add(e[v].size, V::set(1));
        end[v] = V::set(kProbabilityTotal);
    }
    for (bool searching = true; searching;) {
        searching = false;
        for (int v = 0; v < Count; ++v) {
            const U32 middle = V::template shift_right<1>(V::add(lower[v], upper[v]));
            const U32 edge = edges<V, K>(e[v], middle);
            // A lane that has found its entry comes back to its lower end, and stays.
            const auto below = V::greater(edge, slots[v]);
            lower[v] = V::select(below, lower[v], middle);
            start[v] = V::select(below, start[v], edge);
            upper[v] = V::select(below, middle, upper[v]);
            end[v] = V::select(below, edge, end[v]);
            searching |= V::any(V::greater(upper[v], V::add(lower[v], V::set(1))));
        }
    }
    out.escapes = 0;
    for (int v = 0; v < Count; ++v) {
        V::store(out.start + v * V::kWidth, start[v]);
        V::store(out.end + v * V::kWidth, end[v]);
        V::store(out.symbol + v * V::kWidth, V::add(e[v].first, lower[v]));
        out.escapes |= V::bits(V::equal(lower[v], e[v].size)) << (v * V::kWidth);
    }
}

template <typename V, int Count, uint32_t K>
Error decode_vectors(DecodeStream& stream, const Mixtures& mixtures, size_t n, int16_t* symbols) {
    constexpr size_t kLanes = size_t{Count} * V::kWidth;
    return decode_steps<K, kLanes>(stream, mixtures, n, symbols, [&](DecodeStream& s, size_t at, int16_t* out) {
        Elements<V, K> elements[Count];
        for (int v = 0; v < Count; ++v) {
            elements[v] = load_elements<V, K>(mixtures, at + v * V::kWidth);
        }
        Entries<kLanes> entries;
        find_entries<V, Count, K>(elements, s.states, entries);
        return advance_lanes<kLanes>(s, entries, kLanes, out);
    });
}

template <typename V, uint32_t K>
void code_vectors(const Mixtures& mixtures, const int16_t* symbols, size_t n, uint32_t* codes) {
    using U32 = typename V::U32;
    size_t i = 0;
    for (; i + V::kWidth <= n; i += V::kWidth) {
        const Elements<V, K> e = load_elements<V, K>(mixtures, i);
        // A symbol below `first` wraps around to far above n, as does one above the reach: unsigned comparison.
        const U32 j = V::minimum_unsigned(V::subtract(V::load_signed(symbols + i), e.first), e.size);
        const auto escape = V::equal(j, e.size);
        const U32 start = edges<V, K>(e, j);
        const U32 end = V::select(escape, V::set(kProbabilityTotal), edges<V, K>(e, V::add(j, V::set(1))));
        const U32 frequency = V::template shift_left<kProbabilityBits>(V::subtract(end, start));
        V::store(codes + i, V::add(V::add(start, frequency), V::select(escape, V::set(kCodeEscape), V::set(0))));
    }
    code_scalar<K>(mixtures, symbols, i, n, codes);
}

template <typename V>
void code_by_vectors(const Mixtures& mixtures, const int16_t* symbols, size_t n, uint32_t* codes) {
    switch (mixtures.components) {
        case 1: return code_vectors<V, 1>(mixtures, symbols, n, codes);
        case 2: return code_vectors<V, 2>(mixtures, symbols, n, codes);
        case 3: return code_vectors<V, 3>(mixtures, symbols, n, codes);
        default: return code_vectors<V, 4>(mixtures, symbols, n, codes);
    }
}

template <typename V, int Count>
Error decode_by_vectors(DecodeStream& stream, const Mixtures& mixtures, size_t n, int16_t* symbols) {
    switch (mixtures.components) {
        case 1: return decode_vectors<V, Count, 1>(stream, mixtures, n, symbols);
        case 2: return decode_vectors<V, Count, 2>(stream, mixtures, n, symbols);
        case 3: return decode_vectors<V, Count, 3>(stream, mixtures, n, symbols);
        default: return decode_vectors<V, Count, 4>(stream, mixtures, n, symbols);
    }
}

}  // namespace
}  // namespace fastcodec::rans
