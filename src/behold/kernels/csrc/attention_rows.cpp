// Attention over rows of the cache, of whatever numbers they are made.

#include <cmath>

#include "attention.h"
#include "pool.h"
#include "replay.h"

namespace {

template <class T> void attend(const Step &step, const Row *rows, int64_t n_rows, bool many, int threads) {
    (many ? attend_many<T> : attend_few<T>)(step, rows, n_rows, threads);
}

} // namespace

// Write the new keys and values of all sequences into their rows, and attend causally. q, k, v and out are float32;
// tokens of q, and of k and v, may lie apart, those of out do not. dim is a multiple of 8; window 0: none. bits: of
// rows' numbers, 32 and 16 for floats, 8 for integers with scales (dim at most 256). many: for more than about eight
// new tokens of a sequence (dim at most 128).
BH_EXPORT void bh_attend_rows(const Row *rows, int64_t n_rows, const float *q, const float *k, const float *v,
                              float *out, int64_t q_apart, int64_t kv_apart, int64_t layer, int64_t heads,
                              int64_t kv_heads, int64_t dim, int64_t window, int64_t bits, int64_t many, int threads) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const Step step{q, k, v, out, q_apart, kv_apart, layer, heads, kv_heads, dim, window, scale};
    if (bits == 8)
        attend<int8_t>(step, rows, n_rows, many, threads);
    else if (bits == 16)
        attend<Half>(step, rows, n_rows, many, threads);
    else
        attend<float>(step, rows, n_rows, many, threads);
}

BH_REPLAYABLE(bh_attend_rows)
