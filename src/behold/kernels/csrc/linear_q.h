// Layers with rounded weights: what they are made of, and what becomes of their products.
#pragma once

#include <cstring>

#include "pointwise.h"
#include "rows.h"

#if defined(__AVX512VNNI__)
constexpr bool BY_EIGHTS = false; // many rows: whether products of eight places are added in 16 bits
constexpr int STREAMS = 4;        // few rows: panels that are read together, from far apart, for which there are registers
constexpr int64_t AHEAD = 2048;   // so far, in bytes, each of them is fetched into the second cache
#else
constexpr bool BY_EIGHTS = true;
constexpr int STREAMS = 1;
#endif

// Four weights of a column that are added in 16 bits: those of two neighbouring places and of the two four further.
// Their products fit where none of a row's integers there is above the limit.
struct Wide {
    int32_t place;
    int16_t column, limit;
};

struct Layer {
    const void *w;             // packed as linear_q8.cpp and linear_q4.cpp say
    const int8_t *multipliers; // null: weights of 8 bits
    const float *scale;        // (n)
    const int32_t *sums;       // (n) of each column's integer weights
    const float *bias;         // (n) or null
    int64_t n;
    const int32_t *wide_from; // of each panel and of what is behind the last, in `wide`; null: not looked for
    const Wide *wide;
};

enum After : int64_t { STORE, ADD, TIMES_SILU, GELU };

// The columns of a layer in the results of a call, whose rows are `width` long.
struct Columns {
    const Layer *layer;
    const Row *rows;
    float *y;
    int64_t width;
    After after;
    const float *residual;  // as y, for ADD
    const uint8_t *largest; // as largest_q8 gives them, for each tile; null: products are not added by eights

    // Row m of a panel is finished soon: what it writes, and adds, lies apart from that of other rows, and is fetched.
    void expect(int64_t m, int64_t panel) const {
        const int64_t at = m * width + panel * PANEL;
        for (int64_t line = at; line < at + PANEL; line += 16) {
            __builtin_prefetch(y + line, 1, 2);
            if (after == ADD) __builtin_prefetch(residual + line, 0, 2);
        }
    }

    // Row m of a panel from the exact sums of its integers and its outliers: one formula for every kernel.
    void finish(int64_t m, int64_t panel, const int32_t *products) const {
        static constexpr float none[PANEL] = {};
        const int64_t first = panel * PANEL, count = layer->n - first, at = m * width + first;
        const float *scale = layer->scale + first, *bias = layer->bias ? layer->bias + first : none;
        const int32_t *sums = layer->sums + first;
        const float *added = after == ADD ? residual + at : none;
        if (count >= PANEL) return finish(rows[m], products, scale, sums, bias, added, y + at);
        const Part<float> scales(scale, count), biases(bias, count), some(added, count);
        Part<float> out(y + at, after == TIMES_SILU ? count : 0);
        finish(rows[m], products, scales.all, Part<int32_t>(sums, count).all, biases.all, some.all, out.all);
        std::memcpy(y + at, out.all, count * sizeof(float));
    }

  private:
    // Some columns in the place of all.
    template <class T> struct Part {
        alignas(32) T all[PANEL] = {};

        Part(const T *from, int64_t count) {
            if (count) std::memcpy(all, from, count * sizeof(T));
        }
    };

    void finish(const Row &row, const int32_t *products, const float *scale, const int32_t *sums, const float *bias,
                const float *added, float *out) const {
        typedef int32_t i8 __attribute__((vector_size(32)));
        const auto value = [&](int at) __attribute__((always_inline)) {
            i8 exact, all;
            std::memcpy(&exact, products + at, sizeof exact);
            std::memcpy(&all, sums + at, sizeof all);
            const v8 sum = __builtin_convertvector(exact - row.zero * all, v8);
            return sum * (row.step * load8(scale + at)) + load8(bias + at);
        };
        switch (after) {
        case STORE:
            for (int i = 0; i < PANEL; i += 8) store8(out + i, value(i));
            break;
        case ADD:
            for (int i = 0; i < PANEL; i += 8) store8(out + i, value(i) + load8(added + i));
            break;
        case TIMES_SILU: // of what is there
            for (int i = 0; i < PANEL; i += 8) store8(out + i, silu8(load8(out + i)) * value(i));
            break;
        case GELU:
            for (int i = 0; i < PANEL; i += 8) store8(out + i, gelu8(value(i)));
            break;
        }
    }
};

struct Panel {
    const Columns *columns;
    int64_t number;
};

constexpr int64_t TILE = 3; // rows that share the weights that are read, and what is known of their integers

// Rows [begin, end), so few that reading the weights takes the time, of one panel or of several, in this order.
void few_q8(const Panel *panels, int count, int64_t k, int64_t begin, int64_t end);
void few_q4(const Panel *panels, int count, int64_t k, int64_t begin, int64_t end, const int32_t *offsets);

// Rows [begin, end), from a tile's first and at most 192, of one panel or of two, which may be of two layers.
void many_q8(const Panel *panels, int count, int64_t k, int64_t begin, int64_t end);

// The largest integer that `count` rows of a tile have in the places i, i + 1, i + 4 and i + 5, for each place i.
void largest_q8(const Row *rows, int64_t count, int64_t k, uint8_t *out);
void many_q4(const Panel &panel, int64_t k, int64_t begin, int64_t end);

constexpr int64_t GROUP = 32; // places of K with a multiplier, at 4 bits

// What the products of one row with codes begin at, for each of its groups: to be given to few_q4.
void offsets_q4(const Row &row, int64_t groups, int32_t *offsets);
