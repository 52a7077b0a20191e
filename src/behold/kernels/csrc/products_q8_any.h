// Products with weights of 8 bits, on any CPU.
#pragma once

#include <cstring>

namespace {

constexpr int ROWS = 1;

template <int PANELS, bool, int>
void add_part(const Row *row, int64_t place, const Weights<PANELS> &w, int64_t quads, int32_t (*sums)[PANELS][PANEL]) {
    for (int64_t quad = 0; quad < quads; quad++)
        for (int p = 0; p < PANELS; p++) {
            const uint8_t *a = row->integers + place + 4 * quad;
            const int8_t *b = w[p] + quad * QUAD;
            for (int c = 0; c < PANEL; c++)
                sums[0][p][c] += a[0] * b[4 * c] + a[1] * b[4 * c + 1] + a[2] * b[4 * c + 2] + a[3] * b[4 * c + 3];
        }
}

template <int MR, int>
void product(const Row *rows, const Weights<1> &w, int64_t quads, int32_t (*out)[1][PANEL]) {
    std::memset(out, 0, MR * sizeof *out);
    for (int m = 0; m < MR; m++) add_part<1, false, 1>(rows + m, 0, w, quads, out + m);
}

inline void add_lost(const Row &, const Wide &, const int8_t *, int32_t *) {}

template <class F> void find_wide(const int8_t *, int64_t, const F &) {}

template <int PANELS> void add_outliers(const Row &row, const Weights<PANELS> &w, int32_t (*sums)[PANEL]) {
    for (int32_t i = 0; i < row.n_outliers; i++)
        for (int p = 0; p < PANELS; p++) {
            const Outlier outlier = row.outliers[i];
            const int8_t *one = w[p] + outlier.place / 4 * QUAD + outlier.place % 4;
            for (int c = 0; c < PANEL; c++) sums[p][c] += outlier.excess * one[4 * c];
        }
}

} // namespace
