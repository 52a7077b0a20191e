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
#include <initializer_list>

#include "four.h"
#include "linear_q.h"
#include "pool.h"

namespace {

constexpr int64_t QUAD = PANEL * 4; // weights of four places
constexpr int64_t PART = 64;        // quads that many rows meet at a time: of two panels, half of the first cache
constexpr int64_t MOST = 192;       // rows of a portion

// Where panels begin, of one layer or of two, that rows meet together.
template <int PANELS> using Weights = const int8_t *[PANELS];

#if defined(__AVX512VNNI__)
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

#elif defined(__AVX2__)
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
void add_lost(const Row &row, const Wide &wide, const int8_t *w, int32_t *out) {
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

#endif
#if defined(__AVX512VNNI__)

void add_lost(const Row &, const Wide &, const int8_t *, int32_t *) {}

template <class F> void find_wide(const int8_t *, int64_t, const F &) {}

#endif
#if defined(__AVX2__)

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

#else

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

void add_lost(const Row &, const Wide &, const int8_t *, int32_t *) {}

template <class F> void find_wide(const int8_t *, int64_t, const F &) {}

template <int PANELS> void add_outliers(const Row &row, const Weights<PANELS> &w, int32_t (*sums)[PANEL]) {
    for (int32_t i = 0; i < row.n_outliers; i++)
        for (int p = 0; p < PANELS; p++) {
            const Outlier outlier = row.outliers[i];
            const int8_t *one = w[p] + outlier.place / 4 * QUAD + outlier.place % 4;
            for (int c = 0; c < PANEL; c++) sums[p][c] += outlier.excess * one[4 * c];
        }
}

#endif

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
