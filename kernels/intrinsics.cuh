// What CUDA C++ has no portable word for. Inline PTX stands in this file and nowhere else; each function has a twin in
// plain C++, so that the kernels also run on a CPU (tests/cuda_shim).
#pragma once

#include <cstdint>

namespace fastcodec {

#if defined(__CUDACC__)

// The bits of a float rounded to half precision, to nearest even.
__device__ __forceinline__ uint16_t float16_bits(float value) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// The bits of a float rounded to bfloat16, to nearest even.
__device__ __forceinline__ uint16_t bfloat16_bits(float value) {
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// A pointer that is known to point to global memory: its loads and stores need not find out.
template <typename T>
__device__ __forceinline__ T* global(T* pointer) {
    __builtin_assume(__isGlobal(pointer));
    return pointer;
}

// The value, in a register from here on: the compiler may not compute it anew, from more, where it is used.
__device__ __forceinline__ uint32_t kept(uint32_t value) {
    asm("" : "+r"(value));
    return value;
}
template <typename T>
__device__ __forceinline__ T* kept(T* pointer) {
    asm("" : "+l"(pointer));
    return pointer;
}

#else

template <typename T>
T* global(T* pointer) {
    return pointer;
}

inline uint32_t kept(uint32_t value) { return value; }
template <typename T>
T* kept(T* pointer) {
    return pointer;
}

inline uint16_t float16_bits(float value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    const uint32_t sign = bits >> 16 & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return 0x7fff;  // not a number; PTX gives the canonical one
    }
    if (magnitude >= 0x477ff000) {
        return static_cast<uint16_t>(sign | 0x7c00);  // rounds past 65504
    }
    if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves value * 2^24, rounded, in the low bits
        const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3f000000));
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

inline uint16_t bfloat16_bits(float value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return 0x7fff;
    }
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif

}  // namespace fastcodec
