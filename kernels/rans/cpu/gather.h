// Table lookups of the x86 twins as the plain loads that a gather is made of.
//
// The instruction is no faster where it is at its best: on Zen 5 these save 4 to 14 % of decoding and, with AVX2, 5 to
// 20 % of mixtures; only 16 lanes of 4 bytes are even. On many Intel processors it takes several times as long since
// microcode keeps it from leaking data (CVE-2022-40982).
#pragma once

#include <immintrin.h>

#include "../rans.h"

namespace fastcodec::rans {
namespace {

// The T at an index, in units of Scale bytes.
template <typename T, int Scale>
FASTCODEC_INLINE T load_at(const void* base, uint64_t index) {
    T value;
    __builtin_memcpy(&value, static_cast<const char*>(base) + Scale * index, sizeof(value));
    return value;
}

// The 8 bytes at each of two indexes, which are 32-bit numbers.
template <int Scale>
FASTCODEC_INLINE __m128i load_two(const void* base, uint64_t indexes) {
    return _mm_insert_epi64(_mm_cvtsi64_si128(load_at<long long, Scale>(base, indexes & 0xffffffffu)),
                            load_at<long long, Scale>(base, indexes >> 32), 1);
}

// Likewise of four indexes, as the first two and the last two.
template <int Scale>
FASTCODEC_INLINE void load_four(const void* base, __m128i indexes, __m128i& first, __m128i& last) {
    first = load_two<Scale>(base, static_cast<uint64_t>(_mm_cvtsi128_si64(indexes)));
    last = load_two<Scale>(base, static_cast<uint64_t>(_mm_extract_epi64(indexes, 1)));
}

// The 4 bytes at each of four indexes.
template <int Scale>
FASTCODEC_INLINE __m128i load_four_words(const void* base, __m128i indexes) {
    const auto low = static_cast<uint64_t>(_mm_cvtsi128_si64(indexes));
    const auto high = static_cast<uint64_t>(_mm_extract_epi64(indexes, 1));
    __m128i words = _mm_cvtsi32_si128(load_at<int, Scale>(base, low & 0xffffffffu));
    words = _mm_insert_epi32(words, load_at<int, Scale>(base, low >> 32), 1);
    words = _mm_insert_epi32(words, load_at<int, Scale>(base, high & 0xffffffffu), 2);
    return _mm_insert_epi32(words, load_at<int, Scale>(base, high >> 32), 3);
}

}  // namespace
}  // namespace fastcodec::rans
