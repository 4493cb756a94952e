// The AVX2 twin of the mixture coder: 8 lanes a vector.

#include <immintrin.h>

#include "mixture_lanes.h"

namespace fastcodec::rans {
namespace {

struct Avx2 {
    static constexpr int kWidth = 8;
    using U32 = __m256i;
    using Mask = __m256i;

    static FASTCODEC_INLINE U32 set(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
    static FASTCODEC_INLINE U32 load(const uint32_t* p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }
    static FASTCODEC_INLINE void store(uint32_t* p, U32 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
    static FASTCODEC_INLINE U32 load_bytes(const uint8_t* p) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    }
    static FASTCODEC_INLINE U32 load_unsigned(const uint16_t* p) {
        return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static FASTCODEC_INLINE U32 load_signed(const int16_t* p) {
        return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static FASTCODEC_INLINE U32 add(U32 a, U32 b) { return _mm256_add_epi32(a, b); }
    static FASTCODEC_INLINE U32 subtract(U32 a, U32 b) { return _mm256_sub_epi32(a, b); }
    static FASTCODEC_INLINE U32 multiply(U32 a, U32 b) { return _mm256_mullo_epi32(a, b); }
    static FASTCODEC_INLINE U32 minimum(U32 a, U32 b) { return _mm256_min_epi32(a, b); }
    static FASTCODEC_INLINE U32 maximum(U32 a, U32 b) { return _mm256_max_epi32(a, b); }
    static FASTCODEC_INLINE U32 minimum_unsigned(U32 a, U32 b) { return _mm256_min_epu32(a, b); }
    static FASTCODEC_INLINE U32 bit_and(U32 a, U32 b) { return _mm256_and_si256(a, b); }
    template <int Shift>
    static FASTCODEC_INLINE U32 shift_left(U32 a) {
        return _mm256_slli_epi32(a, Shift);
    }
    template <int Shift>
    static FASTCODEC_INLINE U32 shift_right(U32 a) {
        return _mm256_srli_epi32(a, Shift);
    }
    template <int Shift>
    static FASTCODEC_INLINE U32 shift_right_signed(U32 a) {
        return _mm256_srai_epi32(a, Shift);
    }
    static FASTCODEC_INLINE U32 shift_right_by(U32 a, U32 shifts) { return _mm256_srav_epi32(a, shifts); }
    static FASTCODEC_INLINE Mask equal(U32 a, U32 b) { return _mm256_cmpeq_epi32(a, b); }
    static FASTCODEC_INLINE Mask greater(U32 a, U32 b) { return _mm256_cmpgt_epi32(a, b); }
    static FASTCODEC_INLINE bool any(Mask m) { return !_mm256_testz_si256(m, m); }
    static FASTCODEC_INLINE uint32_t bits(Mask m) {
        return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m)));
    }
    static FASTCODEC_INLINE U32 select(Mask m, U32 yes, U32 no) { return _mm256_blendv_epi8(no, yes, m); }
    static FASTCODEC_INLINE U32 gather(const uint32_t* base, U32 at) {
        return _mm256_i32gather_epi32(reinterpret_cast<const int*>(base), at, 4);
    }
};

Error decode(DecodeStream& stream, uint32_t lanes, const Mixtures& mixtures, size_t n, int16_t* symbols) {
    switch (lanes) {
        case 8: return decode_by_vectors<Avx2, 1>(stream, mixtures, n, symbols);
        case 16: return decode_by_vectors<Avx2, 2>(stream, mixtures, n, symbols);
        case 32: return decode_by_vectors<Avx2, 4>(stream, mixtures, n, symbols);
        default: return scalar_mixture_kernels().decode(stream, lanes, mixtures, n, symbols);
    }
}

}  // namespace

const MixtureKernels& avx2_mixture_kernels() {
    static constexpr MixtureKernels kernels{"avx2", decode, code_by_vectors<Avx2>};
    return kernels;
}

}  // namespace fastcodec::rans
