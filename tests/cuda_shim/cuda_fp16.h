// Host twin of CUDA's header: the conversion to half precision, for the host shim.
#pragma once

#include <bit>
#include <cstdint>

struct __half {
    unsigned short bits;
};

// Rounds to nearest, ties to even, as the GPU does: NaN becomes 0x7fff, 65520 and above infinity.
inline __half __float2half_rn(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t result;
    if (magnitude > 0x7f800000u) {
        return {0x7fff};
    }
    if (magnitude >= 0x477ff000u) {
        result = 0x7c00u;
    } else if (magnitude < 0x38800000u) {
        // Below 2^-14 halves are multiples of 2^-24, which is the last place of 0.5f: this addition rounds.
        result = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - std::bit_cast<uint32_t>(0.5f);
    } else {
        result = ((magnitude + 0xfffu + (magnitude >> 13 & 1u)) >> 13) - ((127u - 15u) << 10);
    }
    return {static_cast<unsigned short>(sign | result)};
}
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short x) { return {x}; }
