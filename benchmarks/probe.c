/* What this processor can do, measured: reading memory, and multiplying with additions in registers.

   probe THREADS SECONDS  prints one JSON object: read_gb_s, float_gop_s, bfloat16_gop_s (as floats where there are no
   units for it) and, with AVX2, int8_gop_s and int4_gop_s.

   int8: bytes multiplied pairwise, summed in 32 bits. int4: the same with sums in 16 bits, as small products allow;
   with VNNI, which adds four products in 32 bits at once, as int8.
   A multiplication with its addition counts as two operations. Each figure is the best of a few slices of the time. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { SLICES = 5, CHAINS = 10, ROUNDS = 2000 };
#define STREAM_BYTES ((size_t)128 << 20) /* of each thread; together more than any cache */
#define STREAMS 4                /* read at once: one alone does not fill the memory's pipe */

typedef float floats __attribute__((vector_size(32)));
typedef int64_t longs __attribute__((vector_size(32)));
typedef struct {
    double (*work)(const char *); /* operations or bytes of one call */
    const char *memory;
    double seconds, rate;
} Job;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double read_memory(const char *memory) {
    longs sums[STREAMS] = {{0}};
    const size_t part = STREAM_BYTES / STREAMS / sizeof(longs);
    const longs *from = (const longs *)memory;
    for (size_t i = 0; i < part; i += 2)
        for (int s = 0; s < STREAMS; s++) sums[s] += from[s * part + i] ^ from[s * part + i + 1];
    for (int s = 0; s < STREAMS; s++) __asm__ volatile("" : : "m"(sums[s]));
    return STREAM_BYTES;
}

#if defined(__AVX2__) && defined(__FMA__)
/* An empty asm statement that "changes" a register keeps the compiler from leaving work out. */
#define KEEP(x) __asm__ volatile("" : "+x"(x))
/* Named sums, as those of an array are kept in memory: enough that each may wait for its own last addition. */
#define EACH(do) do(s0) do(s1) do(s2) do(s3) do(s4) do(s5) do(s6) do(s7) do(s8) do(s9)

#if defined(__AVX512VNNI__)
#define WIDE(do) do(w0) do(w1) do(w2) do(w3) do(w4) do(w5) do(w6) do(w7) do(w8) do(w9)
#define KEEP_WIDE(x) __asm__ volatile("" : "+v"(x))

static double multiply_floats(const char *memory) {
    (void)memory;
    __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
    __m512 w0 = a, w1 = a, w2 = a, w3 = a, w4 = a, w5 = a, w6 = a, w7 = a, w8 = a, w9 = a;
#define STEP(w) w = _mm512_fmadd_ps(a, b, w); KEEP_WIDE(w);
    for (int r = 0; r < ROUNDS; r++) { WIDE(STEP) }
#undef STEP
    return 2.0 * 16 * CHAINS * ROUNDS;
}

static double multiply_int8(const char *memory) {
    (void)memory;
    __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
    __m512i w0 = a, w1 = a, w2 = a, w3 = a, w4 = a, w5 = a, w6 = a, w7 = a, w8 = a, w9 = a;
#define STEP(w) w = _mm512_dpbusd_epi32(w, a, b); KEEP_WIDE(w);
    for (int r = 0; r < ROUNDS; r++) { WIDE(STEP) }
#undef STEP
    return 2.0 * 64 * CHAINS * ROUNDS;
}
#define multiply_int4 multiply_int8

#if defined(__AVX512BF16__)
#define multiply_bfloat16 multiply_pairs
static double multiply_pairs(const char *memory) {
    __m512 w0 = _mm512_set1_ps(0.5f), w1 = w0, w2 = w0, w3 = w0, w4 = w0, w5 = w0, w6 = w0, w7 = w0, w8 = w0, w9 = w0;
    __m512bh a;
    memcpy(&a, memory, sizeof a);
#define STEP(w) w = _mm512_dpbf16_ps(w, a, a); KEEP_WIDE(w);
    for (int r = 0; r < ROUNDS; r++) { WIDE(STEP) }
#undef STEP
    return 2.0 * 32 * CHAINS * ROUNDS;
}
#endif
#else
static double multiply_floats(const char *memory) {
    (void)memory;
    __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
    __m256 s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a, s7 = a, s8 = a, s9 = a;
#define STEP(s) s = _mm256_fmadd_ps(a, b, s); KEEP(s);
    for (int r = 0; r < ROUNDS; r++) { EACH(STEP) }
#undef STEP
    return 2.0 * 8 * CHAINS * ROUNDS;
}

