// The AVX2 twin: 8 lanes a vector. What AVX-512 does by expand and compress is done here by permutations from small
// tables, one for each pattern of eight lanes, made at compile time.

#include <immintrin.h>

#include "gather.h"
#include "lanes.h"
#include "mixture_lanes.h"

namespace fastcodec::rans {
namespace {

// For each set of 8 lanes, one byte a lane.
struct Patterns {
    uint8_t deal[256][8];   // lane i of the set reads word rank(i); the others read word 0
    uint8_t pack[256][8];   // position i holds the i-th lane of the set; 0x80 beyond
    uint8_t stack[256][8];  // likewise, but the last lane of the set comes last
};

constexpr Patterns make_patterns() {
    Patterns p{};
    for (int set = 0; set < 256; ++set) {
        uint8_t lanes[8] = {};
        uint8_t count = 0;
        for (uint8_t lane = 0; lane < 8; ++lane) {
            p.deal[set][lane] = set >> lane & 1 ? count : 0;
            if (set >> lane & 1) {
                lanes[count++] = lane;
            }
        }
        for (uint8_t i = 0; i < 8; ++i) {
            p.pack[set][i] = i < count ? lanes[i] : 0x80;
            p.stack[set][i] = i + count >= 8 ? lanes[i + count - 8] : 0;
        }
    }
    return p;
}

constexpr Patterns kPatterns = make_patterns();

FASTCODEC_INLINE __m128i load8(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
FASTCODEC_INLINE __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
FASTCODEC_INLINE void store16(void* p, __m128i x) { _mm_storeu_si128(static_cast<__m128i*>(p), x); }

struct Avx2 {
    static constexpr int kWidth = 8;
    using U32 = __m256i;
    using Mask = __m256i;

    static FASTCODEC_INLINE U32 set(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
    static FASTCODEC_INLINE U32 ascending() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
    static FASTCODEC_INLINE U32 load(const uint32_t* p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }
    static FASTCODEC_INLINE void store(uint32_t* p, U32 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
    static FASTCODEC_INLINE U32 load_indexes(const uint8_t* p) { return _mm256_cvtepu8_epi32(load8(p)); }
    static FASTCODEC_INLINE U32 load_symbols(const int16_t* p) { return _mm256_cvtepi16_epi32(load16(p)); }
    static FASTCODEC_INLINE U32 load_weights(const uint16_t* p) {
        return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    // The low 16 bits of each lane.
    static FASTCODEC_INLINE __m128i low_words(U32 x) {
        const __m256i even = _mm256_shuffle_epi8(
            x, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1)));
        return _mm256_castsi256_si128(_mm256_permute4x64_epi64(even, 0x08));
    }
    static FASTCODEC_INLINE void store_symbols(int16_t* p, U32 x) { store16(p, low_words(x)); }
    static FASTCODEC_INLINE U32 add(U32 a, U32 b) { return _mm256_add_epi32(a, b); }
    static FASTCODEC_INLINE U32 subtract(U32 a, U32 b) { return _mm256_sub_epi32(a, b); }
    static FASTCODEC_INLINE U32 multiply(U32 a, U32 b) { return _mm256_mullo_epi32(a, b); }
    static FASTCODEC_INLINE U32 minimum(U32 a, U32 b) { return _mm256_min_epu32(a, b); }
    static FASTCODEC_INLINE U32 minimum_signed(U32 a, U32 b) { return _mm256_min_epi32(a, b); }
    static FASTCODEC_INLINE U32 maximum_signed(U32 a, U32 b) { return _mm256_max_epi32(a, b); }
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
    static FASTCODEC_INLINE Mask within(U32 a, U32 from, U32 to) {
        return _mm256_andnot_si256(greater(from, a), greater(to, a));
    }
    static FASTCODEC_INLINE Mask below_word(U32 a) { return equal(shift_right<kWordBits>(a), set(0)); }
    static FASTCODEC_INLINE Mask either(Mask a, Mask b) { return _mm256_or_si256(a, b); }
    static FASTCODEC_INLINE bool all(Mask m) { return bits(m) == 0xff; }
    static FASTCODEC_INLINE bool any(Mask m) { return !_mm256_testz_si256(m, m); }
    static FASTCODEC_INLINE uint32_t bits(Mask m) {
        return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m)));
    }
    static FASTCODEC_INLINE uint32_t sign_bits(U32 a) { return bits(a); }
    static FASTCODEC_INLINE uint32_t count(Mask m) { return static_cast<uint32_t>(__builtin_popcount(bits(m))); }
    static FASTCODEC_INLINE U32 select(Mask m, U32 yes, U32 no) { return _mm256_blendv_epi8(no, yes, m); }
    template <int Scale>
    static FASTCODEC_INLINE U32 gather(const void* base, U32 at) {
        return _mm256_set_m128i(load_four_words<Scale>(base, _mm256_extracti128_si256(at, 1)),
                                load_four_words<Scale>(base, _mm256_castsi256_si128(at)));
    }
    // Eight bytes a lane, as their two halves.
    template <int Scale>
    static FASTCODEC_INLINE void gather_pairs(const void* base, U32 at, U32& low, U32& high) {
        __m128i parts[4];
        load_four<Scale>(base, _mm256_castsi256_si128(at), parts[0], parts[1]);
        load_four<Scale>(base, _mm256_extracti128_si256(at, 1), parts[2], parts[3]);
        // Lanes 0 1 4 5 and 2 3 6 7: the shuffle then leaves all eight in order.
        const __m256 a = _mm256_castsi256_ps(_mm256_set_m128i(parts[2], parts[0]));
        const __m256 b = _mm256_castsi256_ps(_mm256_set_m128i(parts[3], parts[1]));
        low = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
        high = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
    }

