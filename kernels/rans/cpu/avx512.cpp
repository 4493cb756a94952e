// The AVX-512 twin: 16 lanes a vector, words dealt out by expand and packed by compress. Needs F, BW, VL, DQ and VBMI2.

#include <immintrin.h>

#include "gather.h"
#include "lanes.h"
#include "mixture_lanes.h"

namespace fastcodec::rans {
namespace {

struct Avx512 {
    static constexpr int kWidth = 16;
    using U32 = __m512i;
    using Mask = __mmask16;

    static FASTCODEC_INLINE U32 set(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
    static FASTCODEC_INLINE U32 ascending() {
        return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    }
    static FASTCODEC_INLINE U32 load(const uint32_t* p) { return _mm512_loadu_si512(p); }
    static FASTCODEC_INLINE void store(uint32_t* p, U32 x) { _mm512_storeu_si512(p, x); }
    static FASTCODEC_INLINE U32 load_indexes(const uint8_t* p) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static FASTCODEC_INLINE U32 load_symbols(const int16_t* p) {
        return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static FASTCODEC_INLINE U32 load_weights(const uint16_t* p) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static FASTCODEC_INLINE void store_symbols(int16_t* p, U32 x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x));
    }
    static FASTCODEC_INLINE U32 add(U32 a, U32 b) { return _mm512_add_epi32(a, b); }
    static FASTCODEC_INLINE U32 subtract(U32 a, U32 b) { return _mm512_sub_epi32(a, b); }
    static FASTCODEC_INLINE U32 multiply(U32 a, U32 b) { return _mm512_mullo_epi32(a, b); }
    static FASTCODEC_INLINE U32 minimum(U32 a, U32 b) { return _mm512_min_epu32(a, b); }
    static FASTCODEC_INLINE U32 minimum_signed(U32 a, U32 b) { return _mm512_min_epi32(a, b); }
    static FASTCODEC_INLINE U32 maximum_signed(U32 a, U32 b) { return _mm512_max_epi32(a, b); }
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
    static FASTCODEC_INLINE Mask within(U32 a, U32 from, U32 to) {
        return _mm512_cmplt_epu32_mask(subtract(a, from), subtract(to, from));
    }
    static FASTCODEC_INLINE Mask below_word(U32 a) { return _mm512_cmplt_epu32_mask(a, set(kStateLow)); }
    static FASTCODEC_INLINE Mask either(Mask a, Mask b) { return _kor_mask16(a, b); }
    static FASTCODEC_INLINE bool all(Mask m) { return _kortestc_mask16_u8(m, m) != 0; }
    static FASTCODEC_INLINE bool any(Mask m) { return _kortestz_mask16_u8(m, m) == 0; }
    static FASTCODEC_INLINE uint32_t bits(Mask m) { return _cvtmask16_u32(m); }
    static FASTCODEC_INLINE uint32_t sign_bits(U32 a) { return bits(_mm512_movepi32_mask(a)); }
    static FASTCODEC_INLINE uint32_t count(Mask m) { return static_cast<uint32_t>(__builtin_popcount(bits(m))); }
    static FASTCODEC_INLINE U32 select(Mask m, U32 yes, U32 no) { return _mm512_mask_mov_epi32(no, m, yes); }
    template <int Scale>
    static FASTCODEC_INLINE U32 gather(const void* base, U32 at) {
        return _mm512_i32gather_epi32(at, base, Scale);
    }
    template <int Scale>
    static FASTCODEC_INLINE __m512i load_eight(const void* base, __m256i at) {
        __m128i parts[4];
        load_four<Scale>(base, _mm256_castsi256_si128(at), parts[0], parts[1]);
        load_four<Scale>(base, _mm256_extracti128_si256(at, 1), parts[2], parts[3]);
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(parts[1], parts[0])),
                                  _mm256_set_m128i(parts[3], parts[2]), 1);
    }
    // Eight bytes a lane, as their two halves.
    template <int Scale>
    static FASTCODEC_INLINE void gather_pairs(const void* base, U32 at, U32& low, U32& high) {
        const __m512i a = load_eight<Scale>(base, _mm512_castsi512_si256(at));
        const __m512i b = load_eight<Scale>(base, _mm512_extracti64x4_epi64(at, 1));
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        low = _mm512_permutex2var_epi32(a, even, b);
        high = _mm512_permutex2var_epi32(a, _mm512_add_epi32(even, set(1)), b);
    }

