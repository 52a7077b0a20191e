// x · (q · scale)ᵀ + bias with weights q of 8 bits: [panel of 32 columns][four places of K][column][place].
//
// The sums are exact, so they may be formed in any order: with few rows, weights are read from four parts of a panel at
// a time, as memory likes it; with many, three rows share what is read.

#include <cstring>

#include "four.h"
#include "pool.h"
#include "rows.h"

namespace {

constexpr int64_t QUAD = PANEL * 4; // weights of four places
constexpr int64_t FEW = 16;         // rows for which reading the weights is what takes the time

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
    Four first{}, second{}, third{};
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

void add_outliers(const Row &row, const int8_t *w, int32_t *out) {
    __m256i sums[4];
    for (int v = 0; v < 4; v++) sums[v] = load(out + 8 * v);
    for (int32_t i = 0; i < row.n_outliers; i++) {
        const Outlier outlier = row.outliers[i];
        const int8_t *quad = w + outlier.place / 4 * QUAD;
        const __m128i up = _mm_cvtsi32_si128(24 - 8 * (outlier.place % 4));
        const __m256i excess = _mm256_set1_epi32(outlier.excess & 0xffff); // 16 bits with sign, beside 16 zeros
        for (int v = 0; v < 4; v++) {
            const __m256i four = load(quad + 32 * v);
            const __m256i one = _mm256_srai_epi32(_mm256_sll_epi32(four, up), 24);
            sums[v] = _mm256_add_epi32(sums[v], _mm256_madd_epi16(one, excess));
        }
    }
    for (int v = 0; v < 4; v++) store(out + 8 * v, sums[v]);
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

struct Product {
    Columns columns;
    const int8_t *w;
    int64_t quads;

    template <int MR, int STREAMS> void tile(int64_t m, int64_t panel) const {
        alignas(32) int32_t sums[MR][PANEL];
        const int8_t *weights = w + panel * quads * QUAD;
        product<MR, STREAMS>(columns.rows + m, weights, quads, sums);
        for (int i = 0; i < MR; i++) {
            add_outliers(columns.rows[m + i], weights, sums[i]);
            columns.finish(m + i, panel, sums[i]);
        }
    }

    // Rows [begin, end) of a panel.
    template <int STREAMS> void panel(int64_t begin, int64_t end, int64_t panel) const {
        int64_t m = begin;
        for (; end - m >= 3 && end - m != 4; m += 3) tile<3, STREAMS>(m, panel);
        for (; end - m >= 2; m += 2) tile<2, STREAMS>(m, panel);
        for (; m < end; m++) tile<1, STREAMS>(m, panel);
    }
};

} // namespace

// x (rows, k) and y (rows, n) float32, contiguous; scale (n), sums (n), bias (n) or null.
BH_EXPORT void bh_linear_q8(const float *x, const int8_t *w, const float *scale, const int32_t *sums, const float *bias,
                            float *y, int64_t rows, int64_t k, int64_t n, int threads) {
    const int64_t panels = (n + PANEL - 1) / PANEL, at_once = rows_at_once(k);
    for (int64_t start = 0; start < rows; start += at_once) {
        const int64_t count = rows - start < at_once ? rows - start : at_once;
        const Row *rounded = round_rows(x + start * k, count, k, threads);
        const Product product{{rounded, scale, sums, bias, y + start * n, n}, w, (k + 3) / 4};
        if (count <= FEW) {
            const int64_t grain = panels >= 256 ? 16 : panels >= 32 ? 4 : 1;
            in_parallel(panels, grain, threads, [&](int64_t begin, int64_t end) {
                for (int64_t panel = begin; panel < end; panel++) product.panel<4>(0, count, panel);
            });
            continue;
        }
        const int64_t portion = rows_per_portion(count, k);
        in_parallel((count + portion - 1) / portion * panels, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; item++) {
                const int64_t first = item / panels * portion, last = first + portion < count ? first + portion : count;
                product.panel<1>(first, last, item % panels);
            }
        });
    }
}
