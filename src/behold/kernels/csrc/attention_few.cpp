// Attention of a few new tokens over rows of the cache: keys and values are read once, in long runs.
//
// Softmax goes on over chunks of keys with a running largest score (Milakov and Gimelshein 2018,
// arxiv.org/abs/1805.02867).
// Chunks begin at fixed places, so a token's result depends neither on its neighbours nor on how a prompt was cut.

#include <cmath>

#include "attention.h"
#include "replay.h"
#include "pool.h"
#include "tile.h"

namespace {

constexpr int64_t CHUNK = 32; // keys: they and their values fit the nearest cache, with those that come next
constexpr int GROUP = 8; // queries that share a reading of a chunk

struct Query {
    const float *q;
    float *out;
    int64_t first, last; // the keys it sees: [first, last)
    float largest, total;
};

// Have what will be read next on its way to the nearest cache.
template <class T> inline void fetch(const T *from, int64_t count) {
    const char *at = reinterpret_cast<const char *>(from);
    for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(T)); i += 64) __builtin_prefetch(at + i);
}

// scores[i][j] = query i . key j of a chunk, for two queries at a time where there are two. The chunk's values, and
// the keys after it, are fetched meanwhile: two places in memory are read faster than one.
template <int MR, class T>
void score(const Query *queries, const T *keys, const T *values, const T *ahead, int64_t length, int64_t dim,
           float (*scores)[CHUNK]) {
    const Ahead none{nullptr, 0, 0};
    const int64_t apart = queries[MR - 1].q - queries[0].q;
    int64_t j = 0;
    for (; j + 4 <= length; j += 4) {
        fetch(values + j * dim, 4 * dim);
        fetch(ahead + j * dim, 4 * dim);
        tile<MR, 4>(queries[0].q, apart, keys + j * dim, dim, dim, scores[0] + j, CHUNK, false, none);
    }
    for (; j < length; j++)
        tile<MR, 1>(queries[0].q, apart, keys + j * dim, dim, dim, scores[0] + j, CHUNK, false, none);
}

// Scores to weights, the running sums moved on.
void weigh(Query &query, float *scores, int64_t start, int64_t length, int64_t dim, float scale) {
    constexpr int PARTS = CHUNK / 8;
    v8 part[PARTS], top = splat8(query.largest);
    const int64_t first = query.first - start, last = query.last - start < length ? query.last - start : length;
    const bool whole = first <= 0 && last >= CHUNK;
    for (int i = 0; i < PARTS; i++) {
        part[i] = load8(scores + 8 * i) * splat8(scale);
        if (!whole) part[i] = between8(part[i], first - 8 * i, last - 8 * i);
        top = max8(top, part[i]);
    }
    const float largest = top8(top);
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
    const float kept = query.largest == -INFINITY ? 0.0f : std::exp(query.largest - largest);
    if (kept != 1.0f)
        for (int64_t i = 0; i < dim; i += 8) store8(query.out + i, load8(query.out + i) * splat8(kept));
    query.total = query.total * kept + sum8(sums);
    query.largest = largest;
}

// out += weights . values over `PARTS` eights of a head, from place `at` on.
template <int MR, int PARTS, class T>
void gather(const Query *queries, const float (*weights)[CHUNK], const T *values, int64_t length, int64_t dim,
            int64_t at) {
    v8 sums[MR][PARTS];
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < PARTS; n++) sums[m][n] = load8(queries[m].out + at + 8 * n);
    for (int64_t j = 0; j < length; j++)
        for (int n = 0; n < PARTS; n++) {
            const v8 value = load8(values + j * dim + at + 8 * n);
            for (int m = 0; m < MR; m++) sums[m][n] += splat8(weights[m][j]) * value;
        }
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < PARTS; n++) store8(queries[m].out + at + 8 * n, sums[m][n]);
}

