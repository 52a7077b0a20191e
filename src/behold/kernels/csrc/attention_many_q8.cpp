// Attention of many queries over a row of integers, with queries of 7 bits and weights of as many: products are exact
// sums of integers, and only the softmax over chunks of keys is float32.
//
// Queries are spread as keys are, and rounded by their largest number. A key's weight is first multiplied by the scale
// of its value, then rounded relative to the largest of the query's chunk: a key that takes most of the weight and has
// little to say, as a first token often does, costs the others no precision. Of normally distributed numbers the
// result is 1 to 3 % off. Chunks begin at fixed places, and what a query does not see has no part in its numbers: so a
// result depends neither on a query's neighbours nor on how a prompt was cut.

#include <cmath>

#include "attention.h"
#include "attention_q8.h"

namespace {

constexpr int BLOCK = (Queries::MOST + ROWS - 1) / ROWS * ROWS;
// Two products fit into 16 bits: 2 * 128 * 127, both ways.
constexpr int QUERY = 64;
constexpr float WEIGHTS = 7.0f; // the power of two that is the largest weight
constexpr float LEAST = -1e30f; // of scores: less than any, and a number

// A chunk of keys, turned for products.
struct Chunk {
    alignas(64) int8_t keys[CHUNK * MAX_DIM];   // [four places of the head][key][place]
    alignas(64) int8_t values[CHUNK * MAX_DIM]; // [four keys][place of the head][key]
    alignas(64) int32_t sums[CHUNK];            // what the products with a query's integers begin at
    alignas(64) float scale[CHUNK], power[CHUNK], inverse[CHUNK]; // keys' scales; values', as powers of two, and 1 / them

    // Keys [start, start + length) of a head.
    void take(const Source<int8_t> &source, int64_t start, int64_t length, int64_t dim) {
        const int8_t *key = source.keys + start * source.apart, *value = source.values + start * source.apart;
        for (int64_t j = 0; j < CHUNK; j++) {
            const bool real = j < length;
            const float step = real ? source.value_scales[start + j] : 1.0f;
            scale[j] = real ? source.key_scales[start + j] : 0;
            power[j] = step, inverse[j] = 1.0f / step;
            int32_t sum = 0;
            if (real)
                for (int64_t d = 0; d < dim; d++) sum += key[j * source.apart + d];
            sums[j] = -QUERY * sum;
        }
        for (int64_t j = 0; j < CHUNK; j += 8) store8(power + j, log8(load8(power + j)));
        for (int64_t j = 0; j < CHUNK; j += 8) turn_keys(key, source.apart, j, length, dim);
        std::memset(values, 0, CHUNK * dim);
        for (int j = 0; j < length; j += 4) turn_values(value + j * source.apart, source.apart, j, length - j, dim);
    }

  private:
    // Of base two, of normal numbers: a line by their own bits, and a step from there.
    static v8 log8(v8 x) {
        const v8 line = __builtin_convertvector((i8)x - 0x3F800000, v8) * splat8(0x1p-23f);
        const v8 rest = x * power8(-line) - splat8(1.0f); // up to 0.06
        return line + rest * splat8(2 * 1.44269504f) / (splat8(2.0f) + rest);
    }

    void turn_keys(const int8_t *from, int64_t apart, int64_t first, int64_t length, int64_t dim) {
        int8_t *columns = keys + 4 * first;
        int64_t d = 0;
        for (; d + 32 <= dim; d += 32) {
            v8 square[8]; // of four places of the head each
            for (int64_t j = 0; j < 8; j++) {
                square[j] = splat8(0);
                if (first + j < length) std::memcpy(&square[j], from + (first + j) * apart + d, sizeof(v8));
            }
            transpose8(square);
            for (int64_t i = 0; i < 8; i++) std::memcpy(columns + (d + 4 * i) * CHUNK, &square[i], sizeof(v8));
        }
        for (; d < dim; d += 4)
            for (int64_t j = 0; j < 8; j++) {
                int32_t four = 0;
                if (first + j < length) std::memcpy(&four, from + (first + j) * apart + d, sizeof four);
                std::memcpy(columns + d * CHUNK + 4 * j, &four, sizeof four);
            }
    }

    // Four keys, or what there is of them, to their place.
    void turn_values(const int8_t *from, int64_t apart, int first, int64_t length, int64_t dim) {
        for (int64_t d = 0; d < dim; d += 8) {
            int8_t *to = values + place_of(first) * dim + d * 4;
            const int8_t *at = from + d;
#if defined(__AVX2__)
            __m128i row[4];
            for (int i = 0; i < 4; i++)
                row[i] = i < length ? _mm_loadl_epi64(reinterpret_cast<const __m128i *>(at + i * apart)) : _mm_setzero_si128();
            const __m128i low = _mm_unpacklo_epi8(row[0], row[1]), high = _mm_unpacklo_epi8(row[2], row[3]);
            _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm_unpacklo_epi16(low, high));
            _mm_storeu_si128(reinterpret_cast<__m128i *>(to + 16), _mm_unpackhi_epi16(low, high));
#else
            for (int64_t i = 0; i < 4 && i < length; i++)
                for (int64_t c = 0; c < 8; c++) to[4 * c + i] = at[i * apart + c];
#endif
        }
    }
};

