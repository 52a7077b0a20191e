// What stands between the products of a decoder layer, float32, each in one pass over its rows.

#include <cmath>

#include "pool.h"
#include "vec.h"

namespace {

int64_t grain(int64_t width) { return width < 16384 ? 16384 / width : 1; }

} // namespace

// y = x / sqrt(mean(x^2) + eps) * weight for each row of x (rows, width); width is a multiple of 8.
BH_EXPORT void bh_rms_norm_f32(const float *x, const float *weight, float *y, int64_t rows, int64_t width, double eps,
                               int threads) {
    in_parallel(rows, grain(width), threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            const float *from = x + row * width;
            v8 a = splat8(0), b = splat8(0);
            int64_t i = 0;
            for (; i + 16 <= width; i += 16) {
                a += load8(from + i) * load8(from + i);
                b += load8(from + i + 8) * load8(from + i + 8);
            }
            for (; i < width; i += 8) a += load8(from + i) * load8(from + i);
            const double mean = static_cast<double>(sum8(a + b)) / static_cast<double>(width);
            const v8 factor = splat8(static_cast<float>(1.0 / std::sqrt(mean + eps)));
            for (i = 0; i < width; i += 8)
                store8(y + row * width + i, load8(from + i) * factor * load8(weight + i));
        }
    });
}

// y = x * cosines + (second half, first half of x) * sines for each head of x (rows, heads, dim), the cosines and signed
// sines (rows, dim) being a row's own; dim is a multiple of 16.
BH_EXPORT void bh_rotate_f32(const float *x, const float *cosines, const float *sines, float *y, int64_t rows,
                             int64_t heads, int64_t dim, int threads) {
    in_parallel(rows, grain(heads * dim), threads, [&](int64_t begin, int64_t end) {
        const int64_t half = dim / 2;
        for (int64_t row = begin; row < end; row++) {
            const float *cosine = cosines + row * dim, *sine = sines + row * dim;
            for (int64_t head = 0; head < heads; head++) {
                const float *from = x + (row * heads + head) * dim;
                float *to = y + (row * heads + head) * dim;
                for (int64_t i = 0; i < half; i += 8) {
                    const v8 low = load8(from + i), high = load8(from + half + i);
                    store8(to + i, low * load8(cosine + i) + high * load8(sine + i));
                    store8(to + half + i, high * load8(cosine + half + i) + low * load8(sine + half + i));
                }
            }
        }
    });
}

// y = gate * sigmoid(gate) * up over n numbers, a multiple of 8.
BH_EXPORT void bh_silu_times_f32(const float *gate, const float *up, float *y, int64_t n, int threads) {
    in_parallel(n / 8, 2048, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin * 8; i < end * 8; i += 8) {
            const v8 x = load8(gate + i);
            store8(y + i, x / (splat8(1.0f) + exp8(min8(-x, splat8(88.0f)))) * load8(up + i));
        }
    });
}