static double multiply_int8(const char *memory) {
    (void)memory;
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1);
    __m256i s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a, s7 = a, s8 = a, s9 = a;
#define STEP(s) KEEP(a); s = _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones)); KEEP(s);
    for (int r = 0; r < ROUNDS; r++) { EACH(STEP) }
#undef STEP
    return 2.0 * 32 * CHAINS * ROUNDS;
}

static double multiply_int4(const char *memory) {
    (void)memory;
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
    __m256i s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a, s7 = a, s8 = a, s9 = a;
#define STEP(s) KEEP(a); s = _mm256_add_epi16(s, _mm256_maddubs_epi16(a, b)); KEEP(s);
    for (int r = 0; r < ROUNDS; r++) { EACH(STEP) }
#undef STEP
    return 2.0 * 32 * CHAINS * ROUNDS;
}
#endif
#else
static double multiply_floats(const char *memory) {
    floats sums[CHAINS], a, b;
    memcpy(&a, memory, sizeof a);
    memcpy(&b, memory + sizeof a, sizeof b);
    for (int c = 0; c < CHAINS; c++) sums[c] = a - a;
    for (int r = 0; r < ROUNDS; r++)
        for (int c = 0; c < CHAINS; c++) sums[c] = sums[c] * a + b;
    for (int c = 0; c < CHAINS; c++) __asm__ volatile("" : : "m"(sums[c]));
    return 2.0 * 8 * CHAINS * ROUNDS;
}
#endif

#ifndef multiply_bfloat16
#define multiply_bfloat16 multiply_floats
#endif

static void *run(void *given) {
    Job *job = given;
    const double start = now();
    double done = 0.0, spent;
    do {
        done += job->work(job->memory);
        spent = now() - start;
    } while (spent < job->seconds);
    job->rate = done / spent;
    return NULL;
}

static double best(double (*work)(const char *), char **memory, int threads, double seconds) {
    double found = 0.0;
    Job *jobs = calloc((size_t)threads, sizeof *jobs);
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    for (int slice = 0; slice < SLICES; slice++) {
        double total = 0.0;
        for (int t = 0; t < threads; t++) {
            jobs[t] = (Job){work, memory[t], seconds / SLICES, 0.0};
            if (pthread_create(&ids[t], NULL, run, &jobs[t])) exit(1);
        }
        for (int t = 0; t < threads; t++) {
            pthread_join(ids[t], NULL);
            total += jobs[t].rate;
        }
        if (total > found) found = total;
    }
    free(jobs);
    free(ids);
    return found / 1e9;
}

int main(int argc, char **argv) {
    const int threads = argc > 1 ? atoi(argv[1]) : 1;
    const double seconds = argc > 2 ? atof(argv[2]) : 0.5;
    if (threads < 1 || threads > 1024) return 2;
    char **memory = calloc((size_t)threads, sizeof *memory);
    for (int t = 0; t < threads; t++) {
        memory[t] = aligned_alloc(64, STREAM_BYTES);
        if (!memory[t]) return 1;
        memset(memory[t], 1, STREAM_BYTES);
    }
    printf("{\"read_gb_s\": %.2f", best(read_memory, memory, threads, seconds));
    printf(", \"float_gop_s\": %.1f", best(multiply_floats, memory, threads, seconds));
    printf(", \"bfloat16_gop_s\": %.1f", best(multiply_bfloat16, memory, threads, seconds));
#if defined(__AVX2__) && defined(__FMA__)
    printf(", \"int8_gop_s\": %.1f", best(multiply_int8, memory, threads, seconds));
    printf(", \"int4_gop_s\": %.1f", best(multiply_int4, memory, threads, seconds));
#endif
    printf("}\n");
    return 0;
}
