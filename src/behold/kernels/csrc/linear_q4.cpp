// x · ((code - 8) · multiplier · scale)ᵀ + bias with codes of 4 bits: [panel of 32 columns][32 places of K][four places]
// [column][place], where a byte holds a place of the first 16 below and of the last 16 above; and a signed 8-bit
// multiplier for each column of each 32 places.
//
// For few rows, codes are used as they are read; for more, a part of a panel is spread to bytes first. All sums are exact,
// so both give the same.

#include <cstring>

#include "products_q4.h"

namespace {

constexpr int64_t MOST = 192; // rows of a portion

// MR rows of N panels, from m on, whose codes are used as they are read.
template <int MR, int N>
void few(const Panel *panels, const Codes (&own)[N], int64_t groups, const int32_t *offsets, int64_t m) {
    alignas(64) int32_t sums[MR][N][PANEL];
    const Row *rows = panels->columns->rows + m;
    product_of_few<MR, N>(rows, offsets + m * groups, own, groups, sums);
    for (int p = 0; p < N; p++)
        for (int i = 0; i < MR; i++) {
            add_outliers(rows[i], own[p].codes, own[p].multipliers, sums[i][p]);
            panels[p].columns->finish(m + i, panels[p].number, sums[i][p]);
        }
}

// Rows [begin, end) of N panels.
template <int N>
void few_of(const Panel *panels, int64_t groups, int64_t begin, int64_t end, const int32_t *offsets) {
    Codes own[N];
    for (int p = 0; p < N; p++) own[p] = Codes(panels[p], groups);
    int64_t m = begin;
    for (; end - m >= 2; m += 2) few<2, N>(panels, own, groups, offsets, m);
    if (m < end) few<1, N>(panels, own, groups, offsets, m);
}

} // namespace

void offsets_q4(const Row &row, int64_t groups, int32_t *offsets) {
    for (int64_t g = 0; g < groups; g++) offsets[g] = offset(row.integers + g * GROUP);
}

void few_q4(const Panel *panels, int count, int64_t k, int64_t begin, int64_t end, const int32_t *offsets) {
    const int64_t groups = (k + GROUP - 1) / GROUP;
    if (count == STREAMS) return few_of<STREAMS>(panels, groups, begin, end, offsets);
    for (int p = 0; p < count; p++) few_of<1>(panels + p, groups, begin, end, offsets);
}

void many_q4(const Panel &panel, int64_t k, int64_t begin, int64_t end) {
    const int64_t groups = (k + GROUP - 1) / GROUP;
    const Columns &columns = *panel.columns;
    const Codes own(panel, groups);
    alignas(32) int32_t sums[MOST][PANEL];
    int32_t next[MOST]; // of each row's outliers, which are in order
    Spread spread;
    std::memset(sums, 0, (end - begin) * sizeof *sums);
    std::memset(next, 0, (end - begin) * sizeof *next);
    const Row *rows = columns.rows + begin;
    for (int64_t g = 0; g < groups; g += SPREAD) {
        const int64_t some = groups - g < SPREAD ? groups - g : SPREAD;
        spread.fill(own.codes + g * GROUP_BYTES, own.multipliers + g * PANEL, some);
        for (int64_t m = 0, done = 0; m < end - begin; m++) {
            if (g + SPREAD >= groups) columns.expect(begin + m, panel.number);
            if (m == done) {
                const bool whole = end - begin - m >= ROWS;
                (whole ? product<ROWS> : product<1>)(rows + m, g * GROUP, spread, some, sums + m);
                done += whole ? ROWS : 1;
            }
            for (; next[m] < rows[m].n_outliers; next[m]++) {
                const Outlier &outlier = rows[m].outliers[next[m]];
                if (outlier.place >= (g + some) * GROUP) break;
                spread.add(outlier, outlier.place - static_cast<int32_t>(g * GROUP), sums[m]);
            }
        }
    }
    for (int64_t m = begin; m < end; m++) columns.finish(m, panel.number, sums[m - begin]);
}