// Scores of a query with the keys [first, last) of the first 32 GROUPS of a chunk, as powers of two, with their values'
// scales; returns the largest.
template <int GROUPS>
inline float score(const uint8_t *q, const Chunk &chunk, int64_t dim, float step, int64_t first, int64_t last,
                   float *scores) {
    const bool whole = first <= 0 && last >= 32 * GROUPS;
    v8 top = splat8(LEAST);
    multiply<4 * GROUPS, 1>(q, chunk.keys, 4 * CHUNK, dim / 4, [&](int i, i8 products) __attribute__((always_inline)) {
        i8 begin;
        std::memcpy(&begin, chunk.sums + 8 * i, sizeof begin);
        v8 part = __builtin_convertvector(products + begin, v8) * (load8(chunk.scale + 8 * i) * splat8(step)) +
                  load8(chunk.power + 8 * i);
        if (!whole) part = between8(part, first - 8 * i, last - 8 * i);
        store8(scores + 8 * i, part);
        top = max8(top, part);
    });
    return most8(top);
}

struct Block {
    alignas(64) uint8_t q[BLOCK * MAX_DIM], weights[ROWS * CHUNK];
    alignas(64) float sums[BLOCK * MAX_DIM], scores[ROWS * CHUNK], step[BLOCK], largest[BLOCK];
    v8 totals[BLOCK];
    Chunk chunk;
};

// A tile of queries with the keys that any of them sees, the first 32 GROUPS of a chunk.
template <int GROUPS>
__attribute__((noinline)) void attend_tile(Block &block, const Queries &queries, int tile, int64_t start, int64_t dim) {
    const Chunk &chunk = block.chunk;
    alignas(32) float top[ROWS], kept[ROWS], share[ROWS];
    v8 total[ROWS];
    for (int m = 0; m < ROWS; m++) {
        const int row = tile * ROWS + m, like = row < queries.n ? row : queries.n - 1;
        top[m] = score<GROUPS>(block.q + row * dim, chunk, dim, block.step[row], queries.first[like] - start,
                               queries.last[like] - start, block.scores + m * CHUNK);
    }
    const auto inverse = [&](int i, v8 power) { return power * load8(chunk.inverse + 8 * i); };
    for (int m = 0; m < ROWS; m++)
        total[m] = to_weights<4 * GROUPS>(block.scores + m * CHUNK, top[m], WEIGHTS, inverse, block.weights + m * CHUNK);
    for (int m = 0; m < ROWS; m += 8) { // what earlier sums, and this chunk's, are to be multiplied by
        float *most = block.largest + tile * ROWS + m;
        const v8 before = load8(most), now = max8(before, load8(top + m));
        store8(kept + m, power8(before - now));
        store8(share + m, power8(load8(top + m) - now));
        store8(most, now);
    }
    for (int m = 0; m < ROWS; m++) {
        v8 &sum = block.totals[tile * ROWS + m];
        sum = sum * splat8(kept[m]) + total[m] * splat8(share[m]);
    }
    for (int m = 0; m < ROWS; m++) {
        float *to = block.sums + (tile * ROWS + m) * dim;
        const auto add = [&](int64_t i, i8 integers) __attribute__((always_inline)) {
            const v8 more = __builtin_convertvector(integers, v8) * splat8(share[m]);
            store8(to + 8 * i, load8(to + 8 * i) * splat8(kept[m]) + more);
        };
        multiply_all<1>(block.weights + m * CHUNK, chunk.values, dim / 8, 8 * GROUPS, add);
    }
}

} // namespace

void attend_rounded(const Queries &queries, const Source<int8_t> &source, int64_t dim, float scale) {
    Block block;
    const float factor = scale * 1.44269504f; // powers of two are cheaper than those of e
    const int tiles = (queries.n + ROWS - 1) / ROWS, all = tiles * ROWS;
    std::memset(block.sums, 0, sizeof(float) * all * dim);
    std::memset(block.q + queries.n * dim, 0, (all - queries.n) * dim);
    for (int row = 0; row < all; row++) {
        block.step[row] = 0, block.largest[row] = LEAST, block.totals[row] = splat8(0);
        if (row >= queries.n) continue;
        alignas(32) float q[MAX_DIM];
        std::memcpy(q, queries.q[row], sizeof(float) * dim);
        spread(q, dim);
        block.step[row] = round_row(q, nullptr, dim, QUERY, QUERY, block.q + row * dim) * factor;
    }
    const int64_t last = queries.last[queries.n - 1];
    for (int64_t start = queries.first[0] / CHUNK * CHUNK; start < last; start += CHUNK) {
        block.chunk.take(source, start, last - start < CHUNK ? last - start : CHUNK, dim);
        for (int tile = 0; tile < tiles; tile++) {
            const int end = (tile + 1) * ROWS < queries.n ? (tile + 1) * ROWS : queries.n;
            const int64_t seen = queries.last[end - 1] - start;
            if (queries.first[tile * ROWS] >= start + CHUNK || seen <= 0) continue;
            (seen > 64 ? attend_tile<3> : seen > 32 ? attend_tile<2> : attend_tile<1>)(block, queries, tile, start, dim);
        }
    }
    for (int row = 0; row < queries.n; row++) {
        const v8 share = splat8(1.0f / sum8(block.totals[row]));
        for (int64_t d = 0; d < dim; d += 8)
            store8(queries.out[row] + d, load8(block.sums + row * dim + d) * share);
    }
}
