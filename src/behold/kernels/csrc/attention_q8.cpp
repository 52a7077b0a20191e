// Attention in which every query sees every key of its picture, with all numbers rounded to 8 bits or fewer: what
// quantized models use. Sums of products are exact; weights, their sums and the softmax over chunks are float32.
//
// Keys, queries and values are rounded without their means over the picture's tokens, which are added again where they
// count: a channel that is large everywhere costs no precision, and weights too small for their chunk's 7 bits still
// pull towards the mean of the values. Keys have a scale each, as queries have; values one for each channel of a chunk;
// weights are rounded relative to the largest of their chunk.

#include <cmath>
#include <cstring>

#include "attention_q8.h"
#include "pool.h"

namespace {

constexpr int BLOCK = 9 * ROWS;
constexpr int AHEAD = 4; // rows that are fetched early: they lie in pages of their own
// Two products of a query and a key fit into 16 bits, 2 * 180 * 90, and what the queries' centre adds is taken off by
// where sums begin: of 8 SHORT places only the sum has to fit, which is at most the product of the lengths (Cauchy and
// Schwarz). Half of the places are of one sum, and rounding adds half a step to a number: (178.5 + sqrt(20) / 2)^2.
constexpr int QUERY = 90, KEY = 90;
constexpr float LENGTH = 178.5f;
// The same of 4 TOGETHER keys' weights and values: 127 * sqrt(6) * (104 + sqrt(6) / 2).
constexpr int TOGETHER = 3;
constexpr float VALUES = 104.0f;
constexpr float WEIGHTS = 6.988684687f; // the power of two that is 127

// What is kept of a chunk of keys; a picture's head has the means of its queries and values, then its chunks.
struct Chunk {
    float *bias, *scale, *value_scale; // (CHUNK), (CHUNK), (dim)
    Begin *begin;                      // of products with a query's integers: see multiply_short
    int8_t *keys, *values;             // [four places][key][place], and [four keys][place][key]
    static int64_t shorts(int64_t dim) { return (dim / 8 + SHORT - 1) / SHORT * 2 * CHUNK; } // or room for longer ones
    static int64_t bytes(int64_t dim) { return CHUNK * (8 + 2 * dim) + 2 * shorts(dim) + 4 * dim; }
    Chunk(char *at, int64_t dim) {
        bias = reinterpret_cast<float *>(at);
        scale = bias + CHUNK, value_scale = scale + CHUNK;
        begin = reinterpret_cast<Begin *>(value_scale + dim);
        keys = reinterpret_cast<int8_t *>(begin) + 2 * shorts(dim);
        values = keys + CHUNK * dim;
    }
};

int64_t head_bytes(int64_t n, int64_t dim) {
    return 8 * dim + (n + CHUNK - 1) / CHUNK * Chunk::bytes(dim);
}

// Sums of the rows of x, then their mean.
void mean_of(const float *x, int64_t apart, int64_t n, int64_t dim, float *mean) {
    std::memset(mean, 0, sizeof(float) * dim);
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < dim; d += 8) {
            __builtin_prefetch(x + (i + AHEAD) * apart + d);
            store8(mean + d, load8(mean + d) + load8(x + i * apart + d));
        }
    for (int64_t d = 0; d < dim; d += 8) store8(mean + d, load8(mean + d) * splat8(1.0f / n));
}

void round_keys(const float *k, const float *mean, const float *mean_q, int64_t apart, int64_t length, int64_t dim,
                float factor, const Chunk &chunk) {
    alignas(32) uint8_t integers[MAX_DIM];
    for (int64_t key = 0; key < CHUNK; key++) {
        int8_t *column = chunk.keys + 4 * key;
        if (key >= length) {
            for (int64_t d = 0; d < dim; d += 4) std::memset(column + d * CHUNK, 0, 4);
            chunk.bias[key] = -INFINITY, chunk.scale[key] = 0;
            continue;
        }
        chunk.scale[key] = round_row(k + key * apart, mean, dim, KEY, 0, integers, LENGTH);
        for (int64_t d = 0; d < dim; d += 4) std::memcpy(column + d * CHUNK, integers + d, 4);
        v8 bias = splat8(0);
        for (int64_t d = 0; d < dim; d += 8) __builtin_prefetch(k + (key + AHEAD) * apart + d);
        for (int64_t d = 0; d < dim; d += 8) bias += load8(mean_q + d) * (load8(k + key * apart + d) - load8(mean + d));
        chunk.bias[key] = sum8(bias) * factor;
    }
    std::memset(chunk.begin, 0, 2 * Chunk::shorts(dim));
    for (int64_t quad = 0; quad < dim / 4; quad++) {
        const int8_t *row = chunk.keys + quad * 4 * CHUNK;
#if defined(__AVX512VNNI__)
        for (int i = 0; i < 4 * CHUNK; i++) chunk.begin[i / 4] -= QUERY * row[i];
#else
        int16_t *begin = chunk.begin + quad / (2 * SHORT) * 2 * CHUNK;
        for (int i = 0; i < 2 * CHUNK; i++) begin[i] -= QUERY * (row[2 * i] + row[2 * i + 1]); // modulo 2^16
#endif
    }
}

