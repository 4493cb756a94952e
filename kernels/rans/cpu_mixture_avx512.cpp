// The AVX-512 twin of the mixture coder: 16 lanes a vector.

#include <immintrin.h>

#include "mixture_lanes.h"

namespace fastcodec::rans {
namespace {

struct Avx512 {
    static constexpr int kWidth = 16;
    using U32 = __m512i;
    using Mask = __mmask16;

    static FASTCODEC_INLINE U32 set(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
    static FASTCODEC_INLINE U32 load(const uint32_t* p) { return _mm512_loadu_si512(p); }
    static FASTCODEC_INLINE void store(uint32_t* p, U32 x) { _mm512_storeu_si512(p, x); }
    static FASTCODEC_INLINE U32 load_bytes(const uint8_t* p) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static FASTCODEC_INLINE U32 load_unsigned(const uint16_t* p) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static FASTCODEC_INLINE U32 load_signed(const int16_t* p) {
        return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static FASTCODEC_INLINE U32 add(U32 a, U32 b) { return _mm512_add_epi32(a, b); }
    static FASTCODEC_INLINE U32 subtract(U32 a, U32 b) { return _mm512_sub_epi32(a, b); }
    static FASTCODEC_INLINE U32 multiply(U32 a, U32 b) { return _mm512_mullo_epi32(a, b); }
    static FASTCODEC_INLINE U32 minimum(U32 a, U32 b) { return _mm512_min_epi32(a, b); }
    static FASTCODEC_INLINE U32 maximum(U32 a, U32 b) { return _mm512_max_epi32(a, b); }
    static FASTCODEC_INLINE U32 minimum_unsigned(U32 a, U32 b) { return _mm512_min_epu32(a, b); }
    static FASTCODEC_INLINE U32 bit_and(U32 a, U32 b) { return _mm512_and_si512(a, b); }
    template <int Shift>
    static FASTCODEC_INLINE U32 shift_left(U32 a) {
        return _mm512_slli_epi32(a, Shift);
    }
    template <int Shift>
    static FASTCODEC_INLINE U32 shift_right(U32 a) {
        return _mm512_srli_epi32(a, Shift);
    }
    template <int Shift>
    static FASTCODEC_INLINE U32 shift_right_signed(U32 a) {
        return _mm512_srai_epi32(a, Shift);
    }
    static FASTCODEC_INLINE U32 shift_right_by(U32 a, U32 shifts) { return _mm512_srav_epi32(a, shifts); }
    static FASTCODEC_INLINE Mask equal(U32 a, U32 b) { return _mm512_cmpeq_epi32_mask(a, b); }
    static FASTCODEC_INLINE Mask greater(U32 a, U32 b) { return _mm512_cmpgt_epi32_mask(a, b); }
    static FASTCODEC_INLINE bool any(Mask m) { return _kortestz_mask16_u8(m, m) == 0; }
    static FASTCODEC_INLINE uint32_t bits(Mask m) { return _cvtmask16_u32(m); }
    static FASTCODEC_INLINE U32 select(Mask m, U32 yes, U32 no) { return _mm512_mask_mov_epi32(no, m, yes); }
    static FASTCODEC_INLINE U32 gather(const uint32_t* base, U32 at) { return _mm512_i32gather_epi32(at, base, 4); }
};

Error decode(DecodeStream& stream, uint32_t lanes, const Mixtures& mixtures, size_t n, int16_t* symbols) {
    switch (lanes) {
        case 16: return decode_by_vectors<Avx512, 1>(stream, mixtures, n, symbols);
        case 32: return decode_by_vectors<Avx512, 2>(stream, mixtures, n, symbols);
        default: return avx2_mixture_kernels().decode(stream, lanes, mixtures, n, symbols);
    }
}

}  // namespace

const MixtureKernels& avx512_mixture_kernels() {
    static constexpr MixtureKernels kernels{"avx512", decode, code_by_vectors<Avx512>};
    return kernels;
}

}  // namespace fastcodec::rans
