// Pictures made smaller, of odd sizes and in buffers of just their size; prints how many were compared with plain sums.

#include <cstdint>
#include <cstdio>
#include <vector>

#include "sanitized.h"

extern "C" {
void bh_resample_rows(const uint8_t *, uint8_t *, const int32_t *, const int16_t *, const int16_t *, int64_t, int64_t,
                      int64_t, int64_t);
void bh_resample_columns(const uint8_t *, uint8_t *, const int32_t *, const int16_t *, const int16_t *, int64_t, int64_t,
                         int64_t, int64_t);
}

namespace {

// For each of `size` pixels where its neighbours start among `old`, and their weights, whole and in two halves.
struct Weights {
    std::vector<int32_t> starts, whole;
    std::vector<int16_t> high, low;
    int64_t taps;

    Weights(int old, int size) : taps(8 * random(1, old / 8)) {
        for (int i = 0; i < size; i++) starts.push_back(i ? random(0, old - static_cast<int>(taps)) : old - taps);
        for (int64_t i = 0; i < size * taps; i++) {
            whole.push_back(random(-1, 3) * (1 << 22) / (2 * static_cast<int>(taps)) + random(-9, 9));
            high.push_back(static_cast<int16_t>(whole.back() >> 11));
            low.push_back(static_cast<int16_t>(whole.back() & 2047));
        }
    }

    uint8_t sum(const uint8_t *from, int64_t stride, int64_t pixel) const {
        int64_t sum = 1 << 21;
        for (int64_t t = 0; t < taps; t++) sum += from[(starts[pixel] + t) * stride] * whole[pixel * taps + t];
        return static_cast<uint8_t>(sum < 0 ? 0 : sum >> 22 > 255 ? 255 : sum >> 22);
    }
};

std::vector<uint8_t> pixels(int64_t number) {
    std::vector<uint8_t> bytes(4 * number);
    for (uint8_t &byte : bytes) byte = static_cast<uint8_t>(random(0, 3) ? random(0, 255) : 255 * random(0, 1));
    return bytes;
}

} // namespace

int main() {
    int done = 0;
    for (int round = 0; round < 60; round++) {
        const int width = random(8, 70), rows = random(1, 9), to_width = random(1, 12);
        const Weights across(width, to_width);
        const std::vector<uint8_t> from = pixels(width * rows);
        std::vector<uint8_t> to(4 * to_width * rows);
        bh_resample_rows(from.data(), to.data(), across.starts.data(), across.high.data(), across.low.data(), rows,
                         width, to_width, across.taps);
        for (int64_t i = 0; i < static_cast<int64_t>(to.size()); i++) {
            const int64_t row = i / (4 * to_width), pixel = i / 4 % to_width;
            if (to[i] != across.sum(&from[4 * width * row + i % 4], 4, pixel)) return std::printf("rows differ\n"), 1;
        }
        const int wide = random(4, 40), high = random(8, 70), to_rows = random(1, 12);
        const int columns = random(4, wide), first = random(0, wide - columns);
        const Weights down(high, to_rows);
        const std::vector<uint8_t> tall = pixels(wide * high);
        std::vector<uint8_t> low(4 * wide * to_rows, 7);
        bh_resample_columns(&tall[4 * first], &low[4 * first], down.starts.data(), down.high.data(), down.low.data(),
                            wide, columns, to_rows, down.taps);
        for (int64_t i = 0; i < static_cast<int64_t>(low.size()); i++) {
            const int64_t column = i / 4 % wide;
            const bool inside = first <= column && column < first + columns;
            if (low[i] != (inside ? down.sum(&tall[i % (4 * wide)], 4 * wide, i / (4 * wide)) : 7))
                return std::printf("columns differ\n"), 1;
        }
        done += 2;
    }
    std::printf("%d pictures\n", done);
}
