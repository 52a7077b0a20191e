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

// A number of 16 bits (IEEE binary16) as it is kept in memory; all arithmetic is float32.
struct Half {
    uint16_t bits;
};

static inline v8 load8(const Half *p) {
#if defined(__F16C__)
    return (v8)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
#else
    typedef uint32_t u8 __attribute__((vector_size(32)));
    u8 bits;
    for (int i = 0; i < 8; i++) bits[i] = p[i].bits;
    const u8 sign = (bits & 0x8000) << 16, size = (bits & 0x7FFF) << 13;
    const v8 shifted = (v8)size * splat8(0x1p112f); // the exponent counts from another number
    const u8 special = (u8)(size >= (0x7C00u << 13)) & 0x7F800000u; // infinities and what is not a number
    return (v8)((u8)shifted | special | sign);
#endif
}

static inline v8 load8(const int8_t *p) {
    typedef int8_t b8 __attribute__((vector_size(8)));
    b8 bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, v8);
}

// To the nearest integer, ties to even, of numbers below 2^22.
static inline auto nearest8(v8 v) {
    typedef int32_t i8 __attribute__((vector_size(32)));
#if defined(__AVX2__)
    return (i8)_mm256_cvtps_epi32((__m256)v);
#else
    return __builtin_convertvector((v + splat8(12582912.0f)) - splat8(12582912.0f), i8);
#endif
}

static inline float number(float x) { return x; }

static inline float number(Half x) {
    const Half eight[8] = {x};
    return load8(eight)[0];
}

// Rounded to the nearest; what is too large becomes the largest number, not infinity.
static inline void store8(Half *p, v8 v) {
    const v8 most = splat8(65504.0f);
    v = v > most ? most : v;
    v = v < -most ? -most : v;
#if defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    typedef uint32_t u8 __attribute__((vector_size(32)));
    const u8 bits = (u8)v, sign = (bits >> 16) & 0x8000, size = bits & 0x7FFFFFFF;
    const u8 normal = (size - (112u << 23) + 0xFFF + ((size >> 13) & 1)) >> 13; // to the nearest, ties to even
    const u8 small = (u8)((v8)size + splat8(0.5f)) - (u8)splat8(0.5f); // whose last place is that of 0.5
    for (int i = 0; i < 8; i++) {
        const uint32_t number = size[i] < (113u << 23) ? small[i] : normal[i];
        p[i].bits = static_cast<uint16_t>(sign[i] | (size[i] > 0x7F800000 ? 0x7E00 : number));
    }
#endif
}

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

static inline v8 max8(v8 a, v8 b) {
#if defined(__AVX2__)
    return (v8)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

static inline float top8(v8 v) {
    float top = v[0];
    for (int i = 1; i < 8; i++) top = v[i] > top ? v[i] : top;
    return top;
}

// The same of numbers.
static inline float most8(v8 v) {
#if defined(__AVX2__)
    __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
#else
    return top8(v);
#endif
}

// Integers from -128 to 127 as bytes.
static inline void store_bytes8(int8_t *to, v8 bits) {
    typedef int32_t i8 __attribute__((vector_size(32)));
    const i8 integers = (i8)bits;
#if defined(__AVX2__)
    const __m256i all = (__m256i)integers;
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(to), _mm_packs_epi16(words, words));
#else
    for (int i = 0; i < 8; i++) to[i] = static_cast<int8_t>(integers[i]);
#endif
}

// The places [first, last) of v, and minus infinity elsewhere.
static inline v8 between8(v8 v, int64_t first, int64_t last) {
    typedef int32_t i8 __attribute__((vector_size(32)));
    const i8 place = {0, 1, 2, 3, 4, 5, 6, 7};
    const int32_t from = first < 0 ? 0 : first > 8 ? 8 : (int32_t)first;
    const int32_t to = last < 0 ? 0 : last > 8 ? 8 : (int32_t)last;
    const i8 seen = (place >= from) & (place < to);
    const float out = -__builtin_inff();
    return (v8)(((i8)v & seen) | ((i8)splat8(out) & ~seen));
}

static inline void transpose8(v8 (&r)[8]) {
#if defined(__AVX2__)
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps((__m256)r[i], (__m256)r[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps((__m256)r[i], (__m256)r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
            b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xEE);
        }
    for (int i = 0; i < 4; i++) {
        r[i] = (v8)_mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        r[i + 4] = (v8)_mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
#else
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < i; j++) {
            const float x = r[i][j];
            r[i][j] = r[j][i];
            r[j][i] = x;
        }
#endif
}

// 2^x to about one unit in the last place, for x up to 126; 0 below -126.5.
static inline v8 power8(v8 x) {
    typedef int32_t i8 __attribute__((vector_size(32)));
    x = max8(x, splat8(-127.0f));
    const v8 magic = splat8(12582912.0f + 127.0f); // adding it rounds to an integer, which the lowest bits then hold
    const v8 sum = x + magic, r = x - (sum - magic);
    v8 p = splat8(1.326472731e-3f); // a polynomial for -0.5 to 0.5, its greatest error made small
    p = p * r + splat8(9.671512991e-3f);
    p = p * r + splat8(5.550733581e-2f);
    p = p * r + splat8(2.402224243e-1f);
    p = p * r + splat8(6.931470037e-1f);
    p = p * r + splat8(1.0f);
    return p * (v8)((i8)sum << 23);
}
