// Norms, gates and activations of a few numbers, float32.
#pragma once

#include <cmath>

#include "vec.h"

// y = x / sqrt(mean(x^2) + eps) * weight for a row of a multiple of 8 numbers.
inline void rms_norm(const float *x, const float *weight, float *y, int64_t width, double eps) {
    v8 a = splat8(0), b = splat8(0);
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) {
        a += load8(x + i) * load8(x + i);
        b += load8(x + i + 8) * load8(x + i + 8);
    }
    for (; i < width; i += 8) a += load8(x + i) * load8(x + i);
    const double mean = static_cast<double>(sum8(a + b)) / static_cast<double>(width);
    const v8 factor = splat8(static_cast<float>(1.0 / std::sqrt(mean + eps)));
    for (i = 0; i < width; i += 8) store8(y + i, load8(x + i) * factor * load8(weight + i));
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
