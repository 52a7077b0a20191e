// Norms, gates and activations of a few numbers, float32.
#pragma once

#include <cmath>

#include "vec.h"

// The mean of what f(i, sum) adds to a sum, at each multiple i of 8 below the width.
template <class F> double mean_of_row(int64_t width, const F &f) {
    v8 a = splat8(0), b = splat8(0);
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) {
        a = f(i, a);
        b = f(i + 8, b);
    }
    for (; i < width; i += 8) a = f(i, a);
    return static_cast<double>(sum8(a + b)) / static_cast<double>(width);
}

// y = x / sqrt(mean(x^2) + eps) * weight for a row of a multiple of 8 numbers.
inline void rms_norm(const float *x, const float *weight, float *y, int64_t width, double eps) {
    const double mean = mean_of_row(width, [&](int64_t i, v8 sum) { return sum + load8(x + i) * load8(x + i); });
    const v8 factor = splat8(static_cast<float>(1.0 / std::sqrt(mean + eps)));
    for (int64_t i = 0; i < width; i += 8) store8(y + i, load8(x + i) * factor * load8(weight + i));
}

// y = d / sqrt(mean(d^2) + eps) * weight + bias with d = x - mean(x), as above.
inline void layer_norm(const float *x, const float *weight, const float *bias, float *y, int64_t width, double eps) {
    const v8 mean = splat8(static_cast<float>(mean_of_row(width, [&](int64_t i, v8 sum) { return sum + load8(x + i); })));
    const double variance = mean_of_row(width, [&](int64_t i, v8 sum) {
        const v8 d = load8(x + i) - mean;
        return sum + d * d;
    });
    const v8 factor = splat8(static_cast<float>(1.0 / std::sqrt(variance + eps)));
    for (int64_t i = 0; i < width; i += 8)
        store8(y + i, (load8(x + i) - mean) * factor * load8(weight + i) + load8(bias + i));
}

constexpr float LOG2_E = 1.4426950408889634f;

inline v8 sigmoid_times(v8 x, v8 log2_of_power) {
    return x / (splat8(1.0f) + power8(min8(log2_of_power, splat8(126.0f))));
}

inline v8 silu8(v8 x) { return sigmoid_times(x, x * splat8(-LOG2_E)); }

// Its tanh form, as x * sigmoid(2u).
inline v8 gelu8(v8 x) {
    constexpr float slope = 1.5957691216057308f * LOG2_E; // of 2 * sqrt(2 / pi)
    return sigmoid_times(x, x * (splat8(-slope) - splat8(slope * 0.044715f) * x * x));
}
