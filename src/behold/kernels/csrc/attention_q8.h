// What attention with rounded numbers shares: rows of integers, their products, and weights of so many bits.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "four.h"
#include "vec.h"

typedef int32_t i8 __attribute__((vector_size(32)));

constexpr int MAX_DIM = 128;
constexpr int CHUNK = 96; // keys
constexpr int ROWS = 16;  // queries that are weighed together

const v8 magic = splat8(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer, which the lowest bits then hold

static inline v8 abs8(v8 x) { return (v8)((i8)x & 0x7FFFFFFF); }

// The integers of `magic` sums as bytes.
static inline void narrow(v8 sums, uint8_t *to) {
#if defined(__AVX2__)
    const __m256i bytes = _mm256_and_si256((__m256i)sums, _mm256_set1_epi32(255));
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(to), _mm_packus_epi16(words, words));
#else
    for (int i = 0; i < 8; i++) to[i] = static_cast<uint8_t>(((i8)sums)[i]);
#endif
}

// Of every four places the products of the first two, and of the last two, are added in 16 bits: what either half has
// of the squares of eight numbers, in each place of its own.
static inline v8 halves8(v8 squares) {
    const v8 s = squares, four = s + v8{s[4], s[5], s[6], s[7], s[0], s[1], s[2], s[3]};
    return four + v8{four[1], four[0], four[3], four[2], four[5], four[4], four[7], four[6]};
}

constexpr int SHORT = 5; // eights of places whose products may be added in 16 bits

// What multiply_short begins at: a sum of 32 bits for each column or, modulo 2^16, [SHORT eights of places][column][half].
#if defined(__AVX512VNNI__)
typedef int32_t Begin;
#else
typedef int16_t Begin;
#endif

// The integers of x, less a mean unless that is null, in [-most, most], and `offset` added; returns their step. length:
// unless 0, what the root of the sum of squares is at most (before they are rounded), of either half of SHORT eights.
static inline float round_row(const float *x, const float *mean, int64_t dim, int most, int offset, uint8_t *to,
                              float length = 0) {
    v8 row[MAX_DIM / 8], top = splat8(0), squares = splat8(0), longest = splat8(0);
    for (int64_t d = 0; d < dim / 8; d++) {
        row[d] = load8(x + 8 * d);
        if (mean) row[d] -= load8(mean + 8 * d);
        top = max8(top, abs8(row[d]));
        if (length == 0) continue;
        squares += row[d] * row[d];
        if (d % SHORT != SHORT - 1 && d != dim / 8 - 1) continue;
        longest = max8(longest, halves8(squares));
        squares = splat8(0);
    }
    float step = most8(top) / most;
    if (length != 0) step = std::fmax(step, std::sqrt(most8(longest)) / length);
    const v8 inverse = splat8(step > 0 ? 1.0f / step : 0);
    for (int64_t d = 0; d < dim / 8; d++) {
        narrow(row[d] * inverse + (magic + splat8(offset)), to + 8 * d);
    }
    return step;
}

// A place in a chunk, in the order in which rounded weights come out of their packing.
static inline int place_of(int key) { return key / 32 * 32 + key % 32 / 4 % 2 * 16 + key % 32 / 8 * 4 + key % 4; }

#if defined(__AVX512VNNI__)

