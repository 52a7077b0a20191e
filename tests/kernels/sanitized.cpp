// Products of odd shapes in buffers of just their size; prints how many were computed and compared.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "linear_q.h"
#include "sanitized.h"

extern "C" void bh_linear_q(const float *, const Layer *, int64_t, After, const float *, const float *, double,
                            const float *, float *, int64_t, int64_t, int);
extern "C" void bh_wide_q8(const int8_t *, int64_t, int64_t, int32_t *, const int32_t *, Wide *, int);
extern "C" void bh_best_q8(const float *, const Layer *, float *, const float *, int64_t *, int64_t, int64_t, int);
extern "C" void bh_round_q4(const float *, uint8_t *, int8_t *, float *, int64_t, int64_t, int);

namespace {

std::vector<float> inputs(int64_t rows, int64_t k) {
    std::vector<float> x(rows * k);
    for (float &value : x) value = static_cast<float>(random(-1000, 1000)) * (random(0, 60) ? 0.001f : 1.0f);
    if (random(0, 3) == 0) x[random(0, static_cast<int>(x.size()) - 1)] = NAN;
    if (random(0, 3) == 0) x[random(0, static_cast<int>(x.size()) - 1)] = INFINITY;
    return x;
}

template <class T> std::vector<T> bytes(int64_t size, int low, int high) {
    std::vector<T> values(size);
    for (T &value : values) value = static_cast<T>(random(low, high));
    return values;
}

// Of each column's weights, which weight(panel, column, place) gives.
template <class F> std::vector<int32_t> sums(int64_t n, int64_t k, const F &weight) {
    std::vector<int32_t> values(n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t place = 0; place < k; place++) values[i] += weight(i / 32, i % 32, place);
    return values;
}

// Rows together and alone: the same bits.
template <class F> bool same(int64_t rows, int64_t k, int64_t n, const F &product) {
    const std::vector<float> x = inputs(rows, k);
    std::vector<float> together(rows * n), alone(n);
    product(x.data(), together.data(), rows);
    for (int64_t m = 0; m < rows; m++) {
        const std::vector<float> row(x.begin() + m * k, x.begin() + (m + 1) * k);
        product(row.data(), alone.data(), 1);
        for (int64_t i = 0; i < n; i++)
            if (!(alone[i] == together[m * n + i] || (std::isnan(alone[i]) && std::isnan(together[m * n + i]))))
                return false;
    }
    return true;
}

// Weights to codes of four bits, in buffers of just their size.
bool rounds(int64_t n, int64_t k) {
    const std::vector<float> w = inputs(n, k);
    const int64_t groups = (k + 31) / 32;
    std::vector<uint8_t> codes(n * groups * 32);
    std::vector<int8_t> multipliers(n * groups);
    std::vector<float> scale(n);
    for (const float value : w)
        if (!std::isfinite(value)) return true; // not weights
    bh_round_q4(w.data(), codes.data(), multipliers.data(), scale.data(), n, k, 1);
    for (const uint8_t code : codes)
        if (code > 15) return false;
    for (const int8_t multiplier : multipliers)
        if (multiplier == 0 || multiplier > 63 || multiplier < -63) return false;
    return true;
}

// The largest results, from rough ones.
bool chooses(const Layer &layer, int64_t rows, int64_t k) {
    const std::vector<float> x = inputs(rows, k), errors(layer.n, 1e6f);
    std::vector<float> y(rows * layer.n), rough;
    std::vector<int64_t> best(rows);
    bh_linear_q(x.data(), &layer, 1, STORE, nullptr, nullptr, 0, nullptr, y.data(), rows, k, 1);
    rough = y;
    for (float &value : rough) value *= 1 + 0.01f * static_cast<float>(random(-1, 1));
    bh_best_q8(x.data(), &layer, rough.data(), errors.data(), best.data(), rows, k, 1);
    for (int64_t m = 0; m < rows; m++) {
        const float *own = y.data() + m * layer.n;
        const int64_t found = std::isnan(own[0]) ? -1 : std::max_element(own, own + layer.n) - own;
        if (best[m] != found) return false;
    }
    return true;
}

} // namespace

int main() {
    int products = 0;
    for (int round = 0; round < 75; round++) {
        const int64_t rows = random(0, 2) ? random(1, 11) : random(17, 40);
        const int64_t k = random(0, 3) ? random(1, 200) : random(900, 1200), n = random(1, 100);
        const int64_t panels = (n + 31) / 32;
        const std::vector<float> scale(n, 0.01f), bias(n, 1.0f);
        const int largest = random(0, 1) ? 127 : 70; // four of 70 seldom exceed 16 bits
        const auto w8 = bytes<int8_t>(panels * ((k + 3) / 4) * 128, -largest, largest);
        const auto w4 = bytes<uint8_t>(panels * ((k + 31) / 32) * 512, 0, 255);
        const auto multipliers = bytes<int8_t>(panels * ((k + 31) / 32) * 32, -63, 63);
        const std::vector<int32_t> sums8 = sums(n, k, [&](int64_t panel, int64_t column, int64_t place) {
            return int{w8[((panel * ((k + 3) / 4) + place / 4) * 32 + column) * 4 + place % 4]};
        });
        const std::vector<int32_t> sums4 = sums(n, k, [&](int64_t panel, int64_t column, int64_t place) {
            const int64_t group = panel * ((k + 31) / 32) + place / 32, at = place % 32;
            const uint8_t both = w4[(group * 4 + at % 16 / 4) * 128 + column * 4 + at % 4];
            return ((at < 16 ? both & 15 : both >> 4) - 8) * multipliers[group * 32 + column];
        });
        const std::vector<float> norm((k + 7) / 8 * 8, 1.0f), residual(rows * n, 1.0f);
        const float *b = random(0, 1) ? bias.data() : nullptr, *weight = k % 8 || random(0, 1) ? nullptr : norm.data();
        const float *more = random(0, 1) ? norm.data() : nullptr;
        std::vector<int32_t> counts(panels), from(panels + 1);
        bh_wide_q8(w8.data(), panels, k, counts.data(), nullptr, nullptr, 1);
        for (int64_t p = 0; p < panels; p++) from[p + 1] = from[p] + counts[p];
        std::vector<Wide> wide(from[panels]);
        bh_wide_q8(w8.data(), panels, k, counts.data(), from.data(), wide.data(), 1);
        const Layer eight{w8.data(), nullptr, scale.data(), sums8.data(), b, n, from.data(), wide.data()};
        const Layer four{w4.data(), multipliers.data(), scale.data(), sums4.data(), b, n, nullptr, nullptr};
        const Layer both[] = {eight, four}, gated[] = {four, eight};
        const auto run = [&](const Layer *layers, int64_t count, After after, int64_t width) {
            return same(rows, k, width, [&](const float *x, float *y, int64_t m) {
                bh_linear_q(x, layers, count, after, weight, more, 1e-6, residual.data(), y, m, k, 1);
            });
        };
        if (!run(&eight, 1, ADD, n) || !run(&four, 1, GELU, n) || !run(both, 2, STORE, 2 * n) ||
            !run(gated, 2, TIMES_SILU, n)) {
            std::printf("rows differ: %d by %d by %d\n", int(rows), int(k), int(n));
            return 1;
        }
        if (rows <= 8 && !chooses(eight, rows, k)) {
            std::printf("not the largest: %d by %d by %d\n", int(rows), int(k), int(n));
            return 1;
        }
        if (!rounds(n, k)) {
            std::printf("not codes: %d by %d\n", int(n), int(k));
            return 1;
        }
        products += 4;
    }
    std::printf("%d products\n", products);
}
