// Layers of one input in one call: the rows are normed and rounded once, and what follows a product is done with it.

#include "linear_q.h"

#include <vector>

#include "pool.h"
#include "replay.h"

namespace {

constexpr int64_t FEW = 16; // rows for which reading the weights is what takes the time
constexpr int64_t FEW_4 = 8;  // the same for codes, used as they are read

int64_t panels_of(const Layer &layer) { return (layer.n + PANEL - 1) / PANEL; }

// One portion of the rows with all layers.
struct Call {
    const Layer *layers;
    int64_t count, k;
    After after;
    const Row *rows;
    const float *residual;
    float *y;
    int64_t width;
    const int32_t *offsets; // for few rows and codes

    void panel(int64_t layer, int64_t column, After then, int64_t begin, int64_t end, int64_t panel, bool few) const {
        const Columns columns{layers[layer], rows, y + column, width, then, residual};
        if (layers[layer].multipliers)
            panel_q4(columns, k, begin, end, panel, offsets);
        else
            panel_q8(columns, k, begin, end, panel, few);
    }

    // The panels of all layers, one behind the other; those of a gate and what it is for belong together.
    int64_t items() const {
        if (after == TIMES_SILU) return panels_of(layers[0]);
        int64_t sum = 0;
        for (int64_t i = 0; i < count; i++) sum += panels_of(layers[i]);
        return sum;
    }

    void item(int64_t number, int64_t begin, int64_t end, bool few) const {
        if (after == TIMES_SILU) {
            panel(0, 0, STORE, begin, end, number, few);
            panel(1, 0, TIMES_SILU, begin, end, number, few);
            return;
        }
        int64_t layer = 0, column = 0;
        for (; number >= panels_of(layers[layer]); layer++) {
            number -= panels_of(layers[layer]);
            column += layers[layer].n;
        }
        panel(layer, column, after, begin, end, number, few);
    }

    void run(int64_t n_rows, int threads) const {
        const int64_t all = items();
        if (n_rows <= FEW) {
            in_parallel_parts(all, all >= 32 ? 2 : 1, threads, [&](int64_t begin, int64_t end) {
                for (int64_t number = begin; number < end; number++) item(number, 0, n_rows, true);
            });
            return;
        }
        const int64_t portion = rows_per_portion(n_rows, k);
        in_parallel((n_rows + portion - 1) / portion * all, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t number = begin; number < end; number++) {
                const int64_t first = number / all * portion;
                item(number % all, first, first + portion < n_rows ? first + portion : n_rows, false);
            }
        });
    }
};

} // namespace

// x (rows, k) by `count` layers to y, float32 and contiguous: the layers' columns side by side. ADD adds residual, as y;
// TIMES_SILU makes silu(first layer) * second layer of two. The norm's weight and the residual may be null.
BH_EXPORT void bh_linear_q(const float *x, const Layer *layers, int64_t count, After after, const float *norm,
                           double eps, const float *residual, float *y, int64_t rows, int64_t k, int threads) {
    static thread_local std::vector<int32_t> offsets;
    int64_t width = 0;
    bool codes = false;
    for (int64_t i = 0; i < count; i++) {
        width = after == TIMES_SILU ? layers[i].n : width + layers[i].n;
        codes |= layers[i].multipliers != nullptr;
    }
    const int64_t at_once = rows_at_once(k), groups = (k + GROUP - 1) / GROUP;
    for (int64_t start = 0; start < rows; start += at_once) {
        const int64_t some = rows - start < at_once ? rows - start : at_once;
        const Row *rounded = round_rows(x + start * k, some, k, {norm, eps}, threads);
        const int32_t *all = nullptr;
        if (some <= FEW_4 && codes) {
            offsets.resize(some * groups);
            for (int64_t m = 0; m < some; m++) offsets_q4(rounded[m], groups, offsets.data() + m * groups);
            all = offsets.data();
        }
        const float *added = residual ? residual + start * width : nullptr;
        Call{layers, count, k, after, rounded, added, y + start * width, width, all}.run(some, threads);
    }
}

BH_REPLAYABLE(bh_linear_q)
