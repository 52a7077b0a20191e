// x · (q · scale)ᵀ + bias with weights q of 8 bits: [panel of 32 columns][four places of K][column][place].
//
// The sums are exact, so they may be formed in any order: with few rows, weights are read from four parts of a panel at
// a time, as memory likes it; with many, three rows share what is read.
//
// With many rows, the products of eight places are added in 16 bits before they are widened, two pairs of weights in
// each sum: a sixth fewer instructions. Nearly always they fit. Where the weights are such that they may not, which is
// looked for once (bh_wide_q8), and a row's integers are large there, what 16 bits lost is found and added.

#include <cstring>
#include <initializer_list>

#include "four.h"
#include "linear_q.h"
#include "pool.h"

namespace {

constexpr int64_t QUAD = PANEL * 4; // weights of four places

#if defined(__AVX2__)

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

// The product of MR rows with a panel, read from STREAMS places at a time.
template <int MR, int STREAMS> void product(const Row *rows, const int8_t *w, int64_t quads, int32_t (*out)[PANEL]) {
    Four first, second, third;
    const uint8_t *a = rows[0].integers, *b = rows[MR > 1].integers, *c = rows[MR > 2 ? 2 : 0].integers;
    const auto step = [&](int64_t quad) __attribute__((always_inline)) {
        add(first, a, w, quad);
        if (MR > 1) add(second, b, w, quad);
        if (MR > 2) add(third, c, w, quad);
    };
    const int64_t part = quads / STREAMS;
    for (int64_t i = 0; i < part; i++)
        for (int s = 0; s < STREAMS; s++) step(s * part + i);
    for (int64_t i = part * STREAMS; i < quads; i++) step(i);
    first.store_to(out[0]);
    if (MR > 1) second.store_to(out[MR > 1]);
    if (MR > 2) third.store_to(out[MR > 2 ? 2 : 0]);
}

// In its place: the compiler would copy sums from register to register.
inline __attribute__((always_inline)) void add_to(__m256i &sum, __m256i value) {
    asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(value));
}

// The products of eight places of a row with a panel are added; sums of four may have lost 65536.
inline __attribute__((always_inline)) void add_eight(Four &sums, const uint8_t *integers, const int8_t *w) {
    const __m256i ones = _mm256_set1_epi16(1), a = four_places(integers), b = four_places(integers + 4);
    const auto product = [&](int v) __attribute__((always_inline)) {
        const __m256i low = _mm256_maddubs_epi16(a, load(w + 32 * v));
        return _mm256_madd_epi16(_mm256_add_epi16(low, _mm256_maddubs_epi16(b, load(w + QUAD + 32 * v))), ones);
    };
    add_to(sums.a, product(0));
    add_to(sums.b, product(1));
    add_to(sums.c, product(2));
    add_to(sums.d, product(3));
}

