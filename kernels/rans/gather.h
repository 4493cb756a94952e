// Table lookups of the x86 twins as the plain loads that a gather is made of.
//
// The instruction is no faster where it is at its best: on Zen 5 decoding takes 4 to 14 % less time without it. On many
// Intel processors it takes several times as long since microcode keeps it from leaking data (CVE-2022-40982).
#pragma once

#include <immintrin.h>

#include "rans.h"

namespace fastcodec::rans {
namespace {

// The 8 bytes at each of two places, which are 32-bit numbers, in units of Scale bytes.
template <int Scale>
FASTCODEC_INLINE __m128i load_two(const void* base, uint64_t places) {
    const auto load = [&](uint64_t place) __attribute__((always_inline)) {
        long long value;
        __builtin_memcpy(&value, static_cast<const char*>(base) + Scale * place, sizeof(value));
        return value;
    };
    return _mm_insert_epi64(_mm_cvtsi64_si128(load(places & 0xffffffffu)), load(places >> 32), 1);
}

// Likewise four places, as the first two and the last two.
template <int Scale>
FASTCODEC_INLINE void load_four(const void* base, __m128i places, __m128i& first, __m128i& last) {
    first = load_two<Scale>(base, static_cast<uint64_t>(_mm_cvtsi128_si64(places)));
    last = load_two<Scale>(base, static_cast<uint64_t>(_mm_extract_epi64(places, 1)));
}

}  // namespace
}  // namespace fastcodec::rans
