// x · wᵀ + b in float32 for few rows, on weights as torch stores them.
//
// With few rows the time goes into reading the weights, so they are read once, from four or eight rows at a time (as
// many streams), and each part is used for all rows of x while it is in the nearest cache. Every sum is formed in the
// same order whatever the number of rows: a row's result does not depend on its neighbours.

#include "pool.h"
#include "replay.h"
#include "tile.h"

namespace {

constexpr int64_t BLOCK = 1024; // of K: four rows of so many weights fill half of a nearest cache
constexpr int64_t GRAIN = 128;  // outputs that a thread takes at a time

struct Product {
    const float *x;
    const float *w;
    const float *bias;
    const float *residual;
    float *y;
    int64_t rows, k, n;
};

// NR outputs from `column` on, for all rows. While they are formed, the weights of the next NR are fetched, a part of
// them with each group of rows, so that reading goes on all the time.
template <int NR> inline void panel(const Product &p, int64_t column) {
    const bool more = p.rows > 1 && column + 2 * NR <= p.n;
    const int groups = static_cast<int>((p.rows + 2) / 3);
    for (int64_t start = 0; start < p.k; start += BLOCK) {
        const int64_t length = p.k - start < BLOCK ? p.k - start : BLOCK;
        const float *w = p.w + column * p.k + start;
        int64_t m = 0;
        for (int group = 0; group < groups; group++) {
            const float *x = p.x + m * p.k + start;
            float *y = p.y + m * p.n + column;
            const int64_t left = p.rows - m;
            const bool add = start > 0;
            const Ahead ahead{w + NR * p.k, more ? NR * group / groups : 0, more ? NR * (group + 1) / groups : 0};
            if (left >= 3 && left != 4) {
                tile<3, NR>(x, p.k, w, p.k, length, y, p.n, add, ahead);
                m += 3;
            } else if (left >= 2) {
                tile<2, NR>(x, p.k, w, p.k, length, y, p.n, add, ahead);
                m += 2;
            } else {
                tile<1, NR>(x, p.k, w, p.k, length, y, p.n, add, ahead);
                m += 1;
            }
        }
    }
    if (p.bias)
        for (int64_t m = 0; m < p.rows; m++)
            for (int n = 0; n < NR; n++) p.y[m * p.n + column + n] += p.bias[column + n];
    if (p.residual)
        for (int64_t m = 0; m < p.rows; m++)
            for (int n = 0; n < NR; n++) p.y[m * p.n + column + n] += p.residual[m * p.n + column + n];
}

} // namespace

// x (rows, k), w (n, k), bias (n) or null, residual (rows, n) or null, y (rows, n); all float32 and contiguous.
BH_EXPORT void bh_linear_f32(const float *x, const float *w, const float *bias, const float *residual, float *y,
                             int64_t rows, int64_t k, int64_t n, int threads) {
    const Product p{x, w, bias, residual, y, rows, k, n};
    in_parallel(n, GRAIN, threads, [&](int64_t begin, int64_t end) {
        int64_t column = begin;
        if (rows == 1)
            for (; column + 8 <= end; column += 8) panel<8>(p, column);
        for (; column + 4 <= end; column += 4) panel<4>(p, column);
        for (; column < end; column++) panel<1>(p, column);
    });
}

BH_REPLAYABLE(bh_linear_f32)