template <int MR> void product_of_eights(const Row *rows, const int8_t *w, int64_t quads, int32_t (*out)[PANEL]) {
    Four first, second, third;
    const uint8_t *a = rows[0].integers, *b = rows[MR > 1].integers, *c = rows[MR > 2 ? 2 : 0].integers;
    int64_t quad = 0;
    for (; quad + 2 <= quads; quad += 2) {
        add_eight(first, a + 4 * quad, w + quad * QUAD);
        if (MR > 1) add_eight(second, b + 4 * quad, w + quad * QUAD);
        if (MR > 2) add_eight(third, c + 4 * quad, w + quad * QUAD);
    }
    if (quad < quads) {
        add(first, a, w, quad);
        if (MR > 1) add(second, b, w, quad);
        if (MR > 2) add(third, c, w, quad);
    }
    first.store_to(out[0]);
    if (MR > 1) second.store_to(out[MR > 1]);
    if (MR > 2) third.store_to(out[MR > 2 ? 2 : 0]);
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

// What a row's outliers have beyond the window, by a panel, is added.
void add_outliers(const Row &row, const int8_t *w, int32_t *out) {
    Four sums;
    sums.load_from(out);
    for (int32_t i = 0; i < row.n_outliers; i++) {
        const Outlier &outlier = row.outliers[i];
        const int8_t *quad = w + (outlier.place & ~3) * PANEL;
        const __m256i one = _mm256_set1_epi32(outlier.at);
        const __m256i excess = _mm256_set1_epi16(static_cast<int16_t>(outlier.excess));
        const auto product = [&](int v) __attribute__((always_inline)) {
            const __m256i weight = _mm256_maddubs_epi16(one, load(quad + 32 * v)); // beside 16 zeros
            return _mm256_madd_epi16(weight, excess);
        };
        sums.a = _mm256_add_epi32(sums.a, product(0));
        sums.b = _mm256_add_epi32(sums.b, product(1));
        sums.c = _mm256_add_epi32(sums.c, product(2));
        sums.d = _mm256_add_epi32(sums.d, product(3));
    }
    sums.store_to(out);
}

#else

template <int MR, int STREAMS> void product(const Row *rows, const int8_t *w, int64_t quads, int32_t (*out)[PANEL]) {
    std::memset(out, 0, MR * sizeof *out);
    for (int64_t quad = 0; quad < quads; quad++)
        for (int m = 0; m < MR; m++) {
            const uint8_t *a = rows[m].integers + 4 * quad;
            const int8_t *b = w + quad * QUAD;
            for (int c = 0; c < PANEL; c++)
                out[m][c] += a[0] * b[4 * c] + a[1] * b[4 * c + 1] + a[2] * b[4 * c + 2] + a[3] * b[4 * c + 3];
        }
}

template <int MR> void product_of_eights(const Row *rows, const int8_t *w, int64_t quads, int32_t (*out)[PANEL]) {
    product<MR, 1>(rows, w, quads, out);
}

void add_lost(const Row &, const Wide &, const int8_t *, int32_t *) {}

template <class F> void find_wide(const int8_t *, int64_t, const F &) {}

void add_outliers(const Row &row, const int8_t *w, int32_t *out) {
    for (int32_t i = 0; i < row.n_outliers; i++) {
        const Outlier outlier = row.outliers[i];
        const int8_t *one = w + outlier.place / 4 * QUAD + outlier.place % 4;
        for (int c = 0; c < PANEL; c++) out[c] += outlier.excess * one[4 * c];
    }
}

#endif

// MR rows of a panel, from m on; `wide` and `last` where eight places are added at a time.
template <int MR, int STREAMS>
void tile(const Columns &columns, const int8_t *w, int64_t quads, int64_t m, int64_t panel, const Wide *wide,
          const Wide *last) {
    alignas(32) int32_t sums[MR][PANEL];
    const Row *rows = columns.rows + m;
    if (STREAMS > 0) {
        product<MR, STREAMS ? STREAMS : 1>(rows, w, quads, sums);
    } else {
        product_of_eights<MR>(rows, w, quads, sums);
        const uint8_t *largest = columns.largest + m / TILE * (quads * 4);
        for (; wide < last; wide++)
            if (largest[wide->place] > wide->limit)
                for (int i = 0; i < MR; i++) add_lost(rows[i], *wide, w, sums[i]);
    }
    for (int i = 0; i < MR; i++) add_outliers(rows[i], w, sums[i]);
    for (int i = 0; i < MR; i++) columns.finish(m + i, panel, sums[i]);
}

// STREAMS 0: eight places at a time.
template <int STREAMS>
void tiles(const Columns &columns, const int8_t *w, int64_t quads, int64_t begin, int64_t end, int64_t panel) {
    const int32_t *from = STREAMS ? nullptr : columns.layer.wide_from + panel;
    const Wide *wide = from ? columns.layer.wide + from[0] : nullptr;
    const Wide *last = from ? columns.layer.wide + from[1] : nullptr;
    int64_t m = begin;
    for (; end - m >= TILE && (end - m != 4 || !STREAMS); m += TILE)
        tile<TILE, STREAMS>(columns, w, quads, m, panel, wide, last);
    for (; end - m >= 2; m += 2) tile<2, STREAMS>(columns, w, quads, m, panel, wide, last);
    if (m < end) tile<1, STREAMS>(columns, w, quads, m, panel, wide, last);
}

constexpr int32_t ALL = -1; // the place of the only entry of a panel with too many of them

bool added_by_eights(const Layer &layer, int64_t panel) {
    if (!layer.wide_from) return false;
    const int32_t *from = layer.wide_from + panel;
    return from[0] == from[1] || layer.wide[from[0]].place != ALL;
}

} // namespace

void panel_q8(const Columns &columns, int64_t k, int64_t begin, int64_t end, int64_t panel, bool few) {
    const int64_t quads = (k + 3) / 4;
    const int8_t *w = static_cast<const int8_t *>(columns.layer.w) + panel * quads * QUAD;
    const bool eights = !few && columns.largest && added_by_eights(columns.layer, panel);
    (few ? tiles<4> : eights ? tiles<0> : tiles<1>)(columns, w, quads, begin, end, panel);
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
