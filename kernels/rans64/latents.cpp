// Latents to what `fastcodec.kernels.rans` codes, in one pass over memory. latents.py says what, in PyTorch.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../host.h"

// Plain loops that the compiler vectorises: four times as fast with AVX2, which is chosen when the library is loaded.
#if defined(__x86_64__)
#define FASTCODEC_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define FASTCODEC_CLONES
#endif

namespace {

constexpr size_t kBlock = 4096;  // of elements: stays in the first cache between the loops

// Adding and taking away this rounds as the processor does, and unlike nearbyint it is vectorised.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23

// The symbol of a residual, and whether it does not fit.
inline int16_t symbol_of(float residual, int& outside) {
    const float rounded = (residual + kRounder) - kRounder;
    const float inside = std::min(32767.0f, std::max(-32768.0f, rounded));  // -32768 for NaN too
    outside |= inside != rounded;
    return static_cast<int16_t>(static_cast<int32_t>(inside));
}

FASTCODEC_CLONES bool quantise(size_t n, const float* __restrict latents, const float* __restrict means,
                               int16_t* __restrict symbols) {
    int outside = 0;
    for (size_t i = 0; i < n; ++i) {
        symbols[i] = symbol_of(latents[i] - means[i], outside);
    }
    return outside == 0;
}

FASTCODEC_CLONES bool quantise_row(size_t n, const float* __restrict latents, float mean, int16_t* __restrict symbols) {
    int outside = 0;
    for (size_t i = 0; i < n; ++i) {
        symbols[i] = symbol_of(latents[i] - mean, outside);
    }
    return outside == 0;
}

FASTCODEC_CLONES bool narrow(size_t n, const int32_t* __restrict indexes, uint32_t tables, uint8_t* __restrict out) {
    uint32_t greatest = 0;
    for (size_t i = 0; i < n; ++i) {
        const auto index = static_cast<uint32_t>(indexes[i]);
        greatest = std::max(greatest, index);
        out[i] = static_cast<uint8_t>(index);
    }
    return greatest < tables || n == 0;
}

}  // namespace

// symbols[i] = round(latents[i] - means[i]), halves to even (means may be null: 0); out[i] = indexes[i] mod 256.
// Returns whether all symbols fit int16 and all indexes are below `tables`; otherwise what was written means nothing.
FASTCODEC_API int fastcodec_rans64_quantise(size_t n, const float* latents, const float* means, const int32_t* indexes,
                                            uint32_t tables, int16_t* symbols, uint8_t* out) {
    static const float zeros[kBlock] = {};
    bool good = true;
    for (size_t i = 0; i < n && good; i += kBlock) {
        const size_t count = std::min(kBlock, n - i);
        good = quantise(count, latents + i, means == nullptr ? zeros : means + i, symbols + i) &&
               narrow(count, indexes + i, tables, out + i);
    }
    return good;
}

// symbols[r][i] = round(latents[r][i] - means[r mod channels]), rows of `columns`; returns whether all fit int16.
FASTCODEC_API int fastcodec_rans64_quantise_rows(size_t rows, size_t columns, const float* latents, const float* means,
                                                 size_t channels, int16_t* symbols) {
    bool good = true;
    for (size_t r = 0; r < rows && good; ++r) {
        good = quantise_row(columns, latents + r * columns, means[r % channels], symbols + r * columns);
    }
    return good;
}
