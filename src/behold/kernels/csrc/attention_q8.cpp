// Attention in which every query sees every key of its picture, with all numbers rounded to 8 bits or fewer: what
// quantized models use. Sums of products are exact; weights, their sums and the softmax over chunks are float32.
//
// Keys, queries and values are rounded without their means over the picture's tokens, which are added again where they
// count: a channel that is large everywhere costs no precision, and weights too small for their chunk's 8 bits still
// pull towards the mean of the values. Keys have a scale each, as queries have; values one for each channel of a chunk;
// weights are rounded relative to the largest of their chunk.

#include <cmath>
#include <cstring>

#include "attention_q8.h"
#include "pool.h"

namespace {

constexpr int CHUNK = 96; // keys
constexpr int ROWS = 16;  // queries that are weighed together
constexpr int BLOCK = 9 * ROWS;
constexpr int AHEAD = 4; // rows that are fetched early: they lie in pages of their own
// Two products fit into 16 bits: 2 * 181 * 90 and 2 * 255 * 64.
constexpr int QUERY = 90, KEY = 90, VALUE = 64;
constexpr float WEIGHTS = 7.994353437f; // the power of two that is 255

// What is kept of a chunk of keys; a picture's head has the means of its queries and values, then its chunks.
struct Chunk {
    float *bias, *scale, *value_scale; // (CHUNK), (CHUNK), (width)
    int32_t *sums;                     // (CHUNK): where the products with a query's integers begin
    int8_t *keys, *values;             // panels of 24 keys, and of 24 channels: [panel][four places][column][place]
    static int64_t bytes(int64_t dim) { return CHUNK * (12 + dim) + width_of(dim) * (4 + CHUNK); }
    Chunk(char *at, int64_t dim) {
        bias = reinterpret_cast<float *>(at);
        scale = bias + CHUNK, value_scale = scale + CHUNK;
        sums = reinterpret_cast<int32_t *>(value_scale + width_of(dim));
        keys = reinterpret_cast<int8_t *>(sums + CHUNK);
        values = keys + CHUNK * dim;
    }
};

int64_t head_bytes(int64_t n, int64_t dim) {
    return 4 * (dim + width_of(dim)) + (n + CHUNK - 1) / CHUNK * Chunk::bytes(dim);
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
        int8_t *panel = chunk.keys + key / WIDE * WIDE * dim + key % WIDE * 4;
        if (key >= length) {
            for (int64_t d = 0; d < dim; d += 4) std::memset(panel + d * WIDE, 0, 4);
            chunk.bias[key] = -INFINITY, chunk.scale[key] = 0, chunk.sums[key] = 0;
            continue;
        }
        chunk.scale[key] = round_row(k + key * apart, mean, dim, KEY, 0, integers);
        int32_t sum = 0;
        for (int64_t d = 0; d < dim; d++) sum += static_cast<int8_t>(integers[d]);
        for (int64_t d = 0; d < dim; d += 4) std::memcpy(panel + d * WIDE, integers + d, 4);
        v8 bias = splat8(0);
        for (int64_t d = 0; d < dim; d += 8) __builtin_prefetch(k + (key + AHEAD) * apart + d);
        for (int64_t d = 0; d < dim; d += 8) bias += load8(mean_q + d) * (load8(k + key * apart + d) - load8(mean + d));
        chunk.bias[key] = sum8(bias) * factor;
        chunk.sums[key] = -QUERY * sum;
    }
}

void round_values(const float *v, const float *mean, int64_t apart, int64_t length, int64_t dim, const Chunk &chunk) {
    alignas(32) float inverse[MAX_DIM] = {};
    const int64_t width = width_of(dim);
    std::memset(chunk.value_scale, 0, sizeof(float) * width);
    for (int64_t key = 0; key < length; key++)
        for (int64_t d = 0; d < dim; d += 8) {
            __builtin_prefetch(v + (key + AHEAD) * apart + d);
            const v8 value = abs8(load8(v + key * apart + d) - load8(mean + d));
            store8(chunk.value_scale + d, max8(load8(chunk.value_scale + d), value));
        }
    for (int64_t d = 0; d < dim; d++) {
        inverse[d] = chunk.value_scale[d] > 0 ? VALUE / chunk.value_scale[d] : 0;
        chunk.value_scale[d] *= 1.0f / VALUE;
    }
    std::memset(chunk.values, 0, CHUNK * width);
    for (int key = 0; key < length; key += 4)
        for (int64_t d = 0; d < dim; d += 8) {
            i8 bytes = {};
            for (int j = 0; j < 4 && key + j < length; j++) {
                const v8 value = load8(v + (key + j) * apart + d) - load8(mean + d);
                bytes |= ((i8)(value * load8(inverse + d) + magic) & 255) << (8 * j);
            }
            std::memcpy(chunk.values + d / WIDE * WIDE * CHUNK + place_of(key) * WIDE + d % WIDE * 4, &bytes, 32);
        }
}

