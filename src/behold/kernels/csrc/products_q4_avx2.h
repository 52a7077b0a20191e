// Products with codes of 4 bits, AVX2: those of 32 places with integers of 8 bits fit two sums of 16 bits, and the
// instruction that widens such sums multiplies them as well: a group's multiplier costs nothing.
#pragma once

#include "four.h"

namespace {

constexpr int ROWS = 1; // is as fast as several: the weights are operands anyway, and there are registers for the sums

// Eight multipliers, each twice in 16 bits.
inline __m256i twice(const int8_t *multipliers) {
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(multipliers)));
    return _mm256_blend_epi16(wide, _mm256_slli_epi32(wide, 16), 0xaa);
}

// -8 times the sums of a row's 32 signed integers, as the products of codes and integers are summed: two times 16 bits.
inline int32_t offset(const uint8_t *integers) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), load(integers));
    __m128i sums = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0x4e));
    sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0xb1));
    return _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), _mm_slli_epi16(sums, 3)));
}

// parts += the products of a group's places 4 · j, and those 16 further, of MR rows with a panel.
template <int MR>
inline __attribute__((always_inline)) void add_codes(Four &one, Four &other, const uint8_t *a, const uint8_t *b,
                                                     const uint8_t *w) {
    const __m256i low = _mm256_set1_epi8(15), first = four_places(a), last = four_places(a + 16);
    const __m256i other_first = MR > 1 ? four_places(b) : first, other_last = MR > 1 ? four_places(b + 16) : last;
    const auto add = [&](__m256i &x, __m256i &y, int v) __attribute__((always_inline)) {
        const __m256i codes = load(w + 32 * v), below = _mm256_and_si256(codes, low);
        const __m256i above = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low);
        x = _mm256_add_epi16(x, _mm256_maddubs_epi16(below, first));
        x = _mm256_add_epi16(x, _mm256_maddubs_epi16(above, last));
        if (MR == 1) return;
        y = _mm256_add_epi16(y, _mm256_maddubs_epi16(below, other_first));
        y = _mm256_add_epi16(y, _mm256_maddubs_epi16(above, other_last));
    };
    add(one.a, other.a, 0);
    add(one.b, other.b, 1);
    add(one.c, other.c, 2);
    add(one.d, other.d, 3);
    one.keep();
    if (MR > 1) other.keep();
}

inline __attribute__((always_inline)) void add_part(const Four &part, const int8_t *multipliers, Four &sums) {
    sums.a = _mm256_add_epi32(sums.a, _mm256_madd_epi16(part.a, twice(multipliers)));
    sums.b = _mm256_add_epi32(sums.b, _mm256_madd_epi16(part.b, twice(multipliers + 8)));
    sums.c = _mm256_add_epi32(sums.c, _mm256_madd_epi16(part.c, twice(multipliers + 16)));
    sums.d = _mm256_add_epi32(sums.d, _mm256_madd_epi16(part.d, twice(multipliers + 24)));
}

// 128 bytes are fetched at each of four places.
struct Ahead {
    const uint8_t *from;
    int64_t apart;

    __attribute__((always_inline)) void fetch(int place) const {
        __builtin_prefetch(from + place * apart);
        __builtin_prefetch(from + place * apart + 64);
    }
};

// MR rows by a panel, read from four places at a time. What comes next, in this panel or the one behind it, is fetched
// from all four in turn: memory gives more than where a group's 512 bytes are read at once.
template <int MR, int>
void product_of_few(const Row *rows, const int32_t *offsets, const Codes (&panel)[1], int64_t groups,
                    int32_t (*out)[1][PANEL]) {
    constexpr int PLACES = 4;
    const uint8_t *a = rows[0].integers, *b = rows[MR - 1].integers, *w = panel->codes;
    const int8_t *multipliers = panel->multipliers;
    Four first, second;
    const int64_t part = groups / PLACES;
    const auto group = [&](int64_t g, Ahead ahead) __attribute__((always_inline)) {
        const uint8_t *codes = w + g * GROUP_BYTES, *x = a + g * GROUP, *y = b + g * GROUP;
        Four one, other;
        one.a = one.b = one.c = one.d = _mm256_set1_epi32(offsets[g]);
        if (MR > 1) other.a = other.b = other.c = other.d = _mm256_set1_epi32(offsets[groups + g]);
        for (int j = 0; j < 4; j++) {
            add_codes<MR>(one, other, x + 4 * j, y + 4 * j, codes + 128 * j);
            ahead.fetch(j);
        }
        add_part(one, multipliers + g * PANEL, first);
        if (MR > 1) add_part(other, multipliers + g * PANEL, second);
    };
    for (int64_t i = 0; i < part; i++) {
        const int64_t next = i + 1 < part ? i + 1 : groups;
        for (int s = 0; s < PLACES; s++) {
            if (!(i & 1)) __builtin_prefetch(multipliers + (next + s * part) * PANEL);
            const uint8_t *ahead = w + next * GROUP_BYTES + s * (GROUP_BYTES / PLACES);
            group(s * part + i, {ahead, part * GROUP_BYTES});
        }
    }
    for (int64_t g = part * PLACES; g < groups; g++) group(g, {w + (g + 1) * GROUP_BYTES, 128});
    first.store_to(out[0][0]);
    if (MR > 1) second.store_to(out[MR - 1][0]);
}