// The products of a row with 8 N columns, whose numbers lie [four places][column][place], one four `apart` bytes behind
// the other: use(eight, integers).
template <int N, int, class Use>
__attribute__((always_inline)) inline void multiply(const uint8_t *row, const int8_t *w, int64_t apart, int64_t quads,
                                                    const Use &use) {
    __m512i sums[(N + 1) / 2]; // of an odd eight, the last has only half
#pragma GCC unroll 8
    for (int i = 0; i < (N + 1) / 2; i++) sums[i] = _mm512_setzero_si512();
    for (int64_t quad = 0; quad < quads; quad++, row += 4, w += apart) {
        const __m512i four = four_places64(row);
#pragma GCC unroll 8
        for (int i = 0; i < N / 2; i++) sums[i] = _mm512_dpbusd_epi32(sums[i], four, load64(w + 64 * i));
        if (N % 2) {
            const __m512i last = _mm512_castsi256_si512(load(w + 32 * (N - 1)));
            sums[N / 2] = _mm512_dpbusd_epi32(sums[N / 2], four, last);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; i++) use(i, (i8)(i % 2 ? _mm512_extracti64x4_epi64(sums[i / 2], 1) : _mm512_castsi512_si256(sums[i / 2])));
}

// The same of a whole chunk's columns, whose sums begin at `begin`.
template <class Use>
__attribute__((always_inline)) inline void multiply_short(const uint8_t *row, const int8_t *w, int64_t dim,
                                                          const Begin *begin, const Use &use) {
    multiply<CHUNK / 8, 1>(row, w, 4 * CHUNK, dim / 4, [&](int i, i8 sums) __attribute__((always_inline)) {
        i8 first;
        std::memcpy(&first, begin + 8 * i, sizeof first);
        use(i, sums + first);
    });
}

#elif defined(__AVX2__)

// The products of a row with 8 N columns, whose numbers lie [four places][column][place], one four `apart` bytes behind
// the other: use(eight, integers). Those of 4 TOGETHER places are added in 16 bits, into which they must fit.
template <int N, int TOGETHER, class Use>
__attribute__((always_inline)) inline void multiply(const uint8_t *row, const int8_t *w, int64_t apart, int64_t quads,
                                                    const Use &use) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sums[N];
#pragma GCC unroll 16
    for (int i = 0; i < N; i++) sums[i] = _mm256_setzero_si256();
    for (int64_t quad = 0; quad < quads; quad += TOGETHER, row += 4 * TOGETHER, w += TOGETHER * apart) {
        __m256i four[TOGETHER];
#pragma GCC unroll 4
        for (int j = 0; j < TOGETHER; j++) four[j] = four_places(row + 4 * j);
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) {
            __m256i pairs = _mm256_maddubs_epi16(four[0], load(w + 32 * i));
#pragma GCC unroll 4
            for (int j = 1; j < TOGETHER; j++)
                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(four[j], load(w + j * apart + 32 * i)));
            pairs = _mm256_madd_epi16(pairs, ones);
            asm volatile("vpaddd %1, %0, %0" : "+x"(sums[i]) : "x"(pairs)); // in its place: else GCC moves sums about
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; i++) use(i, (i8)sums[i]);
}

// The same of a whole chunk's columns, those of 8 SHORT places added in 16 bits. Sums wrap around, and begin where the
// last of them fits: at `begin`, [SHORT eights of places][column][half].
template <class Use>
__attribute__((always_inline)) inline void multiply_short(const uint8_t *row, const int8_t *w, int64_t dim,
                                                          const Begin *begin, const Use &use) {
    constexpr int N = CHUNK / 8;
    const __m256i ones = _mm256_set1_epi16(1);
    alignas(32) int32_t earlier[CHUNK];
    for (int64_t start = 0; start < dim; start += 8 * SHORT, begin += 2 * CHUNK) {
        const int64_t left = dim - start, quads = (left < 8 * SHORT ? left : 8 * SHORT) / 4;
        __m256i sums[N], four = four_places(row);
#pragma GCC unroll 16
        for (int i = 0; i < N; i++)
            sums[i] = _mm256_add_epi16(_mm256_maddubs_epi16(four, load(w + 32 * i)), load(begin + 16 * i));
        row += 4, w += 4 * CHUNK;
        for (int64_t quad = 1; quad < quads; quad++, row += 4, w += 4 * CHUNK) {
            four = four_places(row);
#pragma GCC unroll 16
            for (int i = 0; i < N; i++) {
                const __m256i pairs = _mm256_maddubs_epi16(four, load(w + 32 * i));
                asm volatile("vpaddw %1, %0, %0" : "+x"(sums[i]) : "x"(pairs));
            }
        }
        const bool last = left <= 8 * SHORT;
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) {
            sums[i] = _mm256_madd_epi16(sums[i], ones);
            if (start) sums[i] = _mm256_add_epi32(sums[i], load(earlier + 8 * i));
            if (!last) store(earlier + 8 * i, sums[i]);
        }
        if (!last) continue;
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) use(i, (i8)sums[i]);
    }
}

