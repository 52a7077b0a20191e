// A few rows by a few rows, the inner product that everything here is made of.
#pragma once

#include "vec.h"

// What to fetch into the cache meanwhile: rows [first, last) from `from` on.
struct Ahead {
    const void *from;
    int first, last;
};

// MR rows of x by NR rows of w over `k` places: y[m][n] (+)= their products.
template <int MR, int NR, class W>
inline void tile(const float *x, int64_t ldx, const W *w, int64_t ldw, int64_t k, float *y, int64_t ldy, bool add,
                 Ahead ahead) {
    v8 sums[MR][NR];
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) sums[m][n] = splat8(0);
    const auto step = [&](int64_t i) __attribute__((always_inline)) {
        v8 a[MR];
        for (int m = 0; m < MR; m++) a[m] = load8(x + m * ldx + i);
        for (int n = 0; n < NR; n++) {
            const v8 b = load8(w + n * ldw + i);
            for (int m = 0; m < MR; m++) sums[m][n] += a[m] * b;
        }
    };
    int64_t i = 0;
    for (; i + 16 <= k; i += 16) {
        for (int n = ahead.first; n < ahead.last; n++)
            __builtin_prefetch(static_cast<const W *>(ahead.from) + n * ldw + i, 0, 2);
        step(i);
        step(i + 8);
    }
    for (; i + 8 <= k; i += 8) step(i);
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) {
            float sum = sum8(sums[m][n]);
            for (int64_t j = i; j < k; j++) sum += x[m * ldx + j] * number(w[n * ldw + j]);
            y[m * ldy + n] = add ? y[m * ldy + n] + sum : sum;
        }
}
