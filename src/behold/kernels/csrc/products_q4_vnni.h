// Products with codes of 4 bits, AVX-512 with VNNI: four pairs of bytes are multiplied and added in 32 bits at once, which
// more than makes up for a multiplication by the multipliers.
#pragma once

#include "four.h"

namespace {

constexpr int ROWS = 6; // that meet spread weights together

// -8 times the sum of a row's 32 signed integers: what its products with a group's codes begin at.
inline int32_t offset(const uint8_t *integers) {
    const __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), load(integers));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    return -8 * _mm_cvtsi128_si32(four);
}

inline __m512i sixteen(const int8_t *multipliers) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(multipliers)));
}

// sums += a group's products, which are multiplied.
inline void add_part(const Two &part, __m512i first, __m512i last, Two &sums) {
    sums.a = _mm512_add_epi32(sums.a, _mm512_mullo_epi32(part.a, first));
    sums.b = _mm512_add_epi32(sums.b, _mm512_mullo_epi32(part.b, last));
}

// The product of MR rows with N panels: from four at a time, or of one from four places.
template <int MR, int N>
void product_of_few(const Row *rows, const int32_t *offsets, const Codes (&panels)[N], int64_t groups,
                    int32_t (*out)[N][PANEL]) {
    const __m512i low = _mm512_set1_epi8(15);
    Two sums[MR][N];
    const auto group = [&](int64_t g) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int p = 0; p < N; p++) {
            const uint8_t *w = panels[p].codes + g * GROUP_BYTES;
            Two part[MR];
#pragma GCC unroll 4
            for (int m = 0; m < MR; m++) part[m].a = part[m].b = _mm512_set1_epi32(offsets[m * groups + g]);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const __m512i one = load64(w + 128 * j), two = load64(w + 128 * j + 64);
                __builtin_prefetch(w + 128 * j + AHEAD, 0, 2);
                __builtin_prefetch(w + 128 * j + AHEAD + 64, 0, 2);
                const __m512i one_low = _mm512_and_si512(one, low), two_low = _mm512_and_si512(two, low);
                const __m512i one_high = _mm512_and_si512(_mm512_srli_epi16(one, 4), low);
                const __m512i two_high = _mm512_and_si512(_mm512_srli_epi16(two, 4), low);
#pragma GCC unroll 4
                for (int m = 0; m < MR; m++) {
                    const uint8_t *x = rows[m].integers + g * GROUP + 4 * j;
                    const __m512i first = four_places64(x), last = four_places64(x + 16);
                    part[m].a = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(part[m].a, one_low, first), one_high, last);
                    part[m].b = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(part[m].b, two_low, first), two_high, last);
                }
            }
            const int8_t *multipliers = panels[p].multipliers + g * PANEL;
#pragma GCC unroll 4
            for (int m = 0; m < MR; m++) add_part(part[m], sixteen(multipliers), sixteen(multipliers + 16), sums[m][p]);
        }
    };
    const int64_t parts = N > 1 ? 1 : STREAMS, part = groups / parts;
    for (int64_t i = 0; i < part; i++)
        for (int64_t s = 0; s < parts; s++) group(s * part + i);
    for (int64_t g = part * parts; g < groups; g++) group(g);
    for (int m = 0; m < MR; m++)
        for (int p = 0; p < N; p++) sums[m][p].store_to(out[m][p]);
}

// Some groups of a panel as the products of many rows want them.
struct Spread {
    alignas(64) int8_t codes[SPREAD * GROUP * PANEL];
    alignas(64) int32_t multipliers[SPREAD * PANEL];