#endif
#if defined(__AVX2__)

static inline void pack(const v8 *weights, uint8_t *to) {
    const auto integers = [&](int i) { return _mm256_cvtps_epi32((__m256)weights[i]); };
    const __m256i low = _mm256_packus_epi32(integers(0), integers(1)), high = _mm256_packus_epi32(integers(2), integers(3));
    store(to, _mm256_packus_epi16(low, high));
}

#else

template <int N, int TOGETHER, class Use>
inline void multiply(const uint8_t *row, const int8_t *w, int64_t apart, int64_t quads, const Use &use) {
    for (int i = 0; i < N; i++) {
        i8 sums = {};
        for (int64_t place = 0; place < 4 * quads; place++)
            for (int c = 0; c < 8; c++) sums[c] += row[place] * w[place / 4 * apart + (8 * i + c) * 4 + place % 4];
        use(i, sums);
    }
}

template <class Use>
inline void multiply_short(const uint8_t *row, const int8_t *w, int64_t dim, const Begin *begin, const Use &use) {
    for (int i = 0; i < CHUNK / 8; i++) {
        i8 sums = {};
        for (int c = 0; c < 8; c++)
            for (int64_t start = 0; start < dim; start += 8 * SHORT)
                for (int half = 0; half < 2; half++) {
                    const int column = 8 * i + c;
                    int sum = begin[(start / (8 * SHORT) * CHUNK + column) * 2 + half];
                    for (int64_t place = start; place < dim && place < start + 8 * SHORT; place++)
                        if (place % 4 / 2 == half) sum += row[place] * w[(place / 4 * CHUNK + column) * 4 + place % 4];
                    sums[c] += static_cast<int16_t>(sum);
                }
        use(i, sums);
    }
}

static inline void pack(const v8 *weights, uint8_t *to) {
    for (int key = 0; key < 32; key++)
        to[place_of(key)] = static_cast<uint8_t>(((i8)(weights[key / 8] + magic))[key % 8]);
}

#endif

// 2^x to about a ten-thousandth, for x up to 126; 0 below -126.5.
static inline v8 rough_power8(v8 x) {
    x = max8(x, splat8(-127.0f));
    const v8 shifted = magic + splat8(127.0f), sum = x + shifted, r = x - (sum - shifted);
    v8 p = splat8(5.5171650e-2f);
    p = p * r + splat8(2.4261121e-1f);
    p = p * r + splat8(6.9326098e-1f);
    p = p * r + splat8(9.9992807e-1f);
    return p * (v8)((i8)sum << 23);
}

// multiply() of `eights` eights of columns, as many at a time as there are registers for.
template <int TOGETHER, class Use>
inline void multiply_all(const uint8_t *row, const int8_t *w, int64_t eights, int64_t quads, const Use &use) {
    for (int64_t at = 0; at < eights;) {
        const int64_t left = eights - at;
        const auto some = [&](auto n) __attribute__((always_inline)) {
            const auto own = [&](int i, i8 sums) __attribute__((always_inline)) { use(at + i, sums); };
            multiply<n, TOGETHER>(row, w + 32 * at, 32 * eights, quads, own);
            at += n;
        };
        if (left == 9)
            some(std::integral_constant<int, 9>());
        else if (left >= 8)
            some(std::integral_constant<int, 8>());
        else if (left >= 4)
            some(std::integral_constant<int, 4>());
        else
            some(std::integral_constant<int, 1>());
    }
}

// Scores of 8 PARTS keys, as powers of two, to weights of up to 2^most, relative to the largest score. Returns the
// weights' sum in eight parts, of inverse(eight, weights).
template <int PARTS, class Inverse>
inline v8 to_weights(const float *scores, float largest, float most, const Inverse &inverse, uint8_t *weights) {
    const v8 below = splat8(largest - most);
    v8 sum = splat8(0);
    for (int i = 0; i < PARTS; i += 4) {
        v8 four[4];
        for (int j = 0; j < 4; j++) {
            four[j] = rough_power8(load8(scores + 8 * (i + j)) - below);
            sum += inverse(i + j, four[j]);
        }
        pack(four, weights + 8 * i);
    }
    return sum;
}
