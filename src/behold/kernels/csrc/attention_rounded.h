// Products with keys and values of 8 bits: sums of integers, hence exact, in whatever order they are made.
#pragma once

#include "vec.h"

#if defined(__AVX512VNNI__)
constexpr int NEAR = 2; // the second cache: more lines can be on their way there than to the first
#else
constexpr int NEAR = 3;
#endif

// Have `count` numbers on their way to a near cache.
template <class T> inline void fetch(const T *from, int64_t count) {
    const char *at = reinterpret_cast<const char *>(from);
    for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(T)); i += 64) __builtin_prefetch(at + i, 0, NEAR);
}

// n numbers, a multiple of 8, to the nearest of -32767 to 32767 times a step, which is returned; most: the largest.
inline float round_to(int16_t *to, const float *x, int64_t n, float most) {
    typedef int16_t s8 __attribute__((vector_size(16)));
    const v8 up = splat8(32767.0f / most);
    for (int64_t i = 0; i < n; i += 8) {
        const s8 numbers = __builtin_convertvector(nearest8(load8(x + i) * up), s8);
        std::memcpy(to + i, &numbers, sizeof numbers);
    }
    return most / 32767.0f;
}

inline int32_t product(const int16_t *q, const int8_t *key, int64_t dim) {
    int32_t sum = 0;
    for (int64_t i = 0; i < dim; i++) sum += q[i] * key[i];
    return sum;
}

#if defined(__AVX2__)
// Sums and the products of pairs of numbers.
inline __m256i add_pairs(__m256i sums, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__)
    return _mm256_dpwssd_epi32(sums, a, b);
#else
    return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
#endif
}

// The four sums of eight each.
inline __m128i sums_of(const __m256i (&s)[4]) {
    const __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
}

// Four keys, key by key: the query stays in registers, and no sum has to leave them.
template <int64_t DIM> inline __m128i score_four(const int16_t *q, const int8_t *keys, const int8_t *ahead) {
    __m256i s[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; n++) {
        fetch(ahead + n * DIM, DIM);
        s[n] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int64_t i = 0; i < DIM; i += 16) {
            const __m128i *at = reinterpret_cast<const __m128i *>(keys + n * DIM + i);
            const __m256i own = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(q + i));
            s[n] = add_pairs(s[n], own, _mm256_cvtepi8_epi16(_mm_loadu_si128(at)));
        }
        asm volatile("" : "+v"(s[n])); // or the compiler takes all keys at once, which needs too many registers
    }
    return sums_of(s);
}
#endif

// sums[m][j] = q[m] . key j, sums `apart` from each other. ahead: what will be read next, as much again.
template <int MR>
inline void score_rounded(const int16_t *const (&q)[MR], const int8_t *keys, const int8_t *ahead, int64_t length,
                          int64_t dim, int32_t *sums, int64_t apart) {
    int64_t j = 0;
#if defined(__AVX2__)
    const int64_t whole = dim / 16 * 16;
    if constexpr (MR == 1)
        for (; dim == 64 && j + 4 <= length; j += 4)
            _mm_storeu_si128(reinterpret_cast<__m128i *>(sums + j), score_four<64>(q[0], keys + j * 64, ahead + j * 64));
    for (; j + 4 <= length; j += 4) {
        fetch(ahead + j * dim, 4 * dim);
        const int8_t *four = keys + j * dim;
        __m256i s[MR][4];
        for (int m = 0; m < MR; m++)
            for (int n = 0; n < 4; n++) s[m][n] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int64_t i = 0; i < whole; i += 16)
            for (int n = 0; n < 4; n++) {
                const __m128i *at = reinterpret_cast<const __m128i *>(four + n * dim + i);
                const __m256i key = _mm256_cvtepi8_epi16(_mm_loadu_si128(at));
                for (int m = 0; m < MR; m++) {
                    const __m256i own = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(q[m] + i));
                    s[m][n] = add_pairs(s[m][n], own, key);
                }
            }
        for (int m = 0; m < MR; m++) {
            _mm_storeu_si128(reinterpret_cast<__m128i *>(sums + m * apart + j), sums_of(s[m]));
            if (whole < dim)
                for (int n = 0; n < 4; n++)
                    sums[m * apart + j + n] += product(q[m] + whole, four + n * dim + whole, dim - whole);
        }
    }
