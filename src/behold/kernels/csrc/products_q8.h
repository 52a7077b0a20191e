// Products of rows of integers with panels of weights of 8 bits, for the instructions there are:
//
// product<MR, N>      of few rows, by N panels
// add_part            of ROWS rows, from a place on, by one panel or two; on AVX2 perhaps by eights, see linear_q8.cpp
// add_outliers        what a row's outliers have beyond its integers
// find_wide, add_lost what sums by eights lose
#pragma once

#include "linear_q.h"

constexpr int64_t QUAD = PANEL * 4; // weights of four places

// Where panels begin, of one layer or of two, that rows meet together.
template <int PANELS> using Weights = const int8_t *[PANELS];

#if defined(__AVX512VNNI__)
#include "products_q8_vnni.h"
#elif defined(__AVX2__)
#include "products_q8_avx2.h"
#else
#include "products_q8_any.h"
#endif
