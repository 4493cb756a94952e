// The rule by which Gaussian mixtures become probabilities at coding time, stated once, in integers only.
//
// The tables of rans.h hold one distribution for each scale. A mixture of several Gaussians a symbol (Cheng et al.
// 2020, equation 8) has too many parameters for tables, so its cumulative distribution is evaluated where it is needed:
// at the two edges of a symbol to encode it, along a search to decode it. Every twin (scalar, AVX2, AVX-512, CUDA)
// includes this file. It compiles as C++20 and as CUDA device code.
//
// An element's parameters
// -----------------------
// K components, 1 to 4, each of three integers:
//
//   weight  0..4096   in units of 2^-12; the weights of an element sum to 4096 exactly
//   mean    int16     in units of 2^-6: -512 .. 511.98
//   scale   uint8     a logarithm, 24 steps an octave: sigma = 2^((scale - 80) / 24), that is 0.0992 .. 156.7
//
// A component of weight 0 counts as absent. How network outputs become these integers is the caller's affair; rounding
// them to these units costs less than 0.01 % of the rate (docs/mixture.md).
//
// The rule
// --------
// Reach. For a component, r is 4 sigma in units of 1/64, rounded up. With lo the least mean - r of the components and
// hi the greatest mean + r, the symbols first = (lo + 32) >> 6 .. last = (hi + 32) >> 6 are in reach: those whose unit
// intervals hold lo, hi and all between. There are n = last - first + 1 of them, and an element has n + 1 entries:
// entry j < n codes the symbol first + j, entry n is the sentinel of an escape (rans.h), which stands for every other
// value.
//
// Edges. Entry j has the slots E(j) .. E(j + 1) - 1, with E(n + 1) = 2^14 and for 0 <= j <= n
//
//   d_k  = 64 (first + j) - 32 - mean_k                   from the mean to the edge, in 1/64
//   z_k  = (d_k * 4 m_k) >> e_k                           d / sigma with 15 fraction bits
//   t_k  = clamp(z_k, -5 * 2^15, 5 * 2^15) + 5 * 2^15
//   P_k  = T[t_k >> 9] + ((T[(t_k >> 9) + 1] - T[t_k >> 9]) * (t_k & 511) >> 9)
//   G    = (sum of weight_k * P_k) >> 13                  the mixture's distribution function, times 2^18
//   E(j) = j + ((G * (2^14 - 1 - n) + 2^17) >> 18)
//
// where m = round(2^(7 + e) / sigma) with e such that 2^11 <= m < 2^12; T[i] = round(2^19 Phi(i / 64 - 5)) for i from
// 0 to 640, and T[641] = T[640], is the standard normal distribution function; and >> is the arithmetic shift. So every
// entry takes one slot of its own, and the others are shared by probability. What lies below the reach, 3.2e-5 at most,
// goes to the first entry, and what lies above it to the sentinel.
//
// Why it is sound
// ---------------
//  * No overflow. |mean| <= 2^15 and 4 sigma < 627 keep first + j within +-1140, so |d| <= 64 * 1140 + 32 + 2^15, below
//    2^16.7; 4 m < 2^14, so |d * 4 m| < 2^31. A step of T is below 3269, times 511 below 2^21. The sum of weight * P is
//    at most 2^12 * 2^19 = 2^31, as uint32. G <= 2^18 and the factor 2^14 - 1 - n is at most 2^14 - 2, so their product
//    plus 2^17 is below 2^32.
//  * Monotone. d grows with j; multiplying by m > 0, the shift, the clamp and the addition keep the order. P grows with
//    t: within a step of T by the floor of a product with a number that is not negative, and from one step to the next
//    because at 511 it is at most T[i + 1]. Weights are not negative and shifts are monotone, so G does not fall from j
//    to j + 1, nor does the second term of E: E(j + 1) >= E(j) + 1.
//  * E(0) = 0. The lower edge of `first` is at lo or below it, so d_k is at most -4 sigma, and z_k < -4 + 1 / 1024
//    however m is rounded. There P <= 17 (T[64] is 17 and T[65] is 18), so G <= 17 * 2^12 >> 13 = 8, and
//    8 (2^14 - 2) + 2^17 < 2^18.
//  * Totals. G <= 2^18 gives E(n) <= n + 2^14 - 1 - n = 2^14 - 1: the rounding term alone reaches no further integer.
//    So the sentinel has a slot at least, and the frequencies sum to 2^14, each at least 1, whatever the parameters.
//    n <= 2279, so the factor is positive.
//  * Decoding. E is strictly increasing, so the entry of a slot is unique, and twins may search for it as they like.
//    Halving the interval of n + 1 entries takes at most 12 evaluations.
//
// How close it is
// ---------------
// P is within 1.0e-5 of Phi: T is rounded by 2^-20, interpolation errs by h^2 / 8 max |Phi''| = 7.4e-6, and a floor
// takes 2^-19. z is rounded by 2^-15; m, of 12 bits, makes sigma up to 0.02 % wider or narrower. All that is below
// 2^-14, the resolution of the probabilities. What counts for the rate is the slot that each entry in reach takes for
// itself: 0.13 % with three components at sigmas of 40 to 64.
#pragma once

