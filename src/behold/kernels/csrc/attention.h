// What the attention kernels share: rows of the cache, and one step's tokens.
#pragma once

#include <type_traits>

#include "vec.h"

// One sequence: its row of the cache (layers, 2, Hkv, capacity, d), the scales of its places (layers, 2, Hkv, capacity)
// where numbers have 8 bits, places filled before, its new tokens and the first of them in q, k, v and out.
struct Row {
    void *cache;
    float *scales;
    int64_t capacity, context, length, token;
};

struct Step {
    const float *q, *k, *v; // (N, Hq, d), (N, Hkv, d), (N, Hkv, d)
    float *out;             // (N, Hq, d)
    int64_t q_apart, kv_apart; // elements from one of the N to the next, in q, and in k and v
    int64_t layer, heads, kv_heads, dim, window;
    float scale;
};

// Keys and values of one head, `apart` elements from one place to the next, and their scales.
template <class T> struct Source {
    const T *keys, *values;
    int64_t apart;
    const float *key_scales = nullptr, *value_scales = nullptr;
};

template <class T> constexpr bool ROUNDED = std::is_same_v<T, int8_t>;
constexpr int64_t MAX_ROUNDED_DIM = 256;

// x times a matrix of signs whose square is spread_by(dim) (Hadamard's, for each block of so many numbers): one that
// stands out is then a little in all of them, and costs the others few of their 8 bits.
inline int64_t spread_by(int64_t dim) { return dim & -dim; }

inline void spread(float *x, int64_t dim) {
    const v8 ones{1, -1, 1, -1, 1, -1, 1, -1}, twos{1, 1, -1, -1, 1, 1, -1, -1}, fours{1, 1, 1, 1, -1, -1, -1, -1};
    for (int64_t i = 0; i < dim; i += 8) {
        v8 a = load8(x + i);
        a = v8{a[1], a[0], a[3], a[2], a[5], a[4], a[7], a[6]} + a * ones;
        a = v8{a[2], a[3], a[0], a[1], a[6], a[7], a[4], a[5]} + a * twos;
        store8(x + i, v8{a[4], a[5], a[6], a[7], a[0], a[1], a[2], a[3]} + a * fours);
    }
    for (int64_t half = 8; half < spread_by(dim); half *= 2)
        for (int64_t pair = 0; pair < dim; pair += 2 * half)
            for (int64_t i = pair; i < pair + half; i += 8) {
                const v8 a = load8(x + i), b = load8(x + i + half);
                store8(x + i, a + b), store8(x + i + half, a - b);
            }
}

inline float most_of(const float *x, int64_t dim) {
    typedef int32_t i8 __attribute__((vector_size(32)));
    v8 most = splat8(1e-30f); // so that nothing is divided by 0
    for (int64_t i = 0; i < dim; i += 8) most = max8(most, (v8)((i8)load8(x + i) & 0x7FFFFFFF));
    return most8(most);
}

// Numbers to the nearest of -127 to 127 times a scale, which is returned.
inline float round_to(int8_t *to, const float *x, int64_t dim) {
    const float most = most_of(x, dim);
    const v8 up = splat8(127.0f / most);
    for (int64_t i = 0; i < dim; i += 8) store_bytes8(to + i, (v8)nearest8(load8(x + i) * up));
    return most / 127.0f;
}

// The keys of one head of a row; its values lie kv_heads planes further.
template <class T> inline T *keys_of(const Step &step, const Row &row, int64_t head) {
    return static_cast<T *>(row.cache) + (step.layer * 2 * step.kv_heads + head) * row.capacity * step.dim;
}

template <class T> inline Source<T> source_of(const Step &step, const Row &row, int64_t head) {
    const T *keys = keys_of<T>(step, row, head);
    Source<T> source{keys, keys + step.kv_heads * row.capacity * step.dim, step.dim};
    if constexpr (ROUNDED<T>) {
        source.key_scales = row.scales + (step.layer * 2 * step.kv_heads + head) * row.capacity;
        source.value_scales = source.key_scales + step.kv_heads * row.capacity;
    }
    return source;
}

// Where the next head's would be: to be fetched, there may be none.
template <class T> inline Source<T> behind(Source<T> source, int64_t capacity) {
    source.keys += capacity * source.apart, source.values += capacity * source.apart;
    if constexpr (ROUNDED<T>) source.key_scales += capacity, source.value_scales += capacity;
    return source;
}

// Write the new keys and values of one head into the row.
template <class T> inline void keep_new(const Step &step, const Row &row, int64_t head) {
    T *keys = keys_of<T>(step, row, head), *values = keys + step.kv_heads * row.capacity * step.dim;
    for (int64_t t = 0; t < row.length; t++) {
        const int64_t from = (row.token + t) * step.kv_apart + head * step.dim, place = row.context + t;
        if constexpr (ROUNDED<T>) {
            float *scales = row.scales + (step.layer * 2 * step.kv_heads + head) * row.capacity + place;
            float key[MAX_ROUNDED_DIM];
            std::memcpy(key, step.k + from, sizeof(float) * step.dim);
            spread(key, step.dim);
            const v8 share = splat8(1.0f / static_cast<float>(spread_by(step.dim)));
            for (int64_t i = 0; i < step.dim; i += 8) store8(key + i, load8(key + i) * share);
            *scales = round_to(keys + place * step.dim, key, step.dim);
            scales[step.kv_heads * row.capacity] = round_to(values + place * step.dim, step.v + from, step.dim);
        } else {
            for (int64_t i = 0; i < step.dim; i += 8) {
                store8(keys + place * step.dim + i, load8(step.k + from + i));
                store8(values + place * step.dim + i, load8(step.v + from + i));
            }
        }
    }
}

// The keys [first, last) that a token at `place` sees.
inline int64_t first_seen(const Step &step, int64_t place) {
    return step.window > 0 && place + 1 > step.window ? place + 1 - step.window : 0;
}

// Queries of a head with the keys that each sees, [first, last); neither goes back from one to the next.
struct Queries {
    static constexpr int MOST = 252; // a multiple of each tile's
    const float *q[MOST];
    float *out[MOST];
    int64_t first[MOST], last[MOST];
    int n;
};

// Of rows of integers, with rounded queries and weights; dim is at most 128.
void attend_rounded(const Queries &queries, const Source<int8_t> &source, int64_t dim, float scale);

// The sequences' new tokens, a few each or many; T: what their rows are made of.
template <class T> void attend_few(const Step &step, const Row *rows, int64_t n_rows, int threads);
template <class T> void attend_many(const Step &step, const Row *rows, int64_t n_rows, int threads);
