// Attention of a few new tokens over rows of the cache: keys and values are read once, in long runs.
//
// Softmax goes on over chunks of keys with a running largest score (Milakov and Gimelshein 2018,
// arxiv.org/abs/1805.02867).
// Chunks begin at fixed places, so a token's result depends neither on its neighbours nor on how a prompt was cut.

#include <cmath>

#include "attention.h"
#include "attention_rounded.h"
#include "pool.h"
#include "tile.h"

namespace {

// Keys of a chunk: they and their values fit the nearest cache, with those that come next.
template <class T> constexpr int64_t CHUNK = 64 / sizeof(T);
constexpr int GROUP = 8; // queries that share a reading of a chunk

struct Query {
    const float *q;
    float *out;
    int64_t first, last; // the keys it sees: [first, last)
    float largest, total;
    const int16_t *rounded; // for keys of 8 bits: q / step
    float step;
};

// What is read of a row at a time, and what after it: one chunk's keys are fetched while the ones before them are
// multiplied, and so are the values.
template <class T> struct Chunk {
    const T *keys, *values, *next_keys, *next_values;
    int64_t start, length;
    alignas(32) float key_scales[CHUNK<T>], value_scales[CHUNK<T>]; // of 8 bits; 0 behind the last
};

// scores[i][j] = query i . key j of a chunk.
template <int MR, class T>
void score(const Query *queries, const Chunk<T> &chunk, int64_t dim, float (*scores)[CHUNK<T>]) {
    if constexpr (ROUNDED<T>) {
        alignas(32) int32_t sums[MR][CHUNK<T>];
        const int16_t *q[MR];
        for (int m = 0; m < MR; m++) q[m] = queries[m].rounded;
        score_rounded<MR>(q, chunk.keys, chunk.next_keys, chunk.length, dim, sums[0], CHUNK<T>);
        for (int m = 0; m < MR; m++)
            for (int64_t j = 0; j < chunk.length; j++)
                scores[m][j] = static_cast<float>(sums[m][j]) * queries[m].step * chunk.key_scales[j];
    } else {
        const Ahead none{nullptr, 0, 0};
        const int64_t apart = queries[MR - 1].q - queries[0].q;
        int64_t j = 0;
        for (; j + 4 <= chunk.length; j += 4) {
            fetch(chunk.next_keys + j * dim, 4 * dim);
            tile<MR, 4>(queries[0].q, apart, chunk.keys + j * dim, dim, dim, scores[0] + j, CHUNK<T>, false, none);
        }
        for (; j < chunk.length; j++)
            tile<MR, 1>(queries[0].q, apart, chunk.keys + j * dim, dim, dim, scores[0] + j, CHUNK<T>, false, none);
    }
}

// Scores to weights, the running sums moved on.
template <class T> void weigh(Query &query, float *scores, const Chunk<T> &chunk, int64_t dim, float scale) {
    constexpr int PARTS = CHUNK<T> / 8;
    v8 part[PARTS], top = splat8(query.largest);
    const int64_t first = query.first - chunk.start, end = query.last - chunk.start;
    const int64_t last = end < chunk.length ? end : chunk.length;
    const bool whole = first <= 0 && last >= CHUNK<T>;
    for (int i = 0; i < PARTS; i++) {
        part[i] = load8(scores + 8 * i) * splat8(scale);
        if (!whole) part[i] = between8(part[i], first - 8 * i, last - 8 * i);
        top = max8(top, part[i]);
    }
    const float largest = most8(top);
    if (largest == -INFINITY) { // a chunk that it does not see at all
        for (int i = 0; i < PARTS; i++) store8(scores + 8 * i, splat8(0));
        return;
    }
    v8 sums = splat8(0);
    for (int i = 0; i < PARTS; i++) {
        const v8 weights = exp8(part[i] - splat8(largest));
        store8(scores + 8 * i, weights);
        sums += weights;
    }
    float kept = 1.0f;
    if (query.largest != largest) kept = query.largest == -INFINITY ? 0.0f : std::exp(query.largest - largest);
    if (kept != 1.0f)
        for (int64_t i = 0; i < dim; i += 8) store8(query.out + i, load8(query.out + i) * splat8(kept));
    query.total = query.total * kept + sum8(sums);
    query.largest = largest;
}

// out += weights . values over `PARTS` eights of a head, from place `at` on.
template <int MR, int PARTS, class T>
void gather_eights(const Query *queries, const float (*weights)[CHUNK<T>], const Chunk<T> &chunk, int64_t dim,
                   int64_t at) {
    v8 sums[MR][PARTS];
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < PARTS; n++) sums[m][n] = load8(queries[m].out + at + 8 * n);
    for (int64_t j = 0; j < chunk.length; j++) {
        fetch(chunk.next_values + j * dim + at, 8 * PARTS);
        for (int n = 0; n < PARTS; n++) {
            const v8 value = load8(chunk.values + j * dim + at + 8 * n);
            for (int m = 0; m < MR; m++) sums[m][n] += splat8(weights[m][j]) * value;
        }
    }
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < PARTS; n++) store8(queries[m].out + at + 8 * n, sums[m][n]);
}

