// Products with weights of 8 bits, AVX2: pairs of bytes are multiplied and added in 16 bits, then pairs of those in 32.
#pragma once

#include <initializer_list>

#include "four.h"

namespace {

constexpr int ROWS = 1; // is as fast as several, as the weights are in the first cache, and leaves registers for two panels

// The products of four places of a row with a panel are added.
inline __attribute__((always_inline)) void add(Four &sums, const uint8_t *integers, const int8_t *w, int64_t quad) {
    const __m256i ones = _mm256_set1_epi16(1), a = four_places(integers + 4 * quad);
    const int8_t *b = w + quad * QUAD;
    const auto product = [&](int v) __attribute__((always_inline)) {
        return _mm256_madd_epi16(_mm256_maddubs_epi16(a, load(b + 32 * v)), ones);
    };
    sums.a = _mm256_add_epi32(sums.a, product(0));
    sums.b = _mm256_add_epi32(sums.b, product(1));
    sums.c = _mm256_add_epi32(sums.c, product(2));
    sums.d = _mm256_add_epi32(sums.d, product(3));
    sums.keep();
}

// The product of MR rows with a panel, read from four places at a time.
template <int MR, int>
void product(const Row *rows, const Weights<1> &panel, int64_t quads, int32_t (*all)[1][PANEL]) {
    constexpr int PLACES = 4;
    const int8_t *w = panel[0];
    int32_t(*out)[PANEL] = all[0];
    Four first, second, third;
    const uint8_t *a = rows[0].integers, *b = rows[MR > 1].integers, *c = rows[MR > 2 ? 2 : 0].integers;
    const auto step = [&](int64_t quad) __attribute__((always_inline)) {
        add(first, a, w, quad);
        if (MR > 1) add(second, b, w, quad);
        if (MR > 2) add(third, c, w, quad);
    };
    const int64_t part = quads / PLACES;
    for (int64_t i = 0; i < part; i++)
        for (int s = 0; s < PLACES; s++) step(s * part + i);
    for (int64_t i = part * PLACES; i < quads; i++) step(i);
    first.store_to(out[0]);
    if (MR > 1) second.store_to(out[MR > 1]);
    if (MR > 2) third.store_to(out[MR > 2 ? 2 : 0]);
}

// In its place: the compiler would copy sums from register to register.
inline __attribute__((always_inline)) void add_to(__m256i &sum, __m256i value) {
    asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(value));
}

// The products of eight places, of which a and b have four each, are added; sums of four may have lost 65536.
inline __attribute__((always_inline)) void add_eight(Four &sums, __m256i a, __m256i b, const int8_t *w) {
    const __m256i ones = _mm256_set1_epi16(1);
    const auto product = [&](int v) __attribute__((always_inline)) {
        const __m256i low = _mm256_maddubs_epi16(a, load(w + 32 * v));
        return _mm256_madd_epi16(_mm256_add_epi16(low, _mm256_maddubs_epi16(b, load(w + QUAD + 32 * v))), ones);
    };
    add_to(sums.a, product(0));
    add_to(sums.b, product(1));
    add_to(sums.c, product(2));
    add_to(sums.d, product(3));
}

// sums += the products of a row's integers, from a place on, with quads of each panel, eight places at a time or four.
template <int PANELS, bool EIGHTS, int>
void add_part(const Row *row, int64_t place, const Weights<PANELS> &w, int64_t quads, int32_t (*all)[PANELS][PANEL]) {
    const int8_t *first = w[0], *last = w[PANELS - 1];
    const uint8_t *integers = row->integers + place;
    int32_t(*sums)[PANEL] = all[0];
    Four one, other;
    one.load_from(sums[0]);
    if (PANELS > 1) other.load_from(sums[PANELS - 1]);
    int64_t quad = 0;
    const auto eight = [&] __attribute__((always_inline)) {
        const __m256i a = four_places(integers + 4 * quad), b = four_places(integers + 4 * quad + 4);
        add_eight(one, a, b, first + quad * QUAD);
        if (PANELS > 1) add_eight(other, a, b, last + quad * QUAD);
        quad += 2;
    };
    if (EIGHTS) {
        while (quad + 4 <= quads) {
            eight();
            eight();
        }
        if (quad + 2 <= quads) eight();
    }
    for (; quad < quads; quad++) {
        add(one, integers, first, quad);
        if (PANELS > 1) add(other, integers, last, quad);
    }
    one.store_to(sums[0]);
    if (PANELS > 1) other.store_to(sums[PANELS - 1]);
}