// Some groups of a panel as the products of many rows want them.
struct Spread {
    alignas(32) int8_t codes[SPREAD * GROUP * PANEL];
    alignas(32) int32_t multipliers[SPREAD * PANEL]; // twice 16 bits

    void fill(const uint8_t *w, const int8_t *from, int64_t groups) {
        const __m256i low = _mm256_set1_epi8(15), middle = _mm256_set1_epi8(8);
        for (int64_t g = 0; g < groups; g++) {
            int8_t *out = codes + g * GROUP * PANEL;
            for (int64_t i = 0; i < GROUP_BYTES; i += 32) {
                const __m256i both = load(w + g * GROUP_BYTES + i);
                store(out + i, _mm256_sub_epi8(_mm256_and_si256(both, low), middle));
                const __m256i above = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
                store(out + GROUP_BYTES + i, _mm256_sub_epi8(above, middle));
            }
            for (int v = 0; v < 4; v++) store(multipliers + g * PANEL + 8 * v, twice(from + g * PANEL + 8 * v));
        }
    }

    // Adds an outlier, whose place is counted from here.
    void add(const Outlier &outlier, int32_t place, int32_t *sums) const {
        const int8_t *quad = codes + (place & ~3) * PANEL;
        const int32_t *factors = multipliers + (place & -GROUP);
        const __m256i one = _mm256_set1_epi32(outlier.at), beyond = _mm256_set1_epi32(outlier.low);
        for (int v = 0; v < 4; v++) {
            const __m256i code = _mm256_maddubs_epi16(one, load(quad + 32 * v)); // beside 16 zeros
            const __m256i weight = _mm256_madd_epi16(code, load(factors + 8 * v));
            store(sums + 8 * v, _mm256_add_epi32(load(sums + 8 * v), _mm256_madd_epi16(weight, beyond)));
        }
    }
};

// part = or += the products of four places of a row with a panel.
template <bool ADD>
inline __attribute__((always_inline)) void products(Four &part, const uint8_t *integers, const int8_t *w) {
    const __m256i a = four_places(integers);
    const auto product = [&](__m256i sum, int v) __attribute__((always_inline)) {
        const __m256i one = _mm256_maddubs_epi16(a, load(w + 32 * v));
        return ADD ? _mm256_add_epi16(sum, one) : one;
    };
    part.a = product(part.a, 0);
    part.b = product(part.b, 1);
    part.c = product(part.c, 2);
    part.d = product(part.d, 3);
    part.keep();
}

inline __attribute__((always_inline)) void add_part(const Four &part, const int32_t *multipliers, Four &sums) {
    sums.a = _mm256_add_epi32(sums.a, _mm256_madd_epi16(part.a, load(multipliers)));
    sums.b = _mm256_add_epi32(sums.b, _mm256_madd_epi16(part.b, load(multipliers + 8)));
    sums.c = _mm256_add_epi32(sums.c, _mm256_madd_epi16(part.c, load(multipliers + 16)));
    sums.d = _mm256_add_epi32(sums.d, _mm256_madd_epi16(part.d, load(multipliers + 24)));
    sums.keep();
}

// Adds the product of a row's integers, from a place on, with the spread groups.
template <int> void product(const Row *row, int64_t place, const Spread &panel, int64_t groups, int32_t (*all)[PANEL]) {
    const uint8_t *integers = row->integers + place;
    int32_t *out = all[0];
    Four sums{load(out), load(out + 8), load(out + 16), load(out + 24)};
    for (int64_t g = 0; g < groups; g++) {
        Four part;
        const uint8_t *x = integers + g * GROUP;
        const int8_t *w = panel.codes + g * GROUP * PANEL;
        products<false>(part, x, w);
#pragma GCC unroll 7
        for (int at = 4; at < GROUP; at += 4) products<true>(part, x + at, w + at * PANEL);
        add_part(part, panel.multipliers + g * PANEL, sums);
    }
    sums.store_to(out);
}

inline void add_outliers(const Row &row, const uint8_t *w, const int8_t *multipliers, int32_t *out) {
    const __m256i low = _mm256_set1_epi32(15), middle = _mm256_set1_epi32(8), half = _mm256_set1_epi32(0xffff);
    for (int32_t i = 0; i < row.n_outliers; i++) {
        const Outlier outlier = row.outliers[i];
        const int64_t g = outlier.place / GROUP, at = outlier.place % GROUP;
        const uint8_t *quad = w + g * GROUP_BYTES + at % 16 / 4 * 128;
        const __m128i down = _mm_cvtsi32_si128(static_cast<int>(at % 4 * 8 + at / 16 * 4));
        const __m256i excess = _mm256_set1_epi32(outlier.excess & 0xffff);
        for (int v = 0; v < 4; v++) {
            const __m256i code = _mm256_and_si256(_mm256_srl_epi32(load(quad + 32 * v), down), low);
            const __m256i one = _mm256_and_si256(_mm256_sub_epi32(code, middle), half);
            const __m256i weight = _mm256_madd_epi16(one, twice(multipliers + g * PANEL + 8 * v));
            store(out + 8 * v, _mm256_add_epi32(load(out + 8 * v), _mm256_madd_epi16(weight, excess)));
        }
    }
}

} // namespace
