// Pictures of four bytes a pixel made smaller, one direction after the other, each pixel a weighted sum of `taps` pixels
// side by side: sums in whole numbers, weights in 22 bits behind the point, rounded to 8 bits after each direction.
//
// A weight is 2^11 * high + low, both of 16 bits, for AVX2 multiplies pairs of those; sums are exact, and so the same as
// of the whole weight. starts[i] + taps never exceeds what there is: the caller moves a start back, and begins its
// weights with zeros.

#include "pool.h"
#include "vec.h"

namespace {

constexpr int LOW_BITS = 11, POINT = 22;
constexpr int64_t STRIP = 2048; // bytes, a multiple of 16

#if !defined(__AVX2__)

inline uint8_t rounded(uint32_t high, uint32_t low) {
    const int32_t sum = static_cast<int32_t>((high << LOW_BITS) + low + (1u << (POINT - 1))) >> POINT;
    return static_cast<uint8_t>(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

// One byte from `taps` bytes that are `stride` apart.
inline uint8_t weighed(const uint8_t *from, int64_t stride, const int16_t *high, const int16_t *low, int64_t taps) {
    int32_t a = 0, b = 0;
    for (int64_t t = 0; t < taps; t++) {
        a += from[t * stride] * high[t];
        b += from[t * stride] * low[t];
    }
    return rounded(static_cast<uint32_t>(a), static_cast<uint32_t>(b));
}

#else

inline __m256i rounded(__m256i high, __m256i low) {
    const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high, LOW_BITS), low);
    return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(1 << (POINT - 1))), POINT);
}

inline __m256i eight(const int16_t *p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}

// One pixel of each of R rows: 8 neighbours a round, as pairs (0, 1 | 4, 5) and (2, 3 | 6, 7) of 16-bit numbers.
template <int R>
inline void one(const uint8_t *from, int64_t stride, uint8_t *to, int64_t to_stride, const int16_t *high,
                const int16_t *low, int64_t taps) {
    const __m256i even = _mm256_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1, 0, -1, 4, -1, 1, -1,
                                          5, -1, 2, -1, 6, -1, 3, -1, 7, -1);
    const __m256i odd = _mm256_add_epi8(even, _mm256_set1_epi16(8));
    const __m256i first = _mm256_setr_epi32(0x03020100, 0x03020100, 0x03020100, 0x03020100, 0x0b0a0908, 0x0b0a0908,
                                            0x0b0a0908, 0x0b0a0908);
    const __m256i second = _mm256_add_epi8(first, _mm256_set1_epi8(4));
    __m256i highs[R], lows[R];
    for (int r = 0; r < R; r++) highs[r] = lows[r] = _mm256_setzero_si256();
    for (int64_t t = 0; t < taps; t += 8) {
        const __m256i h = eight(high + t), l = eight(low + t);
        const __m256i h0 = _mm256_shuffle_epi8(h, first), h1 = _mm256_shuffle_epi8(h, second);
        const __m256i l0 = _mm256_shuffle_epi8(l, first), l1 = _mm256_shuffle_epi8(l, second);
        for (int r = 0; r < R; r++) {
            const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + r * stride + 4 * t));
            const __m256i a = _mm256_shuffle_epi8(x, even), b = _mm256_shuffle_epi8(x, odd);
            highs[r] = _mm256_add_epi32(highs[r], _mm256_madd_epi16(a, h0));
            lows[r] = _mm256_add_epi32(lows[r], _mm256_madd_epi16(a, l0));
            highs[r] = _mm256_add_epi32(highs[r], _mm256_madd_epi16(b, h1));
            lows[r] = _mm256_add_epi32(lows[r], _mm256_madd_epi16(b, l1));
        }
    }
    for (int r = 0; r < R; r++) {
        // the two halves hold sums of different pixels: swap and add
        const __m256i h = _mm256_add_epi32(highs[r], _mm256_permute2x128_si256(highs[r], highs[r], 1));
        const __m256i l = _mm256_add_epi32(lows[r], _mm256_permute2x128_si256(lows[r], lows[r], 1));
        const __m128i sum = _mm256_castsi256_si128(rounded(h, l));
        const __m128i words = _mm_packs_epi32(sum, sum);
        const int32_t pixel = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
        std::memcpy(to + r * to_stride, &pixel, 4);
    }
}

