// What stands between the products of a decoder layer, float32, each in one pass over its rows.

#include "pointwise.h"
#include "pool.h"
#include "replay.h"

namespace {

int64_t grain(int64_t width) { return width < 16384 ? 16384 / width : 1; }

} // namespace

// y = x / sqrt(mean(x^2) + eps) * weight for each row of x (rows, width); width is a multiple of 8.
BH_EXPORT void bh_rms_norm_f32(const float *x, const float *weight, float *y, int64_t rows, int64_t width, double eps,
                               int threads) {
    in_parallel(rows, grain(width), threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) rms_norm(x + row * width, weight, y + row * width, width, eps);
    });
}

// Cosines and signed sines (rows, 2 half) of the positions (rows), as bh_rotate_f32 wants them: those of the angles
// position * frequencies (half) twice, the sines negative at first.
BH_EXPORT void bh_angles_f32(const int64_t *positions, const float *frequencies, float *cosines, float *sines,
                             int64_t rows, int64_t half, int threads) {
    in_parallel(rows, grain(16 * half), threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            float *cosine = cosines + row * 2 * half, *sine = sines + row * 2 * half;
            for (int64_t i = 0; i < half; i++) {
                const float angle = static_cast<float>(positions[row]) * frequencies[i];
                cosine[i] = cosine[half + i] = std::cos(angle);
                sine[half + i] = std::sin(angle);
                sine[i] = -sine[half + i];
            }
        }
    });
}

// y = x * cosines + (second half, first half of x) * sines for each head of x (rows, heads, dim), the cosines and signed
// sines (rows, dim) being a row's own; dim is a multiple of 16. From one row to the next it is x_row and y_row numbers;
// y may be x.
BH_EXPORT void bh_rotate_f32(const float *x, int64_t x_row, const float *cosines, const float *sines, float *y,
                             int64_t y_row, int64_t rows, int64_t heads, int64_t dim, int threads) {
    in_parallel(rows, grain(heads * dim), threads, [&](int64_t begin, int64_t end) {
        const int64_t half = dim / 2;
        for (int64_t row = begin; row < end; row++) {
            const float *cosine = cosines + row * dim, *sine = sines + row * dim;
            for (int64_t head = 0; head < heads; head++) {
                const float *from = x + row * x_row + head * dim;
                float *to = y + row * y_row + head * dim;
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
        for (int64_t i = begin * 8; i < end * 8; i += 8) store8(y + i, silu8(load8(gate + i)) * load8(up + i));
    });
}

BH_REPLAYABLE(bh_angles_f32)
BH_REPLAYABLE(bh_rms_norm_f32)
BH_REPLAYABLE(bh_rotate_f32)
BH_REPLAYABLE(bh_silu_times_f32)
