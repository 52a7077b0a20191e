// What attention with rounded numbers shares: rows of integers, their products, and weights of so many bits.
#pragma once

#include <cmath>
#include <cstring>

#include "four.h"
#include "vec.h"

typedef int32_t i8 __attribute__((vector_size(32)));

constexpr int WIDE = 24; // columns of a panel
constexpr int MAX_DIM = 128, MAX_WIDTH = (MAX_DIM + WIDE - 1) / WIDE * WIDE;

static inline int64_t width_of(int64_t dim) { return (dim + WIDE - 1) / WIDE * WIDE; }

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

// The integers of x, less a mean unless that is null, in [-most, most], and `offset` added; returns their step.
static inline float round_row(const float *x, const float *mean, int64_t dim, int most, int offset, uint8_t *to) {
    v8 row[MAX_DIM / 8], top = splat8(0);
    for (int64_t d = 0; d < dim / 8; d++) {
        row[d] = load8(x + 8 * d);
        if (mean) row[d] -= load8(mean + 8 * d);
        top = max8(top, abs8(row[d]));
    }
    const float largest = most8(top);
    const v8 inverse = splat8(largest > 0 ? most / largest : 0);
    for (int64_t d = 0; d < dim / 8; d++) {
        narrow(row[d] * inverse + (magic + splat8(offset)), to + 8 * d);
    }
    return largest / most;
}

// A place in a chunk, in the order in which rounded weights come out of their packing.
static inline int place_of(int key) { return key / 32 * 32 + key % 32 / 4 % 2 * 16 + key % 32 / 8 * 4 + key % 4; }

#if defined(__AVX2__)

struct Three {
    __m256i a, b, c;
    explicit Three(const int32_t *from) : a(load(from)), b(load(from + 8)), c(load(from + 16)) {}
    __attribute__((always_inline)) void add(const uint8_t *integers, const int8_t *w) {
        const __m256i ones = _mm256_set1_epi16(1), four = four_places(integers);
        const auto more = [&](__m256i &sum, const int8_t *at) __attribute__((always_inline)) {
            const __m256i products = _mm256_madd_epi16(_mm256_maddubs_epi16(four, load(at)), ones);
            asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products)); // in its place: else GCC moves sums about
        };
        more(a, w);
        more(b, w + 32);
        more(c, w + 64);
    }
    void store_to(int32_t *out) const {
        store(out, a);
        store(out + 8, b);
        store(out + 16, c);
    }
};

// The products of four rows with a panel, added to what they begin with.
static inline void product(const uint8_t *rows, int64_t apart, const int8_t *w, int64_t quads, const int32_t *begin,
                    int32_t *out, int64_t out_apart) {
    Three a(begin), b(begin), c(begin), d(begin);
    for (int64_t quad = 0; quad < quads; quad++) {
        a.add(rows + 4 * quad, w + quad * 4 * WIDE);
        b.add(rows + apart + 4 * quad, w + quad * 4 * WIDE);
        c.add(rows + 2 * apart + 4 * quad, w + quad * 4 * WIDE);
        d.add(rows + 3 * apart + 4 * quad, w + quad * 4 * WIDE);
    }
    a.store_to(out);
    b.store_to(out + out_apart);
    c.store_to(out + 2 * out_apart);
    d.store_to(out + 3 * out_apart);
}

static inline void pack(const v8 *weights, uint8_t *to) {
    const auto integers = [&](int i) { return _mm256_cvtps_epi32((__m256)weights[i]); };
    const __m256i low = _mm256_packus_epi32(integers(0), integers(1)), high = _mm256_packus_epi32(integers(2), integers(3));
    store(to, _mm256_packus_epi16(low, high));
}

#else

static inline void product(const uint8_t *rows, int64_t apart, const int8_t *w, int64_t quads, const int32_t *begin,
                    int32_t *out, int64_t out_apart) {
    for (int m = 0; m < 4; m++)
        for (int c = 0; c < WIDE; c++) {
            int32_t sum = begin[c];
            for (int64_t i = 0; i < 4 * quads; i++) sum += rows[m * apart + i] * w[(i / 4 * WIDE + c) * 4 + i % 4];
            out[m * out_apart + c] = sum;
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