#include "rans.h"

namespace fastcodec::rans {

constexpr uint32_t kMixtureComponents = 4;  // at most
constexpr int kMixtureWeightBits = 12;
constexpr uint32_t kMixtureWeightTotal = 1u << kMixtureWeightBits;
constexpr int kMixtureMeanBits = 6;
constexpr int kMixtureScaleSteps = 24;   // an octave
constexpr int kMixtureScaleOrigin = 80;  // the scale that stands for sigma = 1

// Phi's table: 64 steps a sigma from -5 to 5, 19 bits.
constexpr int kPhiBits = 19;
constexpr int kPhiStepBits = 6;
constexpr int kPhiSigmas = 5;
constexpr int kPhiHalf = kPhiSigmas << kPhiStepBits;
constexpr int kPhiCount = 2 * kPhiHalf + 1;
constexpr int kPhiSlopeBits = 32 - kPhiBits - 1;
constexpr int kDeviateBits = 15;  // fraction bits of z
constexpr int kDeviateLimit = kPhiSigmas << kDeviateBits;
constexpr int kDeviateRest = kDeviateBits - kPhiStepBits;
constexpr int kMixtureBits = 18;  // of G

// round(2^19 Phi(i / 64)). A test computes it anew.
constexpr uint32_t kPhiUpper[kPhiHalf + 1] = {
    262144, 265412, 268679, 271945, 275208, 278468, 281724, 284975, 288221, 291461, 294693, 297917, 301133, 304339,
    307536, 310721, 313895, 317056, 320204, 323338, 326458, 329563, 332652, 335724, 338779, 341816, 344835, 347835,
    350815, 353774, 356713, 359630, 362525, 365398, 368248, 371074, 373876, 376654, 379406, 382134, 384835, 387510,
    390159, 392780, 395374, 397940, 400479, 402989, 405470, 407922, 410346, 412740, 415104, 417438, 419743, 422017,
    424261, 426474, 428657, 430809, 432930, 435021, 437081, 439109, 441107, 443074, 445009, 446914, 448788, 450631,
    452444, 454225, 455976, 457697, 459387, 461046, 462676, 464276, 465846, 467386, 468897, 470379, 471831, 473255,
    474651, 476018, 477357, 478668, 479951, 481207, 482437, 483639, 484815, 485965, 487090, 488188, 489262, 490310,
    491335, 492334, 493310, 494263, 495192, 496099, 496982, 497844, 498684, 499503, 500300, 501077, 501833, 502569,
    503285, 503983, 504661, 505320, 505962, 506585, 507191, 507780, 508352, 508907, 509446, 509969, 510477, 510970,
    511448, 511911, 512360, 512796, 513218, 513627, 514022, 514406, 514777, 515136, 515483, 515820, 516145, 516459,
    516763, 517057, 517340, 517614, 517879, 518134, 518381, 518619, 518848, 519070, 519283, 519489, 519688, 519879,
    520063, 520240, 520411, 520575, 520734, 520886, 521032, 521173, 521309, 521439, 521564, 521684, 521799, 521910,
    522017, 522119, 522217, 522311, 522401, 522487, 522570, 522650, 522726, 522799, 522868, 522935, 522999, 523061,
    523119, 523175, 523229, 523280, 523329, 523376, 523421, 523463, 523504, 523543, 523580, 523616, 523650, 523682,
    523713, 523742, 523770, 523797, 523822, 523846, 523869, 523891, 523912, 523932, 523950, 523968, 523985, 524002,
    524017, 524032, 524046, 524059, 524071, 524083, 524094, 524105, 524115, 524125, 524134, 524143, 524151, 524159,
    524166, 524173, 524180, 524186, 524192, 524197, 524203, 524208, 524212, 524217, 524221, 524225, 524229, 524232,
    524236, 524239, 524242, 524244, 524247, 524250, 524252, 524254, 524256, 524258, 524260, 524262, 524263, 524265,
    524266, 524268, 524269, 524270, 524271, 524272, 524273, 524274, 524275, 524276, 524277, 524278, 524278, 524279,
    524280, 524280, 524281, 524281, 524282, 524282, 524282, 524283, 524283, 524283, 524284, 524284, 524284, 524285,
    524285, 524285, 524285, 524285, 524286, 524286, 524286, 524286, 524286, 524286, 524286, 524287, 524287, 524287,
    524287, 524287, 524287, 524287, 524287, 524287, 524287, 524287, 524287, 524287, 524287, 524288, 524288, 524288,
    524288, 524288, 524288, 524288, 524288, 524288, 524288, 524288, 524288, 524288, 524288, 524288, 524288};

// round(2^31 * 2^(i / 24)): the scales of one octave.
constexpr uint32_t kMixtureOctave[kMixtureScaleSteps] = {
    2147483648u, 2210409722u, 2275179671u, 2341847524u, 2410468894u, 2481101024u, 2553802834u, 2628634969u,
    2705659852u, 2784941738u, 2866546760u, 2950542991u, 3037000500u, 3125991407u, 3217589947u, 3311872529u,
    3408917802u, 3508806718u, 3611622603u, 3717451223u, 3826380858u, 3938502376u, 4053909305u, 4172697914u};

// What the twins look up, one read of four bytes each.
struct MixtureTables {
    const uint32_t* phi;     // [kPhiCount]: T[i] << 12 | T[i + 1] - T[i]
    const uint32_t* scales;  // [256]: ceil(4 * 64 * sigma) << 16 | m << 4 | e
};

struct MixtureTableValues {
    uint32_t phi[kPhiCount];
    uint32_t scales[256];
};

constexpr MixtureTableValues make_mixture_tables() {
    MixtureTableValues out{};
    uint32_t t[kPhiCount + 1] = {};
    for (int i = 0; i <= kPhiHalf; ++i) {
        t[kPhiHalf + i] = kPhiUpper[i];
        t[kPhiHalf - i] = (1u << kPhiBits) - kPhiUpper[i];
    }
    t[kPhiCount] = t[kPhiCount - 1];  // the slope at the upper end is 0
    for (int i = 0; i < kPhiCount; ++i) {
        out.phi[i] = t[i] << kPhiSlopeBits | (t[i + 1] - t[i]);
    }
    // With scale - 80 = 24 a + b, 0 <= b < 24, sigma is 2^a times the b-th of an octave; likewise 1 / sigma.
    const auto octave = [](int steps) { return (steps + 100 * kMixtureScaleSteps) / kMixtureScaleSteps - 100; };
    for (int scale = 0; scale < 256; ++scale) {
        const int up = scale - kMixtureScaleOrigin;
        const int a = octave(up);
        const uint64_t sigma = kMixtureOctave[up - a * kMixtureScaleSteps];
        // 4 * 64 * sigma in units of which sigma has 2^31 2^-a; a >= -4
        const uint64_t unit = uint64_t{1} << (23 - a);
        const uint64_t reach = (sigma + unit - 1) / unit;
        const int down = octave(-up);
        const uint64_t inverse = kMixtureOctave[-up - down * kMixtureScaleSteps];
        // 1 / sigma is 2^down times inverse / 2^31, so m / 2^e = 2^7 / sigma for m = inverse / 2^20 and e = 4 - down
        const uint64_t multiplier = (inverse + (1u << 19)) >> 20;
        out.scales[scale] = static_cast<uint32_t>(reach << 16 | multiplier << 4 | static_cast<uint64_t>(4 - down));
    }
    return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// One element

FASTCODEC_INLINE int32_t mixture_reach(uint32_t packed) { return static_cast<int32_t>(packed >> 16); }
// 4 m
FASTCODEC_INLINE int32_t mixture_multiplier(uint32_t packed) { return static_cast<int32_t>(packed >> 2 & 0x3ffc); }
FASTCODEC_INLINE int32_t mixture_shift(uint32_t packed) { return static_cast<int32_t>(packed & 15); }

// Widens the reach low .. high, in 1/64, by a component; one of weight 0 leaves it. Begins with kReachNone,
// -kReachNone.
constexpr int32_t kReachNone = 1 << 20;
FASTCODEC_INLINE int32_t mixture_lower(int32_t low, uint32_t weight, int32_t mean, uint32_t packed) {
    const int32_t edge = weight == 0 ? kReachNone : mean - mixture_reach(packed);
    return edge < low ? edge : low;
}
FASTCODEC_INLINE int32_t mixture_upper(int32_t high, uint32_t weight, int32_t mean, uint32_t packed) {
    const int32_t edge = weight == 0 ? -kReachNone : mean + mixture_reach(packed);
    return edge > high ? edge : high;
}
// The symbol whose unit interval holds a value in 1/64.
FASTCODEC_INLINE int32_t mixture_symbol(int32_t value) { return (value + 32) >> kMixtureMeanBits; }

// weight * P of one component at an edge that is `distance` from its mean, in 1/64.
FASTCODEC_INLINE uint32_t mixture_term(const uint32_t* phi, uint32_t weight, int32_t distance, int32_t multiplier,
                                       int32_t shift) {
    int32_t z = (distance * multiplier) >> shift;
    z = z < -kDeviateLimit ? -kDeviateLimit : z;
    z = z > kDeviateLimit ? kDeviateLimit : z;
    const uint32_t t = static_cast<uint32_t>(z + kDeviateLimit);
    const uint32_t packed = phi[t >> kDeviateRest];
    const uint32_t slope = packed & ((1u << kPhiSlopeBits) - 1);
    const uint32_t fraction = t & ((1u << kDeviateRest) - 1);
    return weight * ((packed >> kPhiSlopeBits) + (slope * fraction >> kDeviateRest));
}

// E(j) from the sum of all components' terms, j <= n.
FASTCODEC_INLINE uint32_t mixture_edge(uint32_t sum, uint32_t j, uint32_t size) {
    const uint32_t g = sum >> (kMixtureWeightBits + kPhiBits - kMixtureBits);
    const uint32_t spread = kProbabilityTotal - 1 - size;
    return j + ((g * spread + (1u << (kMixtureBits - 1))) >> kMixtureBits);
}

// An element's parameters as they are stored. Where there are fewer than K components, the others have weight 0.
template <uint32_t K>
struct MixtureParameters {
    uint32_t weights[K];
    int32_t means[K];
    uint32_t scales[K];
};

// Those of element `at`, in `components` planes of `plane` elements; components <= K.
template <uint32_t K>
FASTCODEC_INLINE MixtureParameters<K> load_mixture(const uint16_t* weights, const int16_t* means, const uint8_t* scales,
                                                   uint32_t components, size_t plane, size_t at) {
    MixtureParameters<K> p;
    for (uint32_t k = 0; k < K; ++k) {
        const bool present = k < components;
        p.weights[k] = present ? weights[k * plane + at] : 0u;
        p.means[k] = present ? means[k * plane + at] : 0;
        p.scales[k] = present ? scales[k * plane + at] : 0u;
    }
    return p;
}

// Whether the weights are normalised. An element is evaluated only if they are: the bounds above rest on it.
template <uint32_t K>
FASTCODEC_INLINE bool mixture_valid(const MixtureParameters<K>& p) {
    uint32_t sum = 0;
    for (uint32_t k = 0; k < K; ++k) {
        sum += p.weights[k];
    }
    return sum == kMixtureWeightTotal;
}

// An element ready for evaluation.
template <uint32_t K>
struct MixtureElement {
    int32_t first;  // symbol of entry 0
    uint32_t size;  // n, symbols in reach: the sentinel's entry is number n
    uint32_t weights[K];
    int32_t distances[K];  // of entry 0's lower edge from the means, in 1/64
    uint32_t scales[K];    // packed
};

template <uint32_t K>
FASTCODEC_INLINE MixtureElement<K> mixture_element(const MixtureTables& tables, const MixtureParameters<K>& p) {
    MixtureElement<K> e;
    int32_t low = kReachNone;
    int32_t high = -kReachNone;
    for (uint32_t k = 0; k < K; ++k) {
        e.weights[k] = p.weights[k];
        e.scales[k] = tables.scales[p.scales[k]];
        low = mixture_lower(low, p.weights[k], p.means[k], e.scales[k]);
        high = mixture_upper(high, p.weights[k], p.means[k], e.scales[k]);
    }
    e.first = mixture_symbol(low);
    e.size = static_cast<uint32_t>(mixture_symbol(high) - e.first + 1);
    for (uint32_t k = 0; k < K; ++k) {
        e.distances[k] = (e.first << kMixtureMeanBits) - 32 - p.means[k];
    }
    return e;
}

// E(j), j <= n.
template <uint32_t K>
FASTCODEC_INLINE uint32_t mixture_edge(const MixtureTables& tables, const MixtureElement<K>& e, uint32_t j) {
    uint32_t sum = 0;
    for (uint32_t k = 0; k < K; ++k) {
        sum += mixture_term(tables.phi, e.weights[k], e.distances[k] + static_cast<int32_t>(j << kMixtureMeanBits),
                            mixture_multiplier(e.scales[k]), mixture_shift(e.scales[k]));
    }
    return mixture_edge(sum, j, e.size);
}

// How a symbol is coded: by its own entry, or the sentinel's. `symbol` of the result is of no meaning.
template <uint32_t K>
FASTCODEC_INLINE Found mixture_code(const MixtureTables& tables, const MixtureElement<K>& e, int32_t symbol) {
    // Below `first` the difference wraps around to far above n.
    const uint32_t position = static_cast<uint32_t>(symbol - e.first);
    const uint32_t j = position < e.size ? position : e.size;
    const uint32_t start = mixture_edge(tables, e, j);
    const uint32_t end = j == e.size ? kProbabilityTotal : mixture_edge(tables, e, j + 1);
    return {start, end - start, 0, j == e.size};
}

// The entry of a slot, by halving.
template <uint32_t K>
FASTCODEC_INLINE Found mixture_find(const MixtureTables& tables, const MixtureElement<K>& e, uint32_t slot) {
    uint32_t lower = 0;
    uint32_t upper = e.size + 1;
    uint32_t start = 0;
    uint32_t end = kProbabilityTotal;
    while (upper - lower > 1) {
        const uint32_t middle = (lower + upper) >> 1;
        const uint32_t edge = mixture_edge(tables, e, middle);
        if (slot < edge) {
            upper = middle;
            end = edge;
        } else {
            lower = middle;
            start = edge;
        }
    }
    return {start, end - start, static_cast<uint32_t>(e.first) + lower, lower == e.size};
}

}  // namespace fastcodec::rans
