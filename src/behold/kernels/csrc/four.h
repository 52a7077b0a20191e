// Sums of 32 columns in four registers, AVX2, or in two, AVX-512 with VNNI.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>

static inline __m256i load(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
static inline void store(void *p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i *>(p), v); }

// Four places of a row, for every column.
static inline __m256i four_places(const uint8_t *integers) {
    int32_t bits;
    std::memcpy(&bits, integers, 4);
    return _mm256_set1_epi32(bits);
}

// Members, not an array: those GCC keeps in memory.
struct Four {
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;

    // A fence for the compiler, which otherwise loads far ahead and has no registers left for the sums.
    __attribute__((always_inline)) void keep() { asm volatile("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d)); }

    void load_from(const int32_t *in) { a = load(in), b = load(in + 8), c = load(in + 16), d = load(in + 24); }

    void store_to(int32_t *out) const {
        store(out, a);
        store(out + 8, b);
        store(out + 16, c);
        store(out + 24, d);
    }
};
#endif

#if defined(__AVX512VNNI__)
static inline __m512i load64(const void *p) { return _mm512_loadu_si512(p); }
static inline void store64(void *p, __m512i v) { _mm512_storeu_si512(p, v); }

// The same of twice as many columns.
static inline __m512i four_places64(const uint8_t *integers) {
    int32_t bits;
    std::memcpy(&bits, integers, 4);
    return _mm512_set1_epi32(bits);
}

struct Two {
    __m512i a = _mm512_setzero_si512(), b = a;

    void store_to(int32_t *out) const {
        store64(out, a);
        store64(out + 16, b);
    }
};
#endif
