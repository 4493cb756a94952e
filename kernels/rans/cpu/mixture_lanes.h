// The loops of mixture passes, written once: element by element for the scalar twin, and for every vector width, with
// the operations of lanes.h's struct V.
//
// V::kWidth lanes make a vector; Count vectors make a step, so N = Count * V::kWidth lanes. A step's search for its
// entries is nearly all of the work and does not depend on the order of words, so it takes all lanes at once; the
// states are then advanced and refilled lane by lane, as they are in a pass's last, partial step. Fewer lanes than a
// vector has are searched for one after the other. Edges are strictly increasing, so every way to search gives the
// same.
#pragma once

#include <cstring>

#include "loops.h"

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

    FASTCODEC_INLINE void take(size_t lane, const Found& found) {
        start[lane] = found.start;
        end[lane] = found.start + found.frequency;
        symbol[lane] = found.symbol;
        escapes |= static_cast<uint32_t>(found.escape) << lane;
    }
};

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
        entries.take(lane, mixture_find(mixture_tables(), element_at<K>(mixtures, at + lane), slot_of(s.states[lane])));
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
        const U32 packed = V::template gather<4>(kTableValues.scales, V::load_indexes(m.scales + k * m.plane + at));
        const U32 reach = V::template shift_right<16>(packed);
        e.weights[k] = V::load_weights(m.weights + k * m.plane + at);
        means[k] = V::load_symbols(m.means + k * m.plane + at);
        const typename V::Mask absent = V::equal(e.weights[k], V::set(0));
        low = V::minimum_signed(low, V::select(absent, low, V::subtract(means[k], reach)));
        high = V::maximum_signed(high, V::select(absent, high, V::add(means[k], reach)));
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
        const U32 t = V::minimum_signed(V::maximum_signed(V::add(z, limit), V::set(0)), V::set(2 * kDeviateLimit));
        const U32 packed = V::template gather<4>(kTableValues.phi, V::template shift_right<kDeviateRest>(t));
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

// ---------------------------------------------------------------------------------------------------------------------
// Few lanes: one element after the other, a vector of its edges
//
// Most of a search does not depend on the state. It is done ahead, for a block of elements at once, where nothing waits
// for anything: all edges of an element that has no more entries than a vector, else guesses at edges that are evenly
// spaced, by an approximation of Phi that needs no table. What waits for the state is then one vector of edges by the
// rule: the gap between two guesses, and an entry more at both of its ends. Guesses err by some four slots; should the
// slot lie outside all the same (one in 10^4 or fewer), mixture.h's search finds it. So they decide the time alone.

constexpr uint32_t kMostGuesses = 12;  // vectors of them; wider elements are left to the rule's search

// The next V::kWidth elements of a stream.
template <typename V, uint32_t K>
struct Block {
    using U32 = typename V::U32;
    using F32 = typename V::F32;
    static constexpr uint32_t kWidth = V::kWidth;
    static constexpr uint32_t kGap = kWidth - 3;  // entries between guesses, at most

    // As Elements, one in each column.
    alignas(64) uint32_t first[kWidth];
    alignas(64) uint32_t size[kWidth];
    alignas(64) uint32_t weights[K][kWidth];
    alignas(64) uint32_t distances[K][kWidth];
    alignas(64) uint32_t multipliers[K][kWidth];
    alignas(64) uint32_t shifts[K][kWidth];
    alignas(64) float shares[K][kWidth];  // half the slots that a component shares out
    alignas(64) float slopes[K][kWidth];  // z of the edge j is slope * j + origin
    alignas(64) float origins[K][kWidth];

    struct Edges {
        alignas(64) uint32_t exact[kWidth + 1];            // of all entries, if there are no more than kWidth
        alignas(64) float guesses[kMostGuesses * kWidth];  // else of the entries 0, spacing, 2 spacing, ...
        uint32_t spacing;
        uint32_t vectors;  // of guesses; 0: there are none
    } edges[kWidth];

