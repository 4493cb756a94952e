// Host twin of CUDA's header: the conversion to bfloat16, for the host shim.
#pragma once

#include <bit>
#include <cstdint>

struct __nv_bfloat16 {
    unsigned short bits;
};

// Rounds to nearest, ties to even, as the GPU does: NaN becomes 0x7fff.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return {0x7fff};
    }
    return {static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return {x}; }