    using F32 = __m512;
    static FASTCODEC_INLINE F32 set_float(float x) { return _mm512_set1_ps(x); }
    static FASTCODEC_INLINE F32 load_float(const float* p) { return _mm512_loadu_ps(p); }
    static FASTCODEC_INLINE void store_float(float* p, F32 x) { _mm512_storeu_ps(p, x); }
    static FASTCODEC_INLINE F32 to_float(U32 a) { return _mm512_cvtepi32_ps(a); }
    static FASTCODEC_INLINE F32 as_float(U32 a) { return _mm512_castsi512_ps(a); }
    static FASTCODEC_INLINE F32 add_float(F32 a, F32 b) { return _mm512_add_ps(a, b); }
    static FASTCODEC_INLINE F32 subtract_float(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
    static FASTCODEC_INLINE F32 multiply_float(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
    static FASTCODEC_INLINE F32 multiply_add(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
    static FASTCODEC_INLINE F32 magnitude(F32 a) { return _mm512_abs_ps(a); }
    // `a`, not negative, with the sign of b.
    static FASTCODEC_INLINE F32 with_sign_of(F32 a, F32 b) {
        return _mm512_or_ps(a, _mm512_and_ps(_mm512_set1_ps(-0.0f), b));
    }
    static FASTCODEC_INLINE F32 reciprocal(F32 a) { return _mm512_rcp14_ps(a); }  // to 2^-14
    static FASTCODEC_INLINE uint32_t bits_at_most(F32 a, F32 b) {
        return _cvtmask16_u32(_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ));
    }

    // The lanes of `m` take one word each, in ascending order.
    static FASTCODEC_INLINE U32 refill(U32 x, Mask m, const uint8_t* words) {
        const __m512i next = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
        return _mm512_mask_or_epi32(x, m, _mm512_slli_epi32(x, kWordBits), _mm512_maskz_expand_epi32(m, next));
    }

    // Writes the low words of the lanes of `mask`, in ascending order, to end at `end`; may overwrite what is below.
    static FASTCODEC_INLINE void store_words_below(uint16_t* end, U32 x, uint32_t mask) {
        const __m512i packed = _mm512_maskz_compress_epi32(_cvtu32_mask16(mask), x);
        const __m512i from = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                              set(static_cast<uint32_t>(__builtin_popcount(mask))));
        // Lane i takes the packed lane i + count (mod 16), so that the last word is the last lane's.
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(end - kWidth),
                            _mm512_cvtepi32_epi16(_mm512_permutexvar_epi32(from, packed)));
    }

    // Each rounds once.
    static FASTCODEC_INLINE F32 unsigned_to_float(U32 x) { return _mm512_cvtepu32_ps(x); }
    static FASTCODEC_INLINE F32 divide(F32 a, F32 b) { return _mm512_div_ps(a, b); }
    static FASTCODEC_INLINE U32 truncate(F32 a) { return _mm512_cvttps_epi32(a); }
};

Error decode(DecodeStream& stream, uint32_t lanes, const Tables& tables, const uint8_t* indexes, size_t n,
             int16_t* symbols) {
    return lanes == 16 ? decode_vectors<Avx512, 1>(stream, tables, indexes, n, symbols)
                       : decode_vectors<Avx512, 2>(stream, tables, indexes, n, symbols);
}

void push(EncodeStream& stream, uint32_t lanes, const uint32_t* codes, const int16_t* symbols, size_t n) {
    return lanes == 16 ? push_vectors<Avx512, 1>(stream, codes, symbols, n)
                       : push_vectors<Avx512, 2>(stream, codes, symbols, n);
}

// The first `count` of 64 or 32 lanes.
FASTCODEC_INLINE __mmask64 first64(size_t count) { return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1; }
FASTCODEC_INLINE __mmask32 first32(size_t count) { return count >= 32 ? ~uint32_t{0} : (uint32_t{1} << count) - 1; }

size_t compact_indexes(const uint8_t* indexes, size_t n, uint8_t* packed) {
    size_t count = 0;
    for (size_t j = 0; j < n; j += 64) {
        const __m512i v = _mm512_maskz_loadu_epi8(first64(n - j), indexes + j);
        const __mmask64 coded = _mm512_test_epi8_mask(v, v);
        _mm512_storeu_si512(packed + count, _mm512_maskz_compress_epi8(coded, v));
        count += static_cast<size_t>(__builtin_popcountll(coded));
    }
    return count;
}

size_t compact_symbols(const uint8_t* indexes, const int16_t* symbols, size_t n, int16_t* packed, bool& lost) {
    size_t count = 0;
    __mmask32 dropped = 0;
    for (size_t j = 0; j < n; j += 32) {
        const __mmask32 here = first32(n - j);
        const __m256i index = _mm256_maskz_loadu_epi8(here, indexes + j);
        const __m512i v = _mm512_maskz_loadu_epi16(here, symbols + j);
        const __mmask32 coded = _mm256_test_epi8_mask(index, index);
        dropped |= _mm512_mask_test_epi16_mask(~coded, v, v);
        _mm512_storeu_si512(packed + count, _mm512_maskz_compress_epi16(coded, v));
        count += static_cast<size_t>(__builtin_popcount(coded));
    }
    lost |= dropped != 0;
    return count;
}

void expand_symbols(const uint8_t* indexes, size_t n, const int16_t* packed, int16_t* symbols) {
    for (size_t j = 0; j < n; j += 32) {
        const __mmask32 here = first32(n - j);
        const __m256i index = _mm256_maskz_loadu_epi8(here, indexes + j);
        const __mmask32 coded = _mm256_test_epi8_mask(index, index);
        const __m512i v = _mm512_loadu_si512(packed);
        _mm512_mask_storeu_epi16(symbols + j, here, _mm512_maskz_expand_epi16(coded, v));
        packed += __builtin_popcount(coded);
    }
}

Error decode_mixtures(DecodeStream& stream, uint32_t lanes, const Mixtures& mixtures, size_t n, int16_t* symbols) {
    // Eight lanes fill a vector of AVX2, which is faster than one element after the other.
    return lanes == 8 ? avx2_kernels().decode_mixtures(stream, lanes, mixtures, n, symbols)
                      : decode_by_vectors<Avx512>(stream, lanes, mixtures, n, symbols);
}

}  // namespace

const Kernels& avx512_kernels() {
    static constexpr Kernels kernels{"avx512",
                                     16,
                                     avx2_kernels,
                                     decode,
                                     push,
                                     compact_indexes,
                                     compact_symbols,
                                     expand_symbols,
                                     decode_mixtures,
                                     code_by_vectors<Avx512>};
    return kernels;
}

}  // namespace fastcodec::rans
