// Products with codes of 4 bits, on any CPU.
#pragma once

#include <cstring>

namespace {

constexpr int ROWS = 1;

inline int32_t offset(const uint8_t *) { return 0; }

inline int32_t weight(const uint8_t *w, const int8_t *multipliers, int64_t place, int column) {
    const int64_t g = place / GROUP, at = place % GROUP;
    const uint8_t both = w[g * GROUP_BYTES + at % 16 / 4 * 128 + column * 4 + at % 4];
    return ((at < 16 ? both & 15 : both >> 4) - 8) * multipliers[g * PANEL + column];
}

template <int MR, int>
void product_of_few(const Row *rows, const int32_t *, const Codes (&panel)[1], int64_t groups,
                    int32_t (*out)[1][PANEL]) {
    const uint8_t *w = panel->codes;
    const int8_t *multipliers = panel->multipliers;
    std::memset(out, 0, MR * sizeof *out);
    for (int m = 0; m < MR; m++)
        for (int64_t k = 0; k < groups * GROUP; k++)
            for (int c = 0; c < PANEL; c++) out[m][0][c] += static_cast<int8_t>(rows[m].integers[k]) * weight(w, multipliers, k, c);
}

struct Spread {
    int16_t weights[SPREAD * GROUP * PANEL];

    void fill(const uint8_t *w, const int8_t *multipliers, int64_t groups) {
        for (int64_t k = 0; k < groups * GROUP; k++)
            for (int c = 0; c < PANEL; c++)
                weights[k * PANEL + c] = static_cast<int16_t>(weight(w, multipliers, k, c));
    }

    void add(const Outlier &outlier, int32_t place, int32_t *sums) const {
        for (int c = 0; c < PANEL; c++) sums[c] += outlier.excess * weights[place * PANEL + c];
    }
};

template <int> void product(const Row *row, int64_t place, const Spread &panel, int64_t groups, int32_t (*out)[PANEL]) {
    for (int64_t k = 0; k < groups * GROUP; k++)
        for (int c = 0; c < PANEL; c++) out[0][c] += row->integers[place + k] * panel.weights[k * PANEL + c];
}

inline void add_outliers(const Row &row, const uint8_t *w, const int8_t *multipliers, int32_t *out) {
    for (int32_t i = 0; i < row.n_outliers; i++)
        for (int c = 0; c < PANEL; c++)
            out[c] += row.outliers[i].excess * weight(w, multipliers, row.outliers[i].place, c);
}

} // namespace