    // Those from `at` on.
    FASTCODEC_INLINE void prepare(const Mixtures& mixtures, size_t at) {
        const Elements<V, K> e = load_elements<V, K>(mixtures, at);
        V::store(first, e.first);
        V::store(size, e.size);
        const F32 spread = V::to_float(V::subtract(V::set(kProbabilityTotal - 1), e.size));
        for (uint32_t k = 0; k < K; ++k) {
            V::store(weights[k], e.weights[k]);
            V::store(distances[k], e.distances[k]);
            V::store(multipliers[k], e.multipliers[k]);
            V::store(shifts[k], e.shifts[k]);
            // 2^-(shift + kDeviateBits), by its exponent
            const U32 exponent = V::subtract(V::set(127 - kDeviateBits), e.shifts[k]);
            const F32 slope =
                V::multiply_float(V::to_float(e.multipliers[k]), V::as_float(V::template shift_left<23>(exponent)));
            V::store_float(slopes[k], V::multiply_float(slope, V::set_float(1 << kMixtureMeanBits)));
            V::store_float(origins[k], V::multiply_float(slope, V::to_float(e.distances[k])));
            V::store_float(shares[k], V::multiply_float(V::multiply_float(V::to_float(e.weights[k]), spread),
                                                        V::set_float(0.5f / kMixtureWeightTotal)));
        }
        for (uint32_t i = 0; i < kWidth; ++i) {
            Edges& own = edges[i];
            own.vectors = 0;
            if (size[i] < kWidth) {
                V::store(own.exact, edges_from(i, 0));
                own.exact[kWidth] = kProbabilityTotal;
            } else if (const uint32_t wanted = size[i] / (kWidth * kGap) + 1; wanted <= kMostGuesses) {
                own.vectors = wanted;
                own.spacing = size[i] / (kWidth * wanted) + 1;
                guess(i);
            }
        }
    }

    // kWidth edges of element i by the rule, from the entry `base` on; beyond the last entry 2^14.
    FASTCODEC_INLINE U32 edges_from(uint32_t i, uint32_t base) const {
        Elements<V, K> e;
        e.size = V::set(size[i]);
        for (uint32_t k = 0; k < K; ++k) {
            e.weights[k] = V::set(weights[k][i]);
            e.distances[k] = V::set(distances[k][i]);
            e.multipliers[k] = V::set(multipliers[k][i]);
            e.shifts[k] = V::set(shifts[k][i]);
        }
        const U32 j = V::add(V::set(base), V::ascending());
        return V::select(V::greater(j, e.size), V::set(kProbabilityTotal), rans::edges<V, K>(e, V::minimum(j, e.size)));
    }

    // Phi(z) is 1 - p^-4 / 2 for z >= 0, with p = 1 + c1 z + c2 z^2 + c3 z^3 + c4 z^4, to 2.5e-4 (Abramowitz and Stegun
    // 1964, equation 26.2.18).
    FASTCODEC_INLINE void guess(uint32_t i) {
        Edges& own = edges[i];
        const F32 one = V::set_float(1.0f);
        const F32 half = V::set_float(0.5f * static_cast<float>(kProbabilityTotal - 1 - size[i]));
        for (uint32_t v = 0; v < own.vectors; ++v) {
            const F32 j = V::to_float(V::multiply(V::add(V::ascending(), V::set(v * kWidth)), V::set(own.spacing)));
            F32 edge = V::add_float(half, j);
            for (uint32_t k = 0; k < K; ++k) {
                const F32 z = V::multiply_add(V::set_float(slopes[k][i]), j, V::set_float(origins[k][i]));
                const F32 a = V::magnitude(z);
                F32 p = V::multiply_add(V::set_float(0.019527f), a, V::set_float(0.000344f));
                p = V::multiply_add(p, a, V::set_float(0.115194f));
                p = V::multiply_add(p, a, V::set_float(0.196854f));
                p = V::multiply_add(p, a, one);
                p = V::multiply_float(p, p);
                const F32 tail = V::reciprocal(V::multiply_float(p, p));
                const F32 above = V::with_sign_of(V::subtract_float(one, tail), z);
                edge = V::multiply_add(V::set_float(shares[k][i]), above, edge);
            }
            V::store_float(own.guesses + v * kWidth, edge);
        }
    }

    // The entry of a slot of element i, which is number `at` of the stream.
    FASTCODEC_INLINE Found find(uint32_t i, uint32_t slot, const Mixtures& mixtures, size_t at) {
        Edges& own = edges[i];
        uint32_t base = 0;
        U32 edge;
        if (size[i] < kWidth) {
            edge = V::load(own.exact);
        } else if (own.vectors == 0) [[unlikely]] {
            return mixture_find(mixture_tables(), element_at<K>(mixtures, at), slot);
        } else {
            const F32 target = V::set_float(static_cast<float>(slot) + 0.5f);
            uint32_t below = 0;
            for (uint32_t v = 0; v < own.vectors; ++v) {
                const uint32_t bits = V::bits_at_most(V::load_float(own.guesses + v * kWidth), target);
                below += static_cast<uint32_t>(__builtin_popcount(bits));
            }
            base = below > 1 ? (below - 1) * own.spacing - 1 : 0;
            edge = edges_from(i, base);
            V::store(own.exact, edge);
        }
        const uint32_t above = V::bits(V::greater(edge, V::set(slot)));
        const uint32_t count = static_cast<uint32_t>(__builtin_ctz(above | 1u << kWidth));
        if (count == 0 || (count == kWidth && size[i] >= kWidth)) [[unlikely]] {
            return mixture_find(mixture_tables(), element_at<K>(mixtures, at), slot);
        }
        const uint32_t start = own.exact[count - 1];
        const uint32_t j = base + count - 1;
        return {start, own.exact[count] - start, first[i] + j, j == size[i]};
    }
};

