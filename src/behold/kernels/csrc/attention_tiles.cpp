// Attention of many queries over floats: tiles of queries by keys, softmax going on over chunks of keys (Dao et al. 2022,
// arxiv.org/abs/2205.14135; on few tokens see attention_few.cpp, on rows of integers attention_many_q8.cpp).
//
// A block of queries works through the keys in chunks that are turned and widened once for all of them, into buffers
// that stay in the nearest caches. Chunks begin at fixed places and every sum has one order, so a query's result
// depends neither on its neighbours nor on how a prompt was cut into pieces. What no query of a tile sees is skipped.

#include <cmath>
#include <type_traits>

#include "attention.h"
#include "pool.h"

namespace {

constexpr int CHUNK = 96;  // keys
constexpr int BLOCK = Queries::MOST;
constexpr int MAX_DIM = 128;

// c[m][n] (+)= sum over i < k of a[m * LDA + i] * b[i * ldb + n], for MR rows and NR eights.
template <int MR, int NR, int LDA>
inline void multiply(const float *a, const float *b, int64_t ldb, int64_t k, float *c, int64_t ldc, bool add) {
    v8 sums[MR][NR];
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) sums[m][n] = add ? load8(c + m * ldc + 8 * n) : splat8(0);
#pragma GCC unroll 4
    for (int64_t i = 0; i < k; i++) {
        v8 right[NR];
        for (int n = 0; n < NR; n++) right[n] = load8(b + i * ldb + 8 * n);
        for (int m = 0; m < MR; m++) {
            const v8 left = splat8(a[m * LDA + i]);
            for (int n = 0; n < NR; n++) sums[m][n] += left * right[n];
        }
    }
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) store8(c + m * ldc + 8 * n, sums[m][n]);
}

// `length` keys from `start` on to panels of WIDE keys, in each one place of the head behind the other; absent keys are
// zero.
template <int WIDE, class T>
void turn(const Source<T> &source, int64_t start, int64_t length, int64_t dim, float *panels) {
    for (int64_t key = 0; key < (length + WIDE - 1) / WIDE * WIDE; key += 8) {
        float *panel = panels + key / WIDE * WIDE * dim + key % WIDE;
        for (int64_t d = 0; d < dim; d += 8) {
            v8 square[8];
            for (int64_t j = 0; j < 8; j++)
                square[j] = key + j < length ? load8(source.keys + (start + key + j) * source.apart + d) : splat8(0);
            transpose8(square);
            for (int64_t j = 0; j < 8; j++) store8(panel + (d + j) * WIDE, square[j]);
        }
    }
}

// `length` values from `start` on, one behind the other as float32: as they are, or in `to`.
template <class T>
const float *widen(const Source<T> &source, int64_t start, int64_t length, int64_t dim, float *to) {
    if constexpr (std::is_same_v<T, float>)
        if (source.apart == dim) return source.values + start * dim;
    for (int64_t key = 0; key < length; key++)
        for (int64_t d = 0; d < dim; d += 8)
            store8(to + key * dim + d, load8(source.values + (start + key) * source.apart + d));
    return to;
}

// Running sums of one query: its largest score so far, and the sum of its weights, in eight parts.
struct Running {
    v8 total;
    float largest;
};

// Scores of a chunk to weights; returns what earlier sums are to be multiplied by.
inline float weigh(Running &running, float *scores, int64_t first, int64_t last) {
    constexpr int PARTS = CHUNK / 8;
    v8 part[PARTS], top = splat8(running.largest);
    const bool whole = first <= 0 && last >= CHUNK;
    for (int i = 0; i < PARTS; i++) {
        part[i] = load8(scores + 8 * i);
        if (!whole) part[i] = between8(part[i], first - 8 * i, last - 8 * i);
        top = max8(top, part[i]);
    }
    const float largest = top8(top);
    if (largest == -INFINITY) { // nothing seen so far
        for (int i = 0; i < PARTS; i++) store8(scores + 8 * i, splat8(0));
        return 1;
    }
    const float kept = largest == running.largest ? 1.0f : std::exp2(running.largest - largest);
    v8 sums = running.total * splat8(kept);
    for (int i = 0; i < PARTS; i++) {
        const v8 weights = power8(part[i] - splat8(largest));
        store8(scores + 8 * i, weights);
        sums += weights;
    }
    running.total = sums;
    running.largest = largest;
    return kept;
}

