// x · (q · scale)ᵀ + bias with weights q of 8 bits: [panel of 32 columns][four places of K][column][place].
//
// The sums are exact, so they may be formed in any order: with few rows, weights are read from four parts of a panel at
// a time, as memory likes it; with many, what of two panels stays in the first cache meets all rows of a portion.
//
// With many rows, the products of eight places are added in 16 bits before they are widened, two pairs of weights in
// each sum: a sixth fewer instructions. Nearly always they fit. Where the weights are such that they may not, which is
// looked for once (bh_wide_q8), and a row's integers are large there, what 16 bits lost is found and added. AVX-512 with
// VNNI has one instruction for four places, whose sums have 32 bits: there nothing is added by eights.

#include <cstring>
#include "pool.h"
#include "products_q8.h"

namespace {

constexpr int64_t PART = 64;  // quads that many rows meet at a time: of two panels, half of the first cache
constexpr int64_t MOST = 192; // rows of a portion

const int8_t *weights_of(const Panel &panel, int64_t quads) {
    return static_cast<const int8_t *>(panel.columns->layer->w) + panel.number * quads * QUAD;
}

// MR rows of N panels, from m on.
template <int MR, int N> void few(const Panel *panels, const Weights<N> &w, int64_t quads, int64_t m) {
    alignas(64) int32_t sums[MR][N][PANEL];
    const Row *rows = panels->columns->rows + m;
    product<MR, N>(rows, w, quads, sums);
    for (int p = 0; p < N; p++)
        for (int i = 0; i < MR; i++) {
            add_outliers<1>(rows[i], {w[p]}, sums[i] + p);
            panels[p].columns->finish(m + i, panels[p].number, sums[i][p]);
        }
}

// Rows [begin, end) of N panels.
template <int N> void few_of(const Panel *panels, int64_t quads, int64_t begin, int64_t end) {
    Weights<N> w;
    for (int p = 0; p < N; p++) w[p] = weights_of(panels[p], quads);
    int64_t m = begin;
    for (; end - m >= TILE && end - m != 4; m += TILE) few<TILE, N>(panels, w, quads, m);
    for (; end - m >= 2; m += 2) few<2, N>(panels, w, quads, m);
    if (m < end) few<1, N>(panels, w, quads, m);
}

constexpr int32_t ALL = -1; // the place of the only entry of a panel with too many of them

bool added_by_eights(const Panel &panel) {
    const Layer &layer = *panel.columns->layer;
    if (!BY_EIGHTS || !layer.wide_from || !panel.columns->largest) return false;
    const int32_t *from = layer.wide_from + panel.number;
    return from[0] == from[1] || layer.wide[from[0]].place != ALL;
}

// What the sums of rows [begin, end), which are `apart`, lost is added.
void add_lost(const Panel &panel, const int8_t *w, int64_t quads, int64_t begin, int64_t end, int32_t *sums,
              int64_t apart) {
    const Columns &columns = *panel.columns;
    const int32_t *from = columns.layer->wide_from + panel.number;
    for (int64_t m = begin; m < end; m += TILE) {
        const uint8_t *largest = columns.largest + m / TILE * (quads * 4);
        for (const Wide *wide = columns.layer->wide + from[0]; wide < columns.layer->wide + from[1]; wide++)
            if (largest[wide->place] > wide->limit)
                for (int64_t i = m; i < m + TILE && i < end; i++)
                    add_lost(columns.rows[i], *wide, w, sums + (i - begin) * apart);
    }
}

template <int PANELS, bool EIGHTS> void many(const Panel *panels, int64_t quads, int64_t begin, int64_t end) {
    alignas(32) int32_t sums[MOST][PANELS][PANEL];
    const Row *rows = panels[0].columns->rows + begin;
    const int64_t count = end - begin;
    Weights<PANELS> all, part;
    for (int p = 0; p < PANELS; p++)
        all[p] = weights_of(panels[p], quads);
    std::memset(sums, 0, count * sizeof *sums);
    for (int64_t quad = 0; quad < quads; quad += PART) {
        for (int p = 0; p < PANELS; p++) part[p] = all[p] + quad * QUAD;
        const int64_t some = quads - quad < PART ? quads - quad : PART;
        for (int64_t m = 0, next; m < count; m = next) {
            const bool whole = count - m >= ROWS;
            next = m + (whole ? ROWS : 1);
            for (int64_t i = m; i < next && quad + PART >= quads; i++)
                for (int p = 0; p < PANELS; p++) panels[p].columns->expect(begin + i, panels[p].number);
            const auto add = whole ? add_part<PANELS, EIGHTS, ROWS> : add_part<PANELS, EIGHTS, 1>;
            add(rows + m, 4 * quad, part, some, sums + m);
        }
    }
    for (int p = 0; p < PANELS && EIGHTS; p++)
        add_lost(panels[p], all[p], quads, begin, end, sums[0][p], PANELS * PANEL);
    for (int64_t m = 0; m < count; m++) {
        add_outliers<PANELS>(rows[m], all, sums[m]);
        for (int p = 0; p < PANELS; p++) panels[p].columns->finish(begin + m, panels[p].number, sums[m][p]);
    }
}

} // namespace