// The last elements, fewer than a block, are searched by mixture.h.
template <typename V, uint32_t K, size_t Lanes>
Error decode_by_blocks(DecodeStream& stream, const Mixtures& mixtures, size_t n, int16_t* symbols) {
    constexpr size_t kWidth = V::kWidth;
    static_assert(kWidth % Lanes == 0);
    Block<V, K> block;
    return decode_steps<K, Lanes>(stream, mixtures, n, symbols, [&](DecodeStream& s, size_t at, int16_t* out) {
        if (n - at / kWidth * kWidth < kWidth) {
            return decode_one_by_one<K, Lanes>(s, mixtures, at, Lanes, out);
        }
        if (at % kWidth == 0) {
            block.prepare(mixtures, at);
        }
        Entries<Lanes> entries;
        entries.escapes = 0;
        for (size_t lane = 0; lane < Lanes; ++lane) {
            const uint32_t slot = slot_of(s.states[lane]);
            entries.take(lane, block.find(static_cast<uint32_t>(at % kWidth + lane), slot, mixtures, at + lane));
        }
        return advance_lanes<Lanes>(s, entries, Lanes, out);
    });
}

template <typename V, int Count, uint32_t K>
Error decode_mixture_vectors(DecodeStream& stream, const Mixtures& mixtures, size_t n, int16_t* symbols) {
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
        const U32 j = V::minimum(V::subtract(V::load_symbols(symbols + i), e.first), e.size);
        const auto escape = V::equal(j, e.size);
        const U32 start = edges<V, K>(e, j);
        const U32 end = V::select(escape, V::set(kProbabilityTotal), edges<V, K>(e, V::add(j, V::set(1))));
        const U32 frequency = V::template shift_left<kCodeFrequency>(V::subtract(end, start));
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

// Vectors of lanes where they fill one, else blocks.
template <typename V, uint32_t K, size_t Lanes>
Error decode_lanes_by_vectors(DecodeStream& stream, const Mixtures& mixtures, size_t n, int16_t* symbols) {
    if constexpr (Lanes >= V::kWidth) {
        return decode_mixture_vectors<V, static_cast<int>(Lanes) / V::kWidth, K>(stream, mixtures, n, symbols);
    } else {
        return decode_by_blocks<V, K, Lanes>(stream, mixtures, n, symbols);
    }
}

template <typename V, uint32_t K>
Error decode_components_by_vectors(DecodeStream& stream, uint32_t lanes, const Mixtures& mixtures, size_t n,
                                   int16_t* symbols) {
    switch (lanes) {
        case 1: return decode_lanes_by_vectors<V, K, 1>(stream, mixtures, n, symbols);
        case 2: return decode_lanes_by_vectors<V, K, 2>(stream, mixtures, n, symbols);
        case 4: return decode_lanes_by_vectors<V, K, 4>(stream, mixtures, n, symbols);
        case 8: return decode_lanes_by_vectors<V, K, 8>(stream, mixtures, n, symbols);
        case 16: return decode_lanes_by_vectors<V, K, 16>(stream, mixtures, n, symbols);
        default: return decode_lanes_by_vectors<V, K, 32>(stream, mixtures, n, symbols);
    }
}

template <typename V>
Error decode_by_vectors(DecodeStream& stream, uint32_t lanes, const Mixtures& mixtures, size_t n, int16_t* symbols) {
    switch (mixtures.components) {
        case 1: return decode_components_by_vectors<V, 1>(stream, lanes, mixtures, n, symbols);
        case 2: return decode_components_by_vectors<V, 2>(stream, lanes, mixtures, n, symbols);
        case 3: return decode_components_by_vectors<V, 3>(stream, lanes, mixtures, n, symbols);
        default: return decode_components_by_vectors<V, 4>(stream, lanes, mixtures, n, symbols);
    }
}

}  // namespace
}  // namespace fastcodec::rans
