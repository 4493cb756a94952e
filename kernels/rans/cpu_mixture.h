// What the CPU twins of the mixture coder share: the view of a pass's parameters and the loops that each one
// implements.
#pragma once

#include "cpu.h"
#include "mixture.h"

namespace fastcodec::rans {

// The parameters of a pass: component k of element i is at [k * plane + i].
struct Mixtures {
    const uint16_t* weights;
    const int16_t* means;
    const uint8_t* scales;
    uint32_t components;
    size_t plane;
};

inline Mixtures from_element(const Mixtures& mixtures, size_t at) {
    return {mixtures.weights + at, mixtures.means + at, mixtures.scales + at, mixtures.components, mixtures.plane};
}

// How a symbol is coded, in one word: everything that the encoder's serial part needs. Both numbers fit 14 bits: an
// element has two entries at least, so none has all the slots.
constexpr uint32_t kCodeEscape = 1u << (2 * kProbabilityBits);
FASTCODEC_INLINE uint32_t pack_code(uint32_t start, uint32_t frequency, bool escape) {
    return start | frequency << kProbabilityBits | (escape ? kCodeEscape : 0);
}
FASTCODEC_INLINE uint32_t code_start(uint32_t code) { return code & (kProbabilityTotal - 1); }
FASTCODEC_INLINE uint32_t code_frequency(uint32_t code) { return code >> kProbabilityBits & (kProbabilityTotal - 1); }

struct MixtureKernels {
    const char* name;
    // Decodes the next n elements, a stream's part of a pass. On an error the failing step's symbols and all later ones
    // are 0.
    Error (*decode)(DecodeStream& stream, uint32_t lanes, const Mixtures& mixtures, size_t n, int16_t* symbols);
    // The codes of n symbols; the order in which elements are taken does not matter.
    void (*code)(const Mixtures& mixtures, const int16_t* symbols, size_t n, uint32_t* codes);
};

const MixtureKernels& scalar_mixture_kernels();
#if defined(__x86_64__)
const MixtureKernels& avx2_mixture_kernels();
const MixtureKernels& avx512_mixture_kernels();
#endif

}  // namespace fastcodec::rans