void round_values(const float *v, const float *mean, int64_t apart, int64_t length, int64_t dim, const Chunk &chunk) {
    constexpr int PLACES = 4 * TOGETHER, HALVES = 2 * CHUNK / PLACES;
    alignas(32) float inverse[MAX_DIM], squares[HALVES * MAX_DIM];
    std::memset(squares, 0, sizeof(float) * HALVES * dim);
    for (int key = 0; key < length; key++) {
        float *own = squares + (place_of(key) / PLACES * 2 + key % 4 / 2) * dim;
        for (int64_t d = 0; d < dim; d += 8) {
            __builtin_prefetch(v + (key + AHEAD) * apart + d);
            const v8 value = load8(v + key * apart + d) - load8(mean + d);
            store8(own + d, load8(own + d) + value * value);
        }
    }
    for (const float *other = squares + dim; other < squares + HALVES * dim; other += dim)
        for (int64_t d = 0; d < dim; d += 8) store8(squares + d, max8(load8(squares + d), load8(other + d)));
    for (int64_t d = 0; d < dim; d++) {
        const float step = std::sqrt(squares[d]) * (1.0f / VALUES);
        chunk.value_scale[d] = step;
        inverse[d] = step > 0 ? 1.0f / step : 0;
    }
    if (length < CHUNK) std::memset(chunk.values, 0, CHUNK * dim);
    for (int key = 0; key < length; key += 4)
        for (int64_t d = 0; d < dim; d += 8) {
            i8 bytes = {};
            for (int j = 0; j < 4 && key + j < length; j++) {
                const v8 value = load8(v + (key + j) * apart + d) - load8(mean + d);
                bytes |= ((i8)(value * load8(inverse + d) + magic) & 255) << (8 * j);
            }
            std::memcpy(chunk.values + place_of(key) * dim + d * 4, &bytes, 32);
        }
}

// A query's scores of a chunk, as powers of two; returns the largest.
__attribute__((noinline)) float score(const uint8_t *q, const Chunk &chunk, int64_t dim, float step, float *scores) {
    v8 top = splat8(-INFINITY);
    multiply_short(q, chunk.keys, dim, chunk.begin, [&](int i, i8 products) __attribute__((always_inline)) {
        const v8 own = __builtin_convertvector(products, v8) * load8(chunk.scale + 8 * i);
        const v8 part = own * splat8(step) + load8(chunk.bias + 8 * i);
        store8(scores + 8 * i, part);
        top = max8(top, part);
    });
    return most8(top);
}

struct Head {
    const float *q; // of its first query
    float *out;
    int64_t apart, out_apart;
    char *kept;
};