// ahead: the keys that are read after this chunk.
template <int MR, class T>
void attend_chunk(Query *queries, const T *keys, const T *values, const T *ahead, int64_t length, int64_t start,
                  int64_t dim, float scale) {
    alignas(32) float scores[MR][CHUNK];
    score<MR>(queries, keys, values, ahead, length, dim, scores);
    for (int m = 0; m < MR; m++) weigh(queries[m], scores[m], start, length, dim, scale);
    constexpr int PARTS = 8 / MR; // as many sums as there are registers for
    int64_t at = 0;
    for (; at + 8 * PARTS <= dim; at += 8 * PARTS)
        gather<MR, PARTS>(queries, scores, values, length, dim, at);
    for (; at < dim; at += 8) gather<MR, 1>(queries, scores, values, length, dim, at);
}

// next: the keys of the next head.
template <class T>
void attend_group(Query *queries, int n, const Source<T> &source, const T *next, int64_t dim, float scale) {
    int64_t first = queries[0].first, last = queries[0].last;
    for (int i = 1; i < n; i++) {
        first = queries[i].first < first ? queries[i].first : first;
        last = queries[i].last > last ? queries[i].last : last;
    }
    for (int64_t start = first / CHUNK * CHUNK; start < last; start += CHUNK) {
        const int64_t length = last - start < CHUNK ? last - start : CHUNK;
        const T *keys = source.keys + start * dim, *values = source.values + start * dim;
        const T *ahead = start + CHUNK < last ? keys + CHUNK * dim : next;
        int i = 0;
        for (; i + 2 <= n; i += 2) attend_chunk<2>(queries + i, keys, values, ahead, length, start, dim, scale);
        for (; i < n; i++) attend_chunk<1>(queries + i, keys, values, ahead, length, start, dim, scale);
    }
    for (int i = 0; i < n; i++)
        for (int64_t at = 0; at < dim; at += 8)
            store8(queries[i].out + at, load8(queries[i].out + at) / splat8(queries[i].total));
}

// One head of keys and values of one sequence, with all query heads that share it.
template <class T> void attend_head(const Step &step, const Row &row, int64_t head) {
    const int64_t dim = step.dim, shared = step.heads / step.kv_heads;
    keep_new<T>(step, row, head);
    const Source<T> source = source_of<T>(step, row, head);
    const T *next = source.keys + row.capacity * dim; // never read, only fetched: there may be none
    Query queries[GROUP];
    int n = 0;
    for (int64_t t = 0; t < row.length; t++)
        for (int64_t g = 0; g < shared; g++) {
            const int64_t at = row.token + t, own = (head * shared + g) * dim, place = row.context + t;
            float *out = step.out + at * step.heads * dim + own;
            std::memset(out, 0, sizeof(float) * dim);
            queries[n++] = {step.q + at * step.q_apart + own, out, first_seen(step, place), place + 1, -INFINITY, 0.0f};
            if (n == GROUP) {
                attend_group(queries, n, source, next, dim, step.scale);
                n = 0;
            }
        }
    if (n) attend_group(queries, n, source, next, dim, step.scale);
}

template <class T> void attend_rows(const Step &step, const Row *rows, int64_t n_rows, int threads) {
    in_parallel_parts(n_rows * step.kv_heads, 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; item++)
            attend_head<T>(step, rows[item / step.kv_heads], item % step.kv_heads);
    });
}

} // namespace

// Write the new keys and values of all sequences into their rows, and attend causally. All is float32; tokens of q, and
// of k and v, may lie apart, those of out do not. dim is a multiple of 8; window 0: none. half: rows are binary16.
BH_EXPORT void bh_attend_few(const Row *rows, int64_t n_rows, const float *q, const float *k, const float *v,
                             float *out, int64_t q_apart, int64_t kv_apart, int64_t layer, int64_t heads,
                             int64_t kv_heads, int64_t dim, int64_t window, int64_t half, int threads) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const Step step{q, k, v, out, q_apart, kv_apart, layer, heads, kv_heads, dim, window, scale};
    if (half)
        attend_rows<Half>(step, rows, n_rows, threads);
    else
        attend_rows<float>(step, rows, n_rows, threads);
}

BH_REPLAYABLE(bh_attend_few)
