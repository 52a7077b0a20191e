// Products with weights of 8 bits, AVX-512 with VNNI: four pairs of bytes are multiplied and added in 32 bits at once.
#pragma once

#include "four.h"

namespace {

constexpr int ROWS = 3; // that meet a panel's weights together

// The product of MR rows with N panels: from four at a time, or of one from four places.
template <int MR, int N>
void product(const Row *rows, const Weights<N> &w, int64_t quads, int32_t (*out)[N][PANEL]) {
    __m512i sums[MR][2 * N];
#pragma GCC unroll 4
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
        for (int i = 0; i < 2 * N; i++) sums[m][i] = _mm512_setzero_si512();
    const auto step = [&](int64_t quad) __attribute__((always_inline)) {
        __m512i four[MR];
#pragma GCC unroll 4
        for (int m = 0; m < MR; m++) four[m] = four_places64(rows[m].integers + 4 * quad);
#pragma GCC unroll 8
        for (int i = 0; i < 2 * N; i++) {
            const __m512i weights = load64(w[i / 2] + quad * QUAD + i % 2 * 64);
            __builtin_prefetch(w[i / 2] + quad * QUAD + i % 2 * 64 + AHEAD, 0, 2);
#pragma GCC unroll 4
            for (int m = 0; m < MR; m++) sums[m][i] = _mm512_dpbusd_epi32(sums[m][i], four[m], weights);
        }
    };
    const int64_t parts = N > 1 ? 1 : STREAMS, part = quads / parts;
    for (int64_t i = 0; i < part; i++)
        for (int64_t s = 0; s < parts; s++) step(s * part + i);
    for (int64_t i = part * parts; i < quads; i++) step(i);
#pragma GCC unroll 4
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
        for (int i = 0; i < 2 * N; i++) store64(out[m][i / 2] + i % 2 * 16, sums[m][i]);
}

// sums += the products of N rows' integers, from a place on, with quads of each panel.
template <int PANELS, bool, int N>
void add_part(const Row *rows, int64_t place, const Weights<PANELS> &w, int64_t quads, int32_t (*sums)[PANELS][PANEL]) {
    constexpr int WIDTH = 2 * PANELS;
    __m512i all[N][WIDTH];
#pragma GCC unroll 8
    for (int m = 0; m < N; m++)
#pragma GCC unroll 4
        for (int i = 0; i < WIDTH; i++) all[m][i] = load64(sums[m][i / 2] + i % 2 * 16);
    for (int64_t quad = 0; quad < quads; quad++) {
        __m512i weights[WIDTH];
#pragma GCC unroll 4
        for (int i = 0; i < WIDTH; i++) weights[i] = load64(w[i / 2] + quad * QUAD + i % 2 * 64);
#pragma GCC unroll 8
        for (int m = 0; m < N; m++) {
            const __m512i four = four_places64(rows[m].integers + place + 4 * quad);
#pragma GCC unroll 4
            for (int i = 0; i < WIDTH; i++) all[m][i] = _mm512_dpbusd_epi32(all[m][i], four, weights[i]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < N; m++)
#pragma GCC unroll 4
        for (int i = 0; i < WIDTH; i++) store64(sums[m][i / 2] + i % 2 * 16, all[m][i]);
}

// What a row's outliers have beyond what its integers hold, by its panels, is added.
template <int PANELS> void add_outliers(const Row &row, const Weights<PANELS> &w, int32_t (*sums)[PANEL]) {
    const __m512i none = _mm512_setzero_si512();
    __m512i all[2 * PANELS];
#pragma GCC unroll 4
    for (int i = 0; i < 2 * PANELS; i++) all[i] = load64(sums[i / 2] + i % 2 * 16);
    for (int32_t o = 0; o < row.n_outliers; o++) {
        const Outlier &outlier = row.outliers[o];
        const __m512i at = _mm512_set1_epi32(outlier.at), excess = _mm512_set1_epi32(outlier.excess);
#pragma GCC unroll 4
        for (int i = 0; i < 2 * PANELS; i++) {
            const int8_t *quad = w[i / 2] + (outlier.place & ~3) * PANEL + i % 2 * 64;
            const __m512i weights = _mm512_dpbusd_epi32(none, at, load64(quad));
            all[i] = _mm512_add_epi32(all[i], _mm512_mullo_epi32(weights, excess));
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 2 * PANELS; i++) store64(sums[i / 2] + i % 2 * 16, all[i]);
}

inline void add_lost(const Row &, const Wide &, const int8_t *, int32_t *) {}

template <class F> void find_wide(const int8_t *, int64_t, const F &) {}

} // namespace