#endif
    for (; j < length; j++)
        for (int m = 0; m < MR; m++) sums[m * apart + j] = product(q[m], keys + j * dim, dim);
}

#if defined(__AVX2__)
// out[m] += steps[m] * (weights[m] . values) for 32 N places of a head. Two places in time are multiplied together: a
// pair of weights, and bytes by turns of either place, widened by a byte of their signs.
template <int MR, int N>
inline void gather_wide(const int16_t *const (&weights)[MR], const float (&steps)[MR], const int8_t *values,
                        const int8_t *ahead, int64_t length, int64_t dim, float *const (&out)[MR], int64_t at) {
    __m256i s[MR][4 * N];
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < 4 * N; n++) s[m][n] = _mm256_setzero_si256();
    for (int64_t j = 0; j < length; j += 2) {
        const int8_t *one = values + j * dim + at, *two = j + 1 < length ? one + dim : one; // its weight is then 0
        fetch(ahead + j * dim + at, 32 * N);
        fetch(ahead + (j + 1) * dim + at, 32 * N);
        __m256i pair[MR];
        for (int m = 0; m < MR; m++) {
            int32_t both;
            std::memcpy(&both, weights[m] + j, sizeof both);
            pair[m] = _mm256_set1_epi32(both);
        }
        for (int n = 0; n < N; n++) {
            const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(one + 32 * n));
            const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(two + 32 * n));
            for (int half = 0; half < 2; half++) {
                const __m256i turns = half ? _mm256_unpackhi_epi8(x, y) : _mm256_unpacklo_epi8(x, y);
                const __m256i signs = _mm256_cmpgt_epi8(_mm256_setzero_si256(), turns);
                const __m256i low = _mm256_unpacklo_epi8(turns, signs), high = _mm256_unpackhi_epi8(turns, signs);
                for (int m = 0; m < MR; m++) {
                    __m256i *own = s[m] + 4 * n + 2 * half;
                    own[0] = add_pairs(own[0], pair[m], low);
                    own[1] = add_pairs(own[1], pair[m], high);
                }
            }
        }
    }
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < N; n++) {
            const __m256i *own = s[m] + 4 * n;
            float *to = out[m] + at + 32 * n;
            const auto add = [&](int64_t place, __m256i sums) {
                const v8 numbers = (v8)_mm256_cvtepi32_ps(sums);
                store8(to + place, load8(to + place) + numbers * splat8(steps[m]));
            };
            add(0, _mm256_permute2x128_si256(own[0], own[1], 0x20));
            add(8, _mm256_permute2x128_si256(own[2], own[3], 0x20));
            add(16, _mm256_permute2x128_si256(own[0], own[1], 0x31));
            add(24, _mm256_permute2x128_si256(own[2], own[3], 0x31));
        }
}
#endif

// out[m] += steps[m] * (weights[m] . values). Weights behind the last are 0.
template <int MR>
inline void gather_rounded(const int16_t *const (&weights)[MR], const float (&steps)[MR], const int8_t *values,
                           const int8_t *ahead, int64_t length, int64_t dim, float *const (&out)[MR]) {
    int64_t at = 0;
#if defined(__AVX2__)
    constexpr int N = 2 / MR; // as many sums as there are registers for
    for (; at + 32 * N <= dim; at += 32 * N)
        gather_wide<MR, N>(weights, steps, values, ahead, length, dim, out, at);
    for (; at + 32 <= dim; at += 32) gather_wide<MR, 1>(weights, steps, values, ahead, length, dim, out, at);
#endif
    for (; at < dim; at += 8)
        for (int m = 0; m < MR; m++) {
            int32_t sums[8] = {};
            for (int64_t j = 0; j < length; j++)
                for (int n = 0; n < 8; n++) sums[n] += weights[m][j] * values[j * dim + at + n];
            for (int n = 0; n < 8; n++) out[m][at + n] += steps[m] * static_cast<float>(sums[n]);
        }
}
