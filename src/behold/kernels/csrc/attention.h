// What the attention kernels share: rows of the cache, and one step's tokens.
#pragma once

#include "vec.h"

// One sequence: its row of the cache (layers, 2, Hkv, capacity, d), places filled before, its new tokens and the first
// of them in q, k, v and out.
struct Row {
    void *cache;
    int64_t capacity, context, length, token;
};

struct Step {
    const float *q, *k, *v; // (N, Hq, d), (N, Hkv, d), (N, Hkv, d)
    float *out;             // (N, Hq, d)
    int64_t q_apart, kv_apart; // elements from one of the N to the next, in q, and in k and v
    int64_t layer, heads, kv_heads, dim, window;
    float scale;
};

// Keys and values of one head, `apart` elements from one place to the next.
template <class T> struct Source {
    const T *keys, *values;
    int64_t apart;
};

// The keys of one head of a row; its values lie kv_heads planes further.
template <class T> inline T *keys_of(const Step &step, const Row &row, int64_t head) {
    return static_cast<T *>(row.cache) + (step.layer * 2 * step.kv_heads + head) * row.capacity * step.dim;
}

template <class T> inline Source<T> source_of(const Step &step, const Row &row, int64_t head) {
    const T *keys = keys_of<T>(step, row, head);
    return {keys, keys + step.kv_heads * row.capacity * step.dim, step.dim};
}

// Write the new keys and values of one head into the row.
template <class T> inline void keep_new(const Step &step, const Row &row, int64_t head) {
    T *keys = keys_of<T>(step, row, head), *values = keys + step.kv_heads * row.capacity * step.dim;
    for (int64_t t = 0; t < row.length; t++) {
        const int64_t from = (row.token + t) * step.kv_apart + head * step.dim, to = (row.context + t) * step.dim;
        for (int64_t i = 0; i < step.dim; i += 8) {
            store8(keys + to + i, load8(step.k + from + i));
            store8(values + to + i, load8(step.v + from + i));
        }
    }
}

// The keys [first, last) that a token at `place` sees.
inline int64_t first_seen(const Step &step, int64_t place) {
    return step.window > 0 && place + 1 > step.window ? place + 1 - step.window : 0;
}