// Scores of a query with a chunk to weights of 8 bits; returns the largest score, and the weights' sum in eight parts.
inline float weigh(const int32_t *products, const Chunk &chunk, float step, v8 *total, uint8_t *weights) {
    constexpr int PARTS = CHUNK / 8;
    v8 part[PARTS], top = splat8(-INFINITY);
    for (int i = 0; i < PARTS; i++) {
        i8 integers;
        std::memcpy(&integers, products + 8 * i, 32);
        part[i] = __builtin_convertvector(integers, v8) * load8(chunk.scale + 8 * i) * splat8(step) + load8(chunk.bias + 8 * i);
        top = max8(top, part[i]);
    }
    const float largest = most8(top);
    const v8 below = splat8(largest - WEIGHTS);
    v8 sum = splat8(0);
    for (int i = 0; i < PARTS; i += 4) {
        v8 four[4];
        for (int j = 0; j < 4; j++) {
            four[j] = rough_power8(part[i + j] - below);
            sum += four[j];
        }
        pack(four, weights + 8 * i);
    }
    *total = sum;
    return largest;
}

struct Head {
    const float *q; // of its first query
    float *out;
    int64_t apart, out_apart;
    char *kept;
};

__attribute__((noinline)) void attend_block(const Head &head, int rows, int64_t n, int64_t dim, float factor) {
    alignas(64) uint8_t q[BLOCK * MAX_DIM], weights[ROWS * CHUNK];
    alignas(64) float sums[BLOCK * MAX_WIDTH], step[BLOCK];
    alignas(64) int32_t products[ROWS * CHUNK], few[4 * WIDE];
    float largest[BLOCK];
    v8 totals[BLOCK];
    static const int32_t none[WIDE] = {};
    const int64_t width = width_of(dim);
    const int tiles = (rows + ROWS - 1) / ROWS;
    const float *mean_q = reinterpret_cast<const float *>(head.kept), *mean_v = mean_q + dim;
    char *chunks = head.kept + 4 * (dim + width);
    std::memset(sums, 0, sizeof(float) * tiles * ROWS * width);
    std::memset(q + rows * dim, 0, (tiles * ROWS - rows) * dim);
    for (int i = 0; i < tiles * ROWS; i++) {
        for (int64_t d = 0; d < dim; d += 8) __builtin_prefetch(head.q + (i + AHEAD) * head.apart + d);
        step[i] = i < rows ? round_row(head.q + i * head.apart, mean_q, dim, QUERY, QUERY, q + i * dim) * factor : 0;
        largest[i] = -INFINITY, totals[i] = splat8(0);
    }
    for (int64_t start = 0; start < n; start += CHUNK) {
        const Chunk chunk(chunks + start / CHUNK * Chunk::bytes(dim), dim);
        for (int tile = 0; tile < tiles; tile++) {
            for (int m = 0; m < ROWS; m += 4)
                for (int key = 0; key < CHUNK; key += WIDE)
                    product(q + (tile * ROWS + m) * dim, dim, chunk.keys + key * dim, dim / 4, chunk.sums + key,
                            products + m * CHUNK + key, CHUNK);
            alignas(32) float top[2 * 8], kept[2 * 8], share[2 * 8];
            v8 total[ROWS];
            for (int m = 0; m < ROWS; m++)
                top[m] = weigh(products + m * CHUNK, chunk, step[tile * ROWS + m], total + m, weights + m * CHUNK);
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
            for (int m = 0; m < ROWS; m += 4)
                for (int64_t d = 0; d < width; d += WIDE) {
                    product(weights + m * CHUNK, CHUNK, chunk.values + d * CHUNK, CHUNK / 4, none, few, WIDE);
                    for (int i = 0; i < 4; i++) {
                        float *to = sums + (tile * ROWS + m + i) * width + d;
                        for (int c = 0; c < WIDE; c += 8) {
                            i8 integers;
                            std::memcpy(&integers, few + i * WIDE + c, 32);
                            const v8 more = __builtin_convertvector(integers, v8) * load8(chunk.value_scale + d + c);
                            store8(to + c, load8(to + c) * splat8(kept[m + i]) + more * splat8(share[m + i]));
                        }
                    }
                }
        }
    }
    for (int row = 0; row < rows; row++) {
        const v8 share = splat8(1.0f / sum8(totals[row]));
        for (int64_t d = 0; d < dim; d += 8)
            store8(head.out + row * head.out_apart + d, load8(mean_v + d) + load8(sums + row * width + d) * share);
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
                const Chunk chunk(own + 4 * (dim + width_of(dim)) + start / CHUNK * Chunk::bytes(dim), dim);
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
