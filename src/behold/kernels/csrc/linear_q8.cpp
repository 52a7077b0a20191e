// x · (q · scale)ᵀ + bias with weights q of 8 bits: [panel of 32 columns][four places of K][column][place].
//
// The sums are exact, so they may be formed in any order: with few rows, weights are read from four parts of a panel at
// a time, as memory likes it; with many, three rows share what is read.

#include <cstring>

#include "four.h"
#include "linear_q.h"

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

void add_outliers(const Row &row, const int8_t *w, int32_t *out) {
    for (int32_t i = 0; i < row.n_outliers; i++) {
        const Outlier outlier = row.outliers[i];
        const int8_t *one = w + outlier.place / 4 * QUAD + outlier.place % 4;
        for (int c = 0; c < PANEL; c++) out[c] += outlier.excess * one[4 * c];
    }
}

#endif

// MR rows of a panel, from m on.
template <int MR, int STREAMS> void tile(const Columns &columns, const int8_t *w, int64_t quads, int64_t m, int64_t panel) {
    alignas(32) int32_t sums[MR][PANEL];
    product<MR, STREAMS>(columns.rows + m, w, quads, sums);
    for (int i = 0; i < MR; i++) add_outliers(columns.rows[m + i], w, sums[i]);
    for (int i = 0; i < MR; i++) columns.finish(m + i, panel, sums[i]);
}

template <int STREAMS>
void tiles(const Columns &columns, const int8_t *w, int64_t quads, int64_t begin, int64_t end, int64_t panel) {
    int64_t m = begin;
    for (; end - m >= 3 && end - m != 4; m += 3) tile<3, STREAMS>(columns, w, quads, m, panel);
    for (; end - m >= 2; m += 2) tile<2, STREAMS>(columns, w, quads, m, panel);
    for (; m < end; m++) tile<1, STREAMS>(columns, w, quads, m, panel);
}

} // namespace

void panel_q8(const Columns &columns, int64_t k, int64_t begin, int64_t end, int64_t panel, bool few) {
    const int64_t quads = (k + 3) / 4;
    const int8_t *w = static_cast<const int8_t *>(columns.layer.w) + panel * quads * QUAD;
    (few ? tiles<4> : tiles<1>)(columns, w, quads, begin, end, panel);
}