__attribute__((noinline)) void attend_block(const Head &head, int rows, int64_t n, int64_t dim, float factor) {
    alignas(64) uint8_t q[BLOCK * MAX_DIM], weights[ROWS * CHUNK];
    alignas(64) float sums[BLOCK * MAX_DIM], scores[ROWS * CHUNK], step[BLOCK];
    float largest[BLOCK];
    v8 totals[BLOCK];
    const auto as_it_is = [](int, v8 power) { return power; };
    const int tiles = (rows + ROWS - 1) / ROWS;
    const float *mean_q = reinterpret_cast<const float *>(head.kept), *mean_v = mean_q + dim;
    char *chunks = head.kept + 8 * dim;
    std::memset(sums, 0, sizeof(float) * tiles * ROWS * dim);
    std::memset(q + rows * dim, 0, (tiles * ROWS - rows) * dim);
    for (int i = 0; i < tiles * ROWS; i++) {
        for (int64_t d = 0; d < dim; d += 8) __builtin_prefetch(head.q + (i + AHEAD) * head.apart + d);
        step[i] = 0, largest[i] = -INFINITY, totals[i] = splat8(0);
        if (i < rows)
            step[i] = round_row(head.q + i * head.apart, mean_q, dim, QUERY, QUERY, q + i * dim, LENGTH) * factor;
    }
    for (int64_t start = 0; start < n; start += CHUNK) {
        const Chunk chunk(chunks + start / CHUNK * Chunk::bytes(dim), dim);
        for (int tile = 0; tile < tiles; tile++) {
            alignas(32) float top[2 * 8], kept[2 * 8], share[2 * 8];
            v8 total[ROWS];
            for (int m = 0; m < ROWS; m++)
                top[m] = score(q + (tile * ROWS + m) * dim, chunk, dim, step[tile * ROWS + m], scores + m * CHUNK);
            for (int m = 0; m < ROWS; m++)
                total[m] = to_weights<CHUNK / 8>(scores + m * CHUNK, top[m], WEIGHTS, as_it_is, weights + m * CHUNK);
            for (int m = 0; m < ROWS; m += 8) { // what earlier sums, and this chunk's, are to be multiplied by
                float *most = largest + tile * ROWS + m;
                const v8 before = load8(most), now = max8(before, load8(top + m));
                store8(kept + m, power8(before - now));
                store8(share + m, power8(load8(top + m) - now));
                store8(most, now);
            }
            for (int m = 0; m < ROWS; m++) {
                v8 &sum = totals[tile * ROWS + m];
                sum = sum * splat8(kept[m]) + total[m] * splat8(share[m]);
            }
            for (int m = 0; m < ROWS; m++) {
                float *to = sums + (tile * ROWS + m) * dim;
                const auto add = [&](int64_t i, i8 integers) __attribute__((always_inline)) {
                    const v8 more = __builtin_convertvector(integers, v8) * load8(chunk.value_scale + 8 * i);
                    store8(to + 8 * i, load8(to + 8 * i) * splat8(kept[m]) + more * splat8(share[m]));
                };
                multiply_all<TOGETHER>(weights + m * CHUNK, chunk.values, dim / 8, CHUNK / 4, add);
            }
        }
    }
    for (int row = 0; row < rows; row++) {
        const v8 share = splat8(1.0f / sum8(totals[row]));
        for (int64_t d = 0; d < dim; d += 8)
            store8(head.out + row * head.out_apart + d, load8(mean_v + d) + load8(sums + row * dim + d) * share);
    }
}

} // namespace

// Round keys and values of (batch, n, heads, dim), rows `apart` floats from each other, into `kept`, head_bytes for
// each head of each picture. dim is a multiple of 8 up to 128.
BH_EXPORT void bh_attend_q8_keep(const float *q, const float *k, const float *v, char *kept, int64_t batch, int64_t n,
                                 int64_t heads, int64_t dim, int64_t apart, int threads) {
    const float factor = 1.44269504f / std::sqrt(static_cast<float>(dim)); // powers of two are cheaper than those of e
    in_parallel(batch * heads, 1, threads, [&](int64_t from, int64_t to) {
        for (int64_t item = from; item < to; item++) {
            const int64_t at = item / heads * n * apart + item % heads * dim;
            alignas(32) float mean[MAX_DIM];
            char *own = kept + item * head_bytes(n, dim);
            float *mean_q = reinterpret_cast<float *>(own), *mean_v = mean_q + dim;
            mean_of(q + at, apart, n, dim, mean_q);
            mean_of(k + at, apart, n, dim, mean);
            mean_of(v + at, apart, n, dim, mean_v);
            for (int64_t start = 0; start < n; start += CHUNK) {
                const Chunk chunk(own + 8 * dim + start / CHUNK * Chunk::bytes(dim), dim);
                const int64_t length = n - start < CHUNK ? n - start : CHUNK, first = at + start * apart;
                round_keys(k + first, mean, mean_q, apart, length, dim, factor, chunk);
                round_values(v + first, mean_v, apart, length, dim, chunk);
            }
        }
    });
}

// Queries [begin, end) of q, to out (batch, end - begin, heads, dim).
BH_EXPORT void bh_attend_q8(const float *q, char *kept, float *out, int64_t batch, int64_t n, int64_t begin, int64_t end,
                            int64_t heads, int64_t dim, int64_t apart, int threads) {
    const float factor = 1.44269504f / std::sqrt(static_cast<float>(dim));
    const int64_t all = end - begin, parts = (all + BLOCK - 1) / BLOCK;
    const int64_t rows = ((all + parts - 1) / parts + ROWS - 1) / ROWS * ROWS, blocks = (all + rows - 1) / rows;
    in_parallel(batch * heads * blocks, 1, threads, [&](int64_t from, int64_t to) {
        for (int64_t item = from; item < to; item++) {
            const int64_t head = item / blocks % heads, picture = item / blocks / heads;
            const int64_t start = begin + item % blocks * rows, stop = start + rows < end ? start + rows : end;
            const Head one{q + (picture * n + start) * apart + head * dim,
                           out + ((picture * all + start - begin) * heads + head) * dim, apart, heads * dim,
                           kept + item / blocks * head_bytes(n, dim)};
            attend_block(one, static_cast<int>(stop - start), n, dim, factor);
        }
    });
}
