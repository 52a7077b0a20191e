// Rows of tables: of float32, and of 8-bit numbers that are packed as the weights of linear_q8.cpp.

#include <cstring>

#include "pool.h"
#include "replay.h"
#include "rows.h"

// Row ids[i] of a table of rows of k numbers to out (count, k).
BH_EXPORT void bh_table_f32(const int64_t *ids, int64_t count, const float *table, float *out, int64_t k, int threads) {
    in_parallel(count, 8, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) std::memcpy(out + i * k, table + ids[i] * k, k * sizeof(float));
    });
}

// Row ids[i] of w, times its scale, to out (count, k).
BH_EXPORT void bh_table_q8(const int64_t *ids, int64_t count, const int8_t *w, const float *scale, float *out, int64_t k,
                           int threads) {
    const int64_t quads = (k + 3) / 4;
    in_parallel(count, 8, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            const int64_t id = ids[i];
            const int8_t *row = w + (id / PANEL * quads * PANEL + id % PANEL) * 4;
            for (int64_t place = 0; place < k; place++)
                out[i * k + place] = static_cast<float>(row[place / 4 * PANEL * 4 + place % 4]) * scale[id];
        }
    });
}

BH_REPLAYABLE(bh_table_f32)
BH_REPLAYABLE(bh_table_q8)
