// The largest of a row's results by a layer of very many columns, without all of them: a rough idea of each, made from
// codes of 4 bits, leaves few panels in which it may lie, and those are computed.

#include <cmath>
#include <vector>

#include "linear_q.h"
#include "pool.h"
#include "replay.h"

namespace {

constexpr int64_t AT_ONCE = 64;        // panels
constexpr float UNLIKELY = 0.75f;      // of what a rough result may be off: none should be by so much
constexpr int64_t NOT_FOUND = -1;

struct Best {
    float value = -INFINITY;
    int64_t column = NOT_FOUND;
    bool trusted = true;

    void take(float candidate, int64_t at) {
        if (candidate > value || column == NOT_FOUND) value = candidate, column = at;
    }
};

float norm(const float *x, int64_t k) {
    double sum = 0;
    for (int64_t i = 0; i < k; i++) sum += static_cast<double>(x[i]) * x[i];
    return static_cast<float>(std::sqrt(sum));
}

// What is surely reached by a column of [begin, end).
float reached(const float *rough, const float *errors, float size, int64_t begin, int64_t end) {
    float most[8];
    for (float &one : most) one = -INFINITY;
    int64_t i = begin;
    for (; i + 8 <= end; i += 8)
        for (int lane = 0; lane < 8; lane++) {
            const float least = rough[i + lane] - errors[i + lane] * size;
            most[lane] = least > most[lane] ? least : most[lane];
        }
    for (; i < end; i++) {
        const float least = rough[i] - errors[i] * size;
        most[0] = least > most[0] ? least : most[0];
    }
    float found = most[0];
    for (const float one : most) found = one > found ? one : found;
    return found;
}

// Whether a column of [begin, end) may reach as far.
bool may_reach(const float *rough, const float *errors, float size, float bound, int64_t begin, int64_t end) {
    bool found = false;
    for (int64_t i = begin; i < end; i++) found |= rough[i] + errors[i] * size >= bound;
    return found;
}

} // namespace

// For rows of x (rows, k) the column with the largest result of a layer, the first of several, to best (rows).
//
// rough (rows, n): results that are off by less than errors (n) times the row's norm; where a panel is computed, they are
// overwritten. NOT_FOUND: a row is not finite, or what was computed is further off than is to be expected.
BH_EXPORT void bh_best_q8(const float *x, const Layer *layer, float *rough, const float *errors, int64_t *best,
                          int64_t rows, int64_t k, int threads) {
    const int64_t n = layer->n, panels = (n + PANEL - 1) / PANEL, parts = (panels + AT_ONCE - 1) / AT_ONCE;
    std::vector<float> sizes(rows), bounds(rows, -INFINITY), of_parts(parts);
    for (int64_t m = 0; m < rows; m++) {
        sizes[m] = norm(x + m * k, k);
        in_parallel(parts, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t part = begin; part < end; part++) {
                const int64_t first = part * AT_ONCE * PANEL, last = first + AT_ONCE * PANEL;
                of_parts[part] = reached(rough + m * n, errors, sizes[m], first, last < n ? last : n);
            }
        });
        for (const float one : of_parts) bounds[m] = one > bounds[m] ? one : bounds[m];
    }
    const Row *rounded = round_rows(x, rows, k, Window::SEVEN_BITS, {}, 1);
    const Columns columns{layer, rounded, rough, n, STORE, nullptr, nullptr};
    std::vector<Best> found(parts * rows);
    in_parallel(parts, 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; part++)
            for (int64_t panel = part * AT_ONCE; panel < panels && panel < (part + 1) * AT_ONCE; panel++) {
                const int64_t first = panel * PANEL, last = first + PANEL < n ? first + PANEL : n;
                const Panel one{&columns, panel};
                for (int64_t m = 0; m < rows; m++) {
                    float *own = rough + m * n, before[PANEL];
                    if (!may_reach(own, errors, sizes[m], bounds[m], first, last)) continue;
                    std::memcpy(before, own + first, (last - first) * sizeof(float));
                    few_q8(&one, 1, k, m, m + 1);
                    Best &of_part = found[part * rows + m];
                    for (int64_t i = first; i < last; i++) {
                        of_part.take(own[i], i);
                        const float off = std::fabs(own[i] - before[i - first]);
                        of_part.trusted &= off <= UNLIKELY * errors[i] * sizes[m];
                    }
                }
            }
    });
    for (int64_t m = 0; m < rows; m++) {
        Best all;
        for (int64_t part = 0; part < parts; part++) {
            const Best &own = found[part * rows + m];
            if (own.column != NOT_FOUND) all.take(own.value, own.column);
            all.trusted &= own.trusted;
        }
        best[m] = all.trusted ? all.column : NOT_FOUND;
    }
}

BH_REPLAYABLE(bh_best_q8)