template <int MR, int NR>
inline void gather(const float *weights, const float *values, int64_t length, int64_t dim, float *sums) {
    int64_t d = 0;
    for (; d + 8 * NR <= dim; d += 8 * NR)
        multiply<MR, NR, CHUNK>(weights, values + d, dim, length, sums + d, dim, true);
    if constexpr (NR > 2)
        for (; d + 16 <= dim; d += 16)
            multiply<MR, 2, CHUNK>(weights, values + d, dim, length, sums + d, dim, true);
    for (; d < dim; d += 8) multiply<MR, 1, CHUNK>(weights, values + d, dim, length, sums + d, dim, true);
}

// MR x 8 NR: the tile, as large as there are registers for.
template <int MR, int NR, class T>
__attribute__((noinline)) void attend_block(const Queries &queries, const Source<T> &source, int64_t dim, float scale) {
    constexpr int WIDE = 8 * NR;
    static_assert(BLOCK % MR == 0 && CHUNK % WIDE == 0, "whole tiles");
    alignas(64) float q[BLOCK * MAX_DIM], sums[BLOCK * MAX_DIM], keys[CHUNK * MAX_DIM], values[CHUNK * MAX_DIM];
    alignas(64) float scores[BLOCK * CHUNK];
    Running running[BLOCK];
    const float factor = scale * 1.44269504f; // powers of two are cheaper than those of e
    const int tiles = (queries.n + MR - 1) / MR;
    int64_t low[BLOCK / MR], high[BLOCK / MR], first = queries.first[0], last = 0;
    for (int tile = 0; tile < tiles; tile++) {
        low[tile] = queries.first[tile * MR], high[tile] = 0;
        for (int m = 0; m < MR; m++) {
            const int row = tile * MR + m;
            const bool real = row < queries.n;
            for (int64_t d = 0; d < dim; d += 8)
                store8(q + row * MAX_DIM + d, real ? load8(queries.q[row] + d) * splat8(factor) : splat8(0));
            running[row] = {splat8(0), -INFINITY};
            if (!real) continue;
            if (queries.first[row] < low[tile]) low[tile] = queries.first[row];
            if (queries.last[row] > high[tile]) high[tile] = queries.last[row];
        }
        if (low[tile] < first) first = low[tile];
        if (high[tile] > last) last = high[tile];
    }
    std::memset(sums, 0, sizeof(float) * tiles * MR * dim);
    for (int64_t start = first / CHUNK * CHUNK; start < last; start += CHUNK) {
        const int64_t length = last - start < CHUNK ? last - start : CHUNK;
        turn<WIDE>(source, start, length, dim, keys);
        const float *dense = widen(source, start, length, dim, values);
        for (int tile = 0; tile < tiles; tile++) {
            const int64_t seen = high[tile] - start < length ? high[tile] - start : length;
            if (low[tile] >= start + length) continue;
            for (int64_t key = 0; key < seen; key += WIDE)
                multiply<MR, NR, MAX_DIM>(q + tile * MR * MAX_DIM, keys + key * dim, WIDE, dim,
                                          scores + tile * MR * CHUNK + key, CHUNK, false);
        }
        for (int tile = 0; tile < tiles; tile++) {
            const int64_t seen = high[tile] - start < length ? high[tile] - start : length;
            if (low[tile] >= start + length || seen <= 0) continue;
            for (int row = tile * MR; row < (tile + 1) * MR; row++) {
                const bool real = row < queries.n;
                const float kept = weigh(running[row], scores + row * CHUNK, real ? queries.first[row] - start : 0,
                                         real ? queries.last[row] - start : 0);
                if (kept != 1.0f)
                    for (int64_t d = 0; d < dim; d += 8)
                        store8(sums + row * dim + d, load8(sums + row * dim + d) * splat8(kept));
            }
            gather<MR, NR>(scores + tile * MR * CHUNK, dense, seen, dim, sums + tile * MR * dim);
        }
    }
    for (int row = 0; row < queries.n; row++) {
        const v8 share = splat8(1.0f / sum8(running[row].total));
        for (int64_t d = 0; d < dim; d += 8) store8(queries.out[row] + d, load8(sums + row * dim + d) * share);
    }
}