template <int MR, class T>
void gather(const Query *queries, float (*weights)[CHUNK<T>], const Chunk<T> &chunk, int64_t dim) {
    if constexpr (ROUNDED<T>) {
        alignas(32) int16_t rounded[MR][CHUNK<T>];
        const int16_t *shares[MR];
        float steps[MR], *out[MR];
        for (int m = 0; m < MR; m++) {
            for (int64_t j = 0; j < CHUNK<T>; j += 8)
                store8(weights[m] + j, load8(weights[m] + j) * load8(chunk.value_scales + j));
            steps[m] = round_to(rounded[m], weights[m], CHUNK<T>, most_of(weights[m], CHUNK<T>));
            shares[m] = rounded[m], out[m] = queries[m].out;
        }
        gather_rounded<MR>(shares, steps, chunk.values, chunk.next_values, chunk.length, dim, out);
    } else {
        constexpr int PARTS = 8 / MR; // as many sums as there are registers for
        int64_t at = 0;
        for (; at + 8 * PARTS <= dim; at += 8 * PARTS)
            gather_eights<MR, PARTS, T>(queries, weights, chunk, dim, at);
        for (; at < dim; at += 8) gather_eights<MR, 1, T>(queries, weights, chunk, dim, at);
    }
}

template <int MR, class T> void attend_chunk(Query *queries, const Chunk<T> &chunk, int64_t dim, float scale) {
    alignas(32) float scores[MR][CHUNK<T>];
    score<MR, T>(queries, chunk, dim, scores);
    for (int m = 0; m < MR; m++) weigh(queries[m], scores[m], chunk, dim, scale);
    gather<MR, T>(queries, scores, chunk, dim);
}

// next: what is read after it, never more than fetched: there may be none.
template <class T>
void attend_group(Query *queries, int n, const Source<T> &source, const Source<T> &next, int64_t dim, float scale) {
    int64_t first = queries[0].first, last = queries[0].last;
    for (int i = 1; i < n; i++) {
        first = queries[i].first < first ? queries[i].first : first;
        last = queries[i].last > last ? queries[i].last : last;
    }
    Chunk<T> chunk;
    for (int64_t start = first / CHUNK<T> * CHUNK<T>; start < last; start += CHUNK<T>) {
        const Source<T> &after = start + CHUNK<T> < last ? source : next;
        const int64_t from = start + CHUNK<T> < last ? start + CHUNK<T> : 0;
        chunk.start = start, chunk.length = last - start < CHUNK<T> ? last - start : CHUNK<T>;
        chunk.keys = source.keys + start * dim, chunk.values = source.values + start * dim;
        chunk.next_keys = after.keys + from * dim, chunk.next_values = after.values + from * dim;
        if constexpr (ROUNDED<T>) {
            fetch(after.key_scales + from, CHUNK<T>);
            fetch(after.value_scales + from, CHUNK<T>);
            for (int64_t j = 0; j < CHUNK<T>; j++) {
                chunk.key_scales[j] = j < chunk.length ? source.key_scales[start + j] : 0;
                chunk.value_scales[j] = j < chunk.length ? source.value_scales[start + j] : 0;
            }
        }
        int i = 0;
        for (; i + 2 <= n; i += 2) attend_chunk<2, T>(queries + i, chunk, dim, scale);
        for (; i < n; i++) attend_chunk<1, T>(queries + i, chunk, dim, scale);
    }
    for (int i = 0; i < n; i++)
        for (int64_t at = 0; at < dim; at += 8)
            store8(queries[i].out + at, load8(queries[i].out + at) / splat8(queries[i].total));
}

// A query as keys of 8 bits are kept.
void round_query(Query &query, int16_t *to, int64_t dim) {
    alignas(32) float turned[MAX_ROUNDED_DIM];
    std::memcpy(turned, query.q, sizeof(float) * dim);
    spread(turned, dim);
    query.step = round_to(to, turned, dim, most_of(turned, dim));
    query.rounded = to;
}

// One head of keys and values of one sequence, with all query heads that share it.
template <class T> void attend_head(const Step &step, const Row &row, int64_t head) {
    const int64_t dim = step.dim, shared = step.heads / step.kv_heads;
    keep_new<T>(step, row, head);
    const Source<T> source = source_of<T>(step, row, head), next = behind(source, row.capacity);
    alignas(32) int16_t rounded[GROUP][ROUNDED<T> ? MAX_ROUNDED_DIM : 1];
    Query queries[GROUP];
    int n = 0;
    for (int64_t t = 0; t < row.length; t++)
        for (int64_t g = 0; g < shared; g++) {
            const int64_t at = row.token + t, own = (head * shared + g) * dim, place = row.context + t;
            float *out = step.out + at * step.heads * dim + own;
            std::memset(out, 0, sizeof(float) * dim);
            queries[n] = {step.q + at * step.q_apart + own, out, first_seen(step, place), place + 1, -INFINITY, 0.0f,
                          nullptr, 0.0f};
            if constexpr (ROUNDED<T>) round_query(queries[n], rounded[n], dim);
            if (++n == GROUP) {
                attend_group(queries, n, source, next, dim, step.scale);
                n = 0;
            }
        }
    if (n) attend_group(queries, n, source, next, dim, step.scale);
}

} // namespace

template <class T> void attend_few(const Step &step, const Row *rows, int64_t n_rows, int threads) {
    in_parallel_parts(n_rows * step.kv_heads, 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; item++)
            attend_head<T>(step, rows[item / step.kv_heads], item % step.kv_heads);
    });
}

template void attend_few<float>(const Step &, const Row *, int64_t, int);
template void attend_few<Half>(const Step &, const Row *, int64_t, int);
template void attend_few<int8_t>(const Step &, const Row *, int64_t, int);
