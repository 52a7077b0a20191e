// Eight floats at a time, in the compiler's own vector type: the same source is AVX2, SSE2 or NEON.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

typedef float v8 __attribute__((vector_size(32)));

static inline v8 load8(const float *p) {
    v8 v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

static inline void store8(float *p, v8 v) { std::memcpy(p, &v, sizeof v); }

static inline v8 splat8(float x) { return v8{x, x, x, x, x, x, x, x}; }

static inline float sum8(v8 v) {
    float a = v[0] + v[4], b = v[1] + v[5], c = v[2] + v[6], d = v[3] + v[7];
    return (a + c) + (b + d);
}

static inline v8 min8(v8 a, v8 b) { return a < b ? a : b; } // b where a is not a number

// e^x to about two units in the last place, for x up to 88; 0 below -87.
static inline v8 exp8(v8 x) {
    typedef int32_t i8 __attribute__((vector_size(32)));
    const i8 small = x < splat8(-87.0f);
    x = (v8)((i8)x & ~small); // 0 stands in, and its result is dropped
    const v8 magic = splat8(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
    const v8 n = (x * splat8(1.44269504f) + magic) - magic;
    const v8 r = x - n * splat8(0.693359375f) + n * splat8(2.12194440e-4f);
    v8 p = splat8(1.9875691500e-4f);
    p = p * r + splat8(1.3981999507e-3f);
    p = p * r + splat8(8.3334519073e-3f);
    p = p * r + splat8(4.1665795894e-2f);
    p = p * r + splat8(1.6666665459e-1f);
    p = p * r + splat8(5.0000001201e-1f);
    p = p * r * r + r + splat8(1.0f);
    const i8 power = (__builtin_convertvector(n, i8) + 127) << 23;
    return (v8)((i8)(p * (v8)power) & ~small);
}