    using F32 = __m256;
    static FASTCODEC_INLINE F32 set_float(float x) { return _mm256_set1_ps(x); }
    static FASTCODEC_INLINE F32 load_float(const float* p) { return _mm256_loadu_ps(p); }
    static FASTCODEC_INLINE void store_float(float* p, F32 x) { _mm256_storeu_ps(p, x); }
    static FASTCODEC_INLINE F32 to_float(U32 a) { return _mm256_cvtepi32_ps(a); }
    static FASTCODEC_INLINE F32 as_float(U32 a) { return _mm256_castsi256_ps(a); }
    static FASTCODEC_INLINE F32 add_float(F32 a, F32 b) { return _mm256_add_ps(a, b); }
    static FASTCODEC_INLINE F32 subtract_float(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
    static FASTCODEC_INLINE F32 multiply_float(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
    static FASTCODEC_INLINE F32 multiply_add(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
    static FASTCODEC_INLINE F32 magnitude(F32 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
    // `a`, not negative, with the sign of b.
    static FASTCODEC_INLINE F32 with_sign_of(F32 a, F32 b) {
        return _mm256_or_ps(a, _mm256_and_ps(_mm256_set1_ps(-0.0f), b));
    }
    static FASTCODEC_INLINE F32 reciprocal(F32 a) { return _mm256_rcp_ps(a); }  // to 2^-11
    static FASTCODEC_INLINE uint32_t bits_at_most(F32 a, F32 b) {
        return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ)));
    }

    // The lanes of `m` take one word each, in ascending order.
    static FASTCODEC_INLINE U32 refill(U32 x, Mask m, const uint8_t* words) {
        const __m256i next = _mm256_cvtepu16_epi32(load16(words));
        const __m256i dealt = _mm256_permutevar8x32_epi32(next, _mm256_cvtepu8_epi32(load8(kPatterns.deal[bits(m)])));
        return _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, kWordBits), dealt), m);
    }

    // Writes the low words of the lanes of `mask`, in ascending order, to end at `end`; may overwrite what is below.
    static FASTCODEC_INLINE void store_words_below(uint16_t* end, U32 x, uint32_t mask) {
        const __m256i order = _mm256_cvtepu8_epi32(load8(kPatterns.stack[mask]));
        store16(end - kWidth, low_words(_mm256_permutevar8x32_epi32(x, order)));
    }

    // Each rounds once.
    static FASTCODEC_INLINE F32 unsigned_to_float(U32 x) {
        // The upper half times 2^16 is exact.
        const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(x, 16));
        const __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff)));
        return _mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low);
    }
    static FASTCODEC_INLINE F32 divide(F32 a, F32 b) { return _mm256_div_ps(a, b); }
    static FASTCODEC_INLINE U32 truncate(F32 a) { return _mm256_cvttps_epi32(a); }
};

