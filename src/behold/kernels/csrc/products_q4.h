// Products of rows of integers with panels of codes of 4 bits, for the instructions there are:
//
// product_of_few<MR, N> of few rows, by N panels as they are read; offset: what a group's begin at
// Spread, product<N>    of ROWS rows, by groups of a panel that are spread to bytes first
// add_outliers          what a row's outliers have beyond its integers
#pragma once

#include "linear_q.h"

constexpr int64_t GROUP_BYTES = PANEL * 16; // of codes
constexpr int64_t SPREAD = 16;              // groups that are spread at a time

// A panel.
struct Codes {
    const uint8_t *codes;
    const int8_t *multipliers;

    Codes() = default;
    Codes(const Panel &panel, int64_t groups)
        : codes(static_cast<const uint8_t *>(panel.columns->layer->w) + panel.number * groups * GROUP_BYTES),
          multipliers(panel.columns->layer->multipliers + panel.number * groups * PANEL) {}
};

#if defined(__AVX512VNNI__)
#include "products_q4_vnni.h"
#elif defined(__AVX2__)
#include "products_q4_avx2.h"
#else
#include "products_q4_any.h"
#endif