void few_q8(const Panel *panels, int count, int64_t k, int64_t begin, int64_t end) {
    const int64_t quads = (k + 3) / 4;
    if (count == STREAMS) return few_of<STREAMS>(panels, quads, begin, end);
    for (int p = 0; p < count; p++) few_of<1>(panels + p, quads, begin, end);
}

void many_q8(const Panel *panels, int count, int64_t k, int64_t begin, int64_t end) {
    const int64_t quads = (k + 3) / 4;
    const bool eights = added_by_eights(panels[0]) && added_by_eights(panels[count - 1]);
    const auto how = count > 1 ? eights ? many<2, true> : many<2, false> : eights ? many<1, true> : many<1, false>;
    how(panels, quads, begin, end);
}

void largest_q8(const Row *rows, int64_t count, int64_t k, uint8_t *out) {
    const int64_t places = (k + 3) / 4 * 4;
    const uint8_t *a = rows[0].integers, *b = rows[count > 1].integers, *c = rows[count > 2 ? 2 : 0].integers;
    const auto more = [](uint8_t x, uint8_t y) { return x > y ? x : y; };
    for (int64_t i = 0; i < places; i++) {
        const uint8_t first = more(more(a[i], a[i + 1]), more(a[i + 4], a[i + 5]));
        const uint8_t second = more(more(b[i], b[i + 1]), more(b[i + 4], b[i + 5]));
        const uint8_t third = more(more(c[i], c[i + 1]), more(c[i + 4], c[i + 5]));
        out[i] = more(more(first, second), third);
    }
}

// What must be known of a layer's weights w, of (k + 3) / 4 quads, so that their products may be added by eights: for
// each panel how many entries it has or, with entries, those of panel p from[p] places from the first on.
BH_EXPORT void bh_wide_q8(const int8_t *w, int64_t panels, int64_t k, int32_t *counts, const int32_t *from,
                          Wide *entries, int threads) {
    const int64_t quads = (k + 3) / 4;
    in_parallel(panels, 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; panel++) {
            const int8_t *own = w + panel * quads * QUAD;
            if (entries && counts[panel] == 0) continue;
            int64_t count = 0;
            Wide *out = entries ? entries + from[panel] : nullptr;
            find_wide(own, quads, [&](int32_t place, int column, int32_t limit) {
                const Wide wide{place, static_cast<int16_t>(column), static_cast<int16_t>(limit)};
                if (out && count < counts[panel]) out[count] = wide;
                count++;
            });
            const bool too_many = count > quads / 2; // it would take longer than what is saved
            if (!entries) counts[panel] = too_many ? 1 : static_cast<int32_t>(count);
            if (entries && too_many) out[0] = {ALL, 0, 0};
        }
    });
}
