// Layers with rounded weights: what they are made of, and what becomes of their products.
#pragma once

#include <cstring>

#include "pointwise.h"
#include "rows.h"

struct Layer {
    const void *w;             // packed as linear_q8.cpp and linear_q4.cpp say
    const int8_t *multipliers; // null: weights of 8 bits
    const float *scale;        // (n)
    const int32_t *sums;       // (n) of each column's integer weights
    const float *bias;         // (n) or null
    int64_t n;
};

enum After : int64_t { STORE, ADD, TIMES_SILU, GELU };

// The columns of a layer in the results of a call, whose rows are `width` long.
struct Columns {
    const Layer &layer;
    const Row *rows;
    float *y;
    int64_t width;
    After after;
    const float *residual; // as y, for ADD

    // Row m of a panel from the exact sums of its integers and its outliers: one formula for every kernel.
    void finish(int64_t m, int64_t panel, const int32_t *products) const {
        const Row &row = rows[m];
        const int64_t first = panel * PANEL, count = layer.n - first < PANEL ? layer.n - first : PANEL;
        const float *scale = layer.scale + first, *bias = layer.bias ? layer.bias + first : nullptr;
        const int32_t *sums = layer.sums + first;
        alignas(32) float values[PANEL] = {};
        for (int64_t i = 0; i < count; i++) {
            const float sum = static_cast<float>(products[i] - row.zero * sums[i]);
            values[i] = sum * (row.step * scale[i]) + (bias ? bias[i] : 0.0f);
        }
        write(values, count, m * width + first);
    }

  private:
    void write(float *values, int64_t count, int64_t at) const {
        float *out = y + at;
        switch (after) {
        case STORE: break;
        case ADD:
            for (int64_t i = 0; i < count; i++) values[i] += residual[at + i];
            break;
        case TIMES_SILU: { // of what is there
            alignas(32) float gate[PANEL] = {};
            std::memcpy(gate, out, count * sizeof *out);
            for (int i = 0; i < PANEL; i += 8) store8(values + i, silu8(load8(gate + i)) * load8(values + i));
            break;
        }
        case GELU:
            for (int i = 0; i < PANEL; i += 8) store8(values + i, gelu8(load8(values + i)));
            break;
        }
        std::memcpy(out, values, count * sizeof *out);
    }
};

// Rows [begin, end) of one panel of a layer. With few rows, reading the weights is what takes the time.
void panel_q8(const Columns &columns, int64_t k, int64_t begin, int64_t end, int64_t panel, bool few);
void panel_q4(const Columns &columns, int64_t k, int64_t begin, int64_t end, int64_t panel, const int32_t *offsets);

constexpr int64_t GROUP = 32; // places of K with a multiplier, at 4 bits

// What the products of one row with codes begin at, for each of its groups: to be given to panel_q4.
void offsets_q4(const Row &row, int64_t groups, int32_t *offsets);
