// Rows of inputs as integers, and what is kept of them while a layer is computed. quant/rounding.py defines the numbers.
#pragma once

#include <cstdint>

constexpr int PANEL = 32; // output columns that lie together in packed weights

// What a row's integers are, but for its outliers: in [0, 127], for weights of 8 bits (with VNNI 64 more, so that those
// of up to 64 to either side fit, too); in [0, 255], for codes; or the latter less 128, as the products of few rows with
// codes want them.
enum class Window { SEVEN_BITS, EIGHT_BITS, SIGNED };

// An entry outside of its row's window: what it has beyond the nearer end.
struct Outlier {
    int32_t place, excess;
    int32_t at, low; // 1 in the byte that is its place of four; the excess in 16 bits, beside 16 zeros
};

// The integers of entry i are integers[i] - zero, plus the excess where it is an outlier; times step.
struct Row {
    const uint8_t *integers; // as the window says; the places after the last are 0
    const Outlier *outliers; // in the order of their places
    int32_t n_outliers;
    int32_t zero;
    float step; // NaN where an entry is not finite; all integers are 0 then
};

// What rows are normed with before: by their root mean square or, with a bias, by mean and variance. No weight: not.
struct Norm {
    const float *weight, *bias; // (k), a multiple of 8
    double eps;
};

// Up to `rows` rows of `k` numbers, rounded; the memory belongs to the calling thread and is used again by its next call.
const Row *round_rows(const float *x, int64_t rows, int64_t k, Window window, Norm norm, int threads);

// So many rows are rounded and multiplied at a time: the memory for them stays in bounds.
inline int64_t rows_at_once(int64_t k) {
    const int64_t fit = (int64_t{8} << 20) / k;
    return fit < 192 ? 192 : fit > 4096 ? 4096 : fit;
}

// How rows are cut for products with many: the integers of a portion stay in the second cache.
inline int64_t rows_per_portion(int64_t rows, int64_t k) {
    int64_t most = (int64_t{192} << 10) / k;
    most = most < 48 ? 48 : most > 192 ? 192 : most;
    const int64_t portions = (rows + most - 1) / most;
    return ((rows + portions - 1) / portions + 2) / 3 * 3;
}