// 16 bytes of one row from `taps` rows, an even number.
inline void sixteen(const uint8_t *from, int64_t stride, uint8_t *to, const int16_t *high, const int16_t *low,
                    int64_t taps) {
    __m256i h0 = _mm256_setzero_si256(), h1 = h0, l0 = h0, l1 = h0;
    for (int64_t t = 0; t < taps; t += 2) {
        const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + t * stride));
        const __m128i y = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + (t + 1) * stride));
        const __m256i a = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, y)), b = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(x, y));
        int32_t both;
        std::memcpy(&both, high + t, 4);
        const __m256i h = _mm256_set1_epi32(both);
        std::memcpy(&both, low + t, 4);
        const __m256i l = _mm256_set1_epi32(both);
        h0 = _mm256_add_epi32(h0, _mm256_madd_epi16(a, h));
        h1 = _mm256_add_epi32(h1, _mm256_madd_epi16(b, h));
        l0 = _mm256_add_epi32(l0, _mm256_madd_epi16(a, l));
        l1 = _mm256_add_epi32(l1, _mm256_madd_epi16(b, l));
    }
    const __m256i words = _mm256_packs_epi32(rounded(h0, l0), rounded(h1, l1)); // 0-3, 8-11 | 4-7, 12-15
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_castsi256_si128(ordered));
}

#endif

} // namespace

// to (rows, to_width, 4) from `from` (rows, width, 4); starts (to_width), high and low (to_width, taps), taps a multiple
// of 8 and at most `width`.
BH_EXPORT void bh_resample_rows(const uint8_t *from, uint8_t *to, const int32_t *starts, const int16_t *high,
                                const int16_t *low, int64_t rows, int64_t width, int64_t to_width, int64_t taps) {
    const int64_t stride = 4 * width, to_stride = 4 * to_width;
    int64_t row = 0;
#if defined(__AVX2__)
    for (; row + 4 <= rows; row += 4)
        for (int64_t i = 0; i < to_width; i++)
            one<4>(from + row * stride + 4 * starts[i], stride, to + row * to_stride + 4 * i, to_stride,
                   high + i * taps, low + i * taps, taps);
    for (; row < rows; row++)
        for (int64_t i = 0; i < to_width; i++)
            one<1>(from + row * stride + 4 * starts[i], stride, to + row * to_stride + 4 * i, to_stride,
                   high + i * taps, low + i * taps, taps);
#else
    for (; row < rows; row++)
        for (int64_t i = 0; i < to_width; i++)
            for (int64_t c = 0; c < 4; c++)
                to[row * to_stride + 4 * i + c] = weighed(from + row * stride + 4 * starts[i] + c, 4, high + i * taps,
                                                          low + i * taps, taps);
#endif
}

// The first `columns` of to (to_rows, width, 4) from `from` (rows, width, 4); starts (to_rows), high and low (to_rows,
// taps), taps a multiple of 8 and at most `rows`; columns at least 4. In strips: the rows that one is made of, and most
// of those of the next, stay in the cache.
BH_EXPORT void bh_resample_columns(const uint8_t *from, uint8_t *to, const int32_t *starts, const int16_t *high,
                                   const int16_t *low, int64_t width, int64_t columns, int64_t to_rows, int64_t taps) {
    const int64_t stride = 4 * width, bytes = 4 * columns;
    for (int64_t strip = 0; strip < bytes; strip += STRIP) {
        const int64_t end = strip + STRIP < bytes ? strip + STRIP : bytes;
        for (int64_t row = 0; row < to_rows; row++) {
            const uint8_t *top = from + starts[row] * stride;
#if defined(__AVX2__)
            for (int64_t next = strip; next < end; next += 16) {
                const int64_t i = next + 16 <= bytes ? next : bytes - 16;
                sixteen(top + i, stride, to + row * stride + i, high + row * taps, low + row * taps, taps);
            }
#else
            for (int64_t i = strip; i < end; i++)
                to[row * stride + i] = weighed(top + i, stride, high + row * taps, low + row * taps, taps);
#endif
        }
    }
}