    void fill(const uint8_t *w, const int8_t *from, int64_t groups) {
        const __m512i low = _mm512_set1_epi8(15), middle = _mm512_set1_epi8(8);
        for (int64_t g = 0; g < groups; g++) {
            int8_t *out = codes + g * GROUP * PANEL;
            for (int64_t i = 0; i < GROUP_BYTES; i += 64) {
                const __m512i both = load64(w + g * GROUP_BYTES + i);
                const __m512i above = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
                store64(out + i, _mm512_sub_epi8(_mm512_and_si512(both, low), middle));
                store64(out + GROUP_BYTES + i, _mm512_sub_epi8(above, middle));
            }
            for (int v = 0; v < 2; v++) store64(multipliers + g * PANEL + 16 * v, sixteen(from + g * PANEL + 16 * v));
        }
    }

    // Adds an outlier, whose place is counted from here.
    void add(const Outlier &outlier, int32_t place, int32_t *sums) const {
        const __m512i at = _mm512_set1_epi32(outlier.at), excess = _mm512_set1_epi32(outlier.excess);
        for (int v = 0; v < 2; v++) {
            const int8_t *quad = codes + (place & ~3) * PANEL + 64 * v;
            const __m512i code = _mm512_dpbusd_epi32(_mm512_setzero_si512(), at, load64(quad));
            const __m512i weight = _mm512_mullo_epi32(code, load64(multipliers + (place & -GROUP) + 16 * v));
            store64(sums + 16 * v, _mm512_add_epi32(load64(sums + 16 * v), _mm512_mullo_epi32(weight, excess)));
        }
    }
};

// Adds the product of N rows' integers, from a place on, with the spread groups.
template <int N>
void product(const Row *rows, int64_t place, const Spread &panel, int64_t groups, int32_t (*out)[PANEL]) {
    Two sums[N];
#pragma GCC unroll 8
    for (int m = 0; m < N; m++) sums[m] = {load64(out[m]), load64(out[m] + 16)};
    for (int64_t g = 0; g < groups; g++) {
        Two part[N];
        const int8_t *w = panel.codes + g * GROUP * PANEL;
        const int64_t at = place + g * GROUP;
#pragma GCC unroll 8
        for (int quad = 0; quad < GROUP; quad += 4) {
            const __m512i first = load64(w + quad * PANEL), last = load64(w + quad * PANEL + 64);
#pragma GCC unroll 8
            for (int m = 0; m < N; m++) {
                const __m512i four = four_places64(rows[m].integers + at + quad);
                part[m].a = _mm512_dpbusd_epi32(part[m].a, four, first);
                part[m].b = _mm512_dpbusd_epi32(part[m].b, four, last);
            }
        }
        const __m512i first = load64(panel.multipliers + g * PANEL), last = load64(panel.multipliers + g * PANEL + 16);
#pragma GCC unroll 8
        for (int m = 0; m < N; m++) add_part(part[m], first, last, sums[m]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < N; m++) sums[m].store_to(out[m]);
}

inline void add_outliers(const Row &row, const uint8_t *w, const int8_t *multipliers, int32_t *out) {
    const __m512i low = _mm512_set1_epi32(15), middle = _mm512_set1_epi32(8);
    for (int32_t i = 0; i < row.n_outliers; i++) {
        const Outlier &outlier = row.outliers[i];
        const int64_t g = outlier.place / GROUP, at = outlier.place % GROUP;
        const uint8_t *quad = w + g * GROUP_BYTES + at % 16 / 4 * 128;
        const __m128i down = _mm_cvtsi32_si128(static_cast<int>(at % 4 * 8 + at / 16 * 4));
        const __m512i excess = _mm512_set1_epi32(outlier.excess);
        for (int v = 0; v < 2; v++) {
            const __m512i code = _mm512_and_si512(_mm512_srl_epi32(load64(quad + 64 * v), down), low);
            const __m512i factors = sixteen(multipliers + g * PANEL + 16 * v);
            const __m512i weight = _mm512_mullo_epi32(_mm512_sub_epi32(code, middle), factors);
            store64(out + 16 * v, _mm512_add_epi32(load64(out + 16 * v), _mm512_mullo_epi32(weight, excess)));
        }
    }
}

} // namespace