// Four weights as one sum of 16 bits has them: two of a quad, and the two that are four places further.
inline const int8_t *four_weights(const int8_t *w, int64_t place, int64_t column) {
    return w + (place & ~7) * PANEL + column * 4 + (place & 2);
}

constexpr int64_t APART = QUAD; // of the two pairs

// Adds what a row's sums lost, of the four weights that `wide` speaks of.
inline void add_lost(const Row &row, const Wide &wide, const int8_t *w, int32_t *out) {
    const int8_t *four = four_weights(w, wide.place, wide.column);
    const uint8_t *x = row.integers + wide.place;
    const int32_t sum = x[0] * four[0] + x[1] * four[1] + x[4] * four[APART] + x[5] * four[APART + 1];
    out[wide.column] += sum > INT16_MAX ? 1 << 16 : sum < INT16_MIN ? -(1 << 16) : 0;
}

// The largest input with which the products of four weights fit, or 255 where they always do.
inline int32_t limit_of(const int8_t *four) {
    int32_t above = 0, below = 0;
    for (const int64_t at : {int64_t{0}, int64_t{1}, APART, APART + 1}) (four[at] > 0 ? above : below) += four[at];
    const int32_t far = above > -below ? above : -below;
    return far * 127 <= INT16_MAX ? 255 : INT16_MAX / far;
}

// Calls found(place, column, limit) for what may not fit in a panel.
template <class F> void find_wide(const int8_t *w, int64_t quads, const F &found) {
    const __m256i ones = _mm256_set1_epi8(1), most = _mm256_set1_epi16(INT16_MAX / 127);
    for (int64_t quad = 0; quad + 2 <= quads; quad += 2)
        for (int v = 0; v < 4; v++) {
            const int8_t *at = w + quad * QUAD + 32 * v;
            const __m256i low = _mm256_maddubs_epi16(_mm256_abs_epi8(load(at)), ones);
            const __m256i sizes = _mm256_add_epi16(low, _mm256_maddubs_epi16(_mm256_abs_epi8(load(at + APART)), ones));
            auto mask = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpgt_epi16(sizes, most))) & 0x55555555u;
            for (; mask; mask &= mask - 1) {
                const int byte = __builtin_ctz(mask), column = 8 * v + byte / 4;
                const int64_t place = 4 * quad + byte % 4;
                const int32_t limit = limit_of(four_weights(w, place, column));
                if (limit < 255) found(static_cast<int32_t>(place), column, limit);
            }
        }
}

// What a row's outliers have beyond the window, by its panels, is added.
template <int PANELS> void add_outliers(const Row &row, const Weights<PANELS> &w, int32_t (*sums)[PANEL]) {
    Four one, other;
    one.load_from(sums[0]);
    if (PANELS > 1) other.load_from(sums[PANELS - 1]);
    for (int32_t i = 0; i < row.n_outliers; i++) {
        const Outlier &outlier = row.outliers[i];
        const int64_t quad = (outlier.place & ~3) * PANEL;
        const __m256i at = _mm256_set1_epi32(outlier.at);
        const __m256i excess = _mm256_set1_epi16(static_cast<int16_t>(outlier.excess));
        const auto add = [&](Four &to, const int8_t *from) __attribute__((always_inline)) {
            const auto product = [&](int v) __attribute__((always_inline)) {
                const __m256i weight = _mm256_maddubs_epi16(at, load(from + 32 * v)); // beside 16 zeros
                return _mm256_madd_epi16(weight, excess);
            };
            to.a = _mm256_add_epi32(to.a, product(0));
            to.b = _mm256_add_epi32(to.b, product(1));
            to.c = _mm256_add_epi32(to.c, product(2));
            to.d = _mm256_add_epi32(to.d, product(3));
        };
        add(one, w[0] + quad);
        if (PANELS > 1) add(other, w[PANELS - 1] + quad);
    }
    one.store_to(sums[0]);
    if (PANELS > 1) other.store_to(sums[PANELS - 1]);
}

} // namespace