Error decode(DecodeStream& stream, uint32_t lanes, const Tables& tables, const uint8_t* indexes, size_t n,
             int16_t* symbols) {
    switch (lanes) {
        case 8: return decode_vectors<Avx2, 1>(stream, tables, indexes, n, symbols);
        case 16: return decode_vectors<Avx2, 2>(stream, tables, indexes, n, symbols);
        default: return decode_vectors<Avx2, 4>(stream, tables, indexes, n, symbols);
    }
}

void push(EncodeStream& stream, uint32_t lanes, const uint32_t* codes, const int16_t* symbols, size_t n) {
    switch (lanes) {
        case 8: return push_vectors<Avx2, 1>(stream, codes, symbols, n);
        case 16: return push_vectors<Avx2, 2>(stream, codes, symbols, n);
        default: return push_vectors<Avx2, 4>(stream, codes, symbols, n);
    }
}

// The set of 8 indexes that are not 0.
FASTCODEC_INLINE uint32_t coded_set(const uint8_t* indexes) {
    const __m128i zero = _mm_cmpeq_epi8(load8(indexes), _mm_setzero_si128());
    return ~static_cast<uint32_t>(_mm_movemask_epi8(zero)) & 0xffu;
}

// Byte positions of two-byte elements, from those of one-byte elements: 2 i and 2 i + 1; 0x80 stays out of range.
FASTCODEC_INLINE __m128i byte_pairs(const uint8_t* pattern) {
    const __m128i p = load8(pattern);
    const __m128i both = _mm_unpacklo_epi8(p, p);
    const __m128i doubled = _mm_or_si128(_mm_and_si128(both, _mm_set1_epi8(-128)), _mm_add_epi8(both, both));
    return _mm_or_si128(doubled, _mm_set1_epi16(0x0100));
}

size_t compact_indexes(const uint8_t* indexes, size_t n, uint8_t* packed) {
    size_t count = 0;
    size_t j = 0;
    for (; j + 8 <= n; j += 8) {
        const uint32_t coded = coded_set(indexes + j);
        const __m128i v = _mm_shuffle_epi8(load8(indexes + j), load8(kPatterns.pack[coded]));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(packed + count), v);
        count += static_cast<size_t>(__builtin_popcount(coded));
    }
    return count + scalar_kernels().compact_indexes(indexes + j, n - j, packed + count);
}

size_t compact_symbols(const uint8_t* indexes, const int16_t* symbols, size_t n, int16_t* packed, bool& lost) {
    size_t count = 0;
    size_t j = 0;
    __m128i dropped = _mm_setzero_si128();
    for (; j + 8 <= n; j += 8) {
        const uint32_t coded = coded_set(indexes + j);
        const __m128i v = load16(symbols + j);
        const __m128i skipped = _mm_cmpeq_epi16(_mm_cvtepu8_epi16(load8(indexes + j)), _mm_setzero_si128());
        dropped = _mm_or_si128(dropped, _mm_and_si128(skipped, v));
        store16(packed + count, _mm_shuffle_epi8(v, byte_pairs(kPatterns.pack[coded])));
        count += static_cast<size_t>(__builtin_popcount(coded));
    }
    lost |= !_mm_testz_si128(dropped, dropped);
    return count + scalar_kernels().compact_symbols(indexes + j, symbols + j, n - j, packed + count, lost);
}

void expand_symbols(const uint8_t* indexes, size_t n, const int16_t* packed, int16_t* symbols) {
    size_t j = 0;
    for (; j + 8 <= n; j += 8) {
        const uint32_t coded = coded_set(indexes + j);
        const __m128i skipped = _mm_cmpeq_epi16(_mm_cvtepu8_epi16(load8(indexes + j)), _mm_setzero_si128());
        const __m128i v = _mm_shuffle_epi8(load16(packed), byte_pairs(kPatterns.deal[coded]));
        store16(symbols + j, _mm_andnot_si128(skipped, v));
        packed += __builtin_popcount(coded);
    }
    scalar_kernels().expand_symbols(indexes + j, n - j, packed, symbols + j);
}

}  // namespace

const Kernels& avx2_kernels() {
    static constexpr Kernels kernels{"avx2",
                                     8,
                                     scalar_kernels,
                                     decode,
                                     push,
                                     compact_indexes,
                                     compact_symbols,
                                     expand_symbols,
                                     decode_by_vectors<Avx2>,
                                     code_by_vectors<Avx2>};
    return kernels;
}

}  // namespace fastcodec::rans