template <class T> void attend(const Queries &queries, const Source<T> &source, int64_t dim, float scale) {
    if constexpr (ROUNDED<T>)
        attend_rounded(queries, source, dim, scale);
    else if (dim % 24 == 0)
        attend_block<4, 3>(queries, source, dim, scale);
    else
        attend_block<6, 2>(queries, source, dim, scale);
}

} // namespace

// Every query sees every key. Queries [begin, end) of q and out, all of k and v: (batch, n, heads, dim) with rows
// `apart` floats from each other; out is contiguous. dim is a multiple of 8
// up to 128.
BH_EXPORT void bh_attend_all(const float *q, const float *k, const float *v, float *out, int64_t batch, int64_t n,
                                 int64_t begin, int64_t end, int64_t heads, int64_t dim, int64_t apart, int threads) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const int64_t all = end - begin, parts = (all + BLOCK - 1) / BLOCK;
    const int64_t rows = ((all + parts - 1) / parts + 11) / 12 * 12, blocks = (all + rows - 1) / rows; // alike in size
    in_parallel(batch * heads * blocks, 1, threads, [&](int64_t from, int64_t to) {
        for (int64_t item = from; item < to; item++) {
            const int64_t head = item / blocks % heads, picture = item / blocks / heads;
            const int64_t start = begin + item % blocks * rows, stop = start + rows < end ? start + rows : end;
            Queries queries;
            queries.n = static_cast<int>(stop - start);
            for (int i = 0; i < queries.n; i++) {
                queries.q[i] = q + (picture * n + start + i) * apart + head * dim;
                queries.out[i] = out + ((picture * (end - begin) + start - begin + i) * heads + head) * dim;
                queries.first[i] = 0, queries.last[i] = n;
            }
            const int64_t at = picture * n * apart + head * dim;
            attend(queries, Source<float>{k + at, v + at, apart}, dim, scale);
        }
    });
}

namespace {

// Block `index` of the queries that share a head of a row: tokens one behind the other, for each its query heads.
template <class T> void attend_part(const Step &step, const Row &row, int64_t head, int64_t index) {
    const int64_t shared = step.heads / step.kv_heads, start = index * BLOCK, all = row.length * shared;
    Queries queries;
    queries.n = static_cast<int>(all - start < BLOCK ? all - start : BLOCK);
    for (int i = 0; i < queries.n; i++) {
        const int64_t token = (start + i) / shared, place = row.context + token;
        const int64_t at = row.token + token, own = (head * shared + (start + i) % shared) * step.dim;
        queries.q[i] = step.q + at * step.q_apart + own, queries.out[i] = step.out + at * step.heads * step.dim + own;
        queries.first[i] = first_seen(step, place), queries.last[i] = place + 1;
    }
    attend(queries, source_of<T>(step, row, head), step.dim, step.scale);
}

} // namespace

template <class T> void attend_many(const Step &step, const Row *rows, int64_t n_rows, int threads) {
    in_parallel(n_rows * step.kv_heads, 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; item++)
            keep_new<T>(step, rows[item / step.kv_heads], item % step.kv_heads);
    });
    for (const Row *row = rows; row < rows + n_rows; row++) {
        const int64_t blocks = (row->length * (step.heads / step.kv_heads) + BLOCK - 1) / BLOCK;
        in_parallel(step.kv_heads * blocks, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; item++) // the last see the most: they come first
                attend_part<T>(step, *row, item % step.kv_heads, blocks - 1 - item / step.kv_heads);
        });
    }
}

template void attend_many<float>(const Step &, const Row *, int64_t, int);
template void attend_many<Half>(const Step &, const Row *, int64_t, int);
template void attend_many<int8_t>(const Step &, const Row *, int64_t, int);
