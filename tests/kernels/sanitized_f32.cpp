// Float32 products, what stands between them, angles, rows of tables and replayed calls, in buffers of just their size.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "replay.h"
#include "sanitized.h"

extern "C" void bh_linear_f32(const float *, const float *, const float *, const float *, float *, int64_t, int64_t,
                              int64_t, int);
extern "C" void bh_rms_norm_f32_words(const Word *);
extern "C" void bh_angles_f32(const int64_t *, const float *, float *, float *, int64_t, int64_t, int);
extern "C" void bh_rotate_f32(const float *, int64_t, const float *, const float *, float *, int64_t, int64_t, int64_t,
                              int64_t, int);
extern "C" void bh_silu_times_f32_words(const Word *);
extern "C" void bh_table_f32(const int64_t *, int64_t, const float *, float *, int64_t, int);
extern "C" void bh_table_q8(const int64_t *, int64_t, const int8_t *, const float *, float *, int64_t, int);

struct Call {
    void (*kernel)(const Word *);
    Word words[23];
};
extern "C" void bh_replay(const Call *, int64_t);

namespace {

bool near(float found, double exact, double scale) { return std::fabs(found - exact) <= 1e-4 * (1 + scale); }

bool product() {
    const int64_t rows = random(1, 9), k = random(1, 2100), n = random(1, 40);
    const auto x = numbers(rows * k), w = numbers(n * k), bias = numbers(n), residual = numbers(rows * n);
    std::vector<float> y(rows * n);
    const bool plus = random(0, 1);
    bh_linear_f32(x.data(), w.data(), plus ? bias.data() : nullptr, plus ? residual.data() : nullptr, y.data(), rows, k,
                  n, random(1, 3));
    for (int64_t m = 0; m < rows; m++)
        for (int64_t i = 0; i < n; i++) {
            double sum = plus ? static_cast<double>(bias[i]) + residual[m * n + i] : 0.0;
            for (int64_t j = 0; j < k; j++) sum += static_cast<double>(x[m * k + j]) * w[i * k + j];
            if (!near(y[m * n + i], sum, std::sqrt(static_cast<double>(k)))) return false;
        }
    return true;
}

// One call of each written down, and made by bh_replay: norm, then gate * sigmoid(gate) * up of what it gave.
bool replayed() {
    const int64_t rows = random(1, 5), width = 8 * random(1, 20), n = rows * width;
    auto x = numbers(n), weight = numbers(width), up = numbers(n);
    std::vector<float> y(n), z(n);
    std::vector<Call> calls(2);
    calls[0].kernel = bh_rms_norm_f32_words;
    Word *words = calls[0].words;
    words[0].address = x.data(), words[1].address = weight.data(), words[2].address = y.data();
    words[3].integer = rows, words[4].integer = width, words[5].real = 1e-6, words[6].integer = 1;
    calls[1].kernel = bh_silu_times_f32_words;
    words = calls[1].words;
    words[0].address = y.data(), words[1].address = up.data(), words[2].address = z.data();
    words[3].integer = n, words[4].integer = 1;
    bh_replay(calls.data(), 2);
    for (int64_t i = 0; i < n; i++) {
        double squares = 0;
        for (int64_t j = i / width * width; j < (i / width + 1) * width; j++) squares += static_cast<double>(x[j]) * x[j];
        const double gate = x[i] / std::sqrt(squares / width + 1e-6) * weight[i % width];
        if (!near(z[i], gate / (1 + std::exp(-gate)) * up[i], 1)) return false;
    }
    return true;
}

bool turned() {
    const int64_t rows = random(1, 4), heads = random(1, 5), dim = 16 * random(1, 5), row = heads * dim + random(0, 9);
    const auto x = numbers((rows - 1) * row + heads * dim), cosines = numbers(rows * dim), sines = numbers(rows * dim);
    auto y = x;
    bh_rotate_f32(y.data(), row, cosines.data(), sines.data(), y.data(), row, rows, heads, dim, 1);
    for (int64_t m = 0; m < rows; m++)
        for (int64_t i = 0; i < heads * dim; i++) {
            const int64_t at = i % dim, other = i - at + (at + dim / 2) % dim;
            const double exact = static_cast<double>(x[m * row + i]) * cosines[m * dim + at] +
                                 static_cast<double>(x[m * row + other]) * sines[m * dim + at];
            if (!near(y[m * row + i], exact, 1)) return false;
        }
    return true;
}

bool looked_up() {
    const int64_t rows = random(1, 70), k = random(1, 50), count = random(1, 20), quads = (k + 3) / 4;
    std::vector<int8_t> table((rows + 31) / 32 * quads * 32 * 4);
    for (int8_t &value : table) value = static_cast<int8_t>(random(-127, 127));
    const auto scale = numbers(rows);
    std::vector<int64_t> ids(count);
    for (int64_t &id : ids) id = random(0, static_cast<int>(rows) - 1);
    std::vector<float> out(count * k);
    bh_table_q8(ids.data(), count, table.data(), scale.data(), out.data(), k, 1);
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < k; j++) {
            const int64_t place = ((ids[i] / 32 * quads + j / 4) * 32 + ids[i] % 32) * 4 + j % 4;
            if (out[i * k + j] != static_cast<float>(table[place]) * scale[ids[i]]) return false;
        }
    const auto plain = numbers(rows * k);
    bh_table_f32(ids.data(), count, plain.data(), out.data(), k, 1);
    for (int64_t i = 0; i < count * k; i++)
        if (out[i] != plain[ids[i / k] * k + i % k]) return false;
    return true;
}

bool at_angles() {
    const int64_t rows = random(1, 9), half = random(1, 40);
    const auto frequencies = numbers(half);
    std::vector<int64_t> positions(rows);
    for (int64_t &position : positions) position = random(0, 3000);
    std::vector<float> cosines(rows * 2 * half), sines(rows * 2 * half);
    bh_angles_f32(positions.data(), frequencies.data(), cosines.data(), sines.data(), rows, half, 1);
    for (int64_t i = 0; i < rows * 2 * half; i++) {
        const double angle = static_cast<float>(positions[i / (2 * half)]) * frequencies[i % half];
        const double sine = i % (2 * half) < half ? -std::sin(angle) : std::sin(angle);
        if (!near(cosines[i], std::cos(angle), 1) || !near(sines[i], sine, 1)) return false;
    }
    return true;
}

} // namespace

int main() {
    int right = 0;
    for (int i = 0; i < 50; i++) right += product() + replayed() + turned() + looked_up() + at_angles();
    std::printf("%d results\n", right);
}
