// Layers of one input in one call: the rows are normed and rounded once, and what follows a product is done with it.

#include "linear_q.h"

#include <vector>

#include "pool.h"
#include "replay.h"

namespace {

constexpr int64_t FEW = 16; // rows for which reading the weights is what takes the time
constexpr int64_t FEW_4 = 8;  // the same for codes, used as they are read

int64_t panels_of(const Layer &layer) { return (layer.n + PANEL - 1) / PANEL; }

bool codes(const Layer &layer) { return layer.multipliers != nullptr; }

// Of every tile, what many_q8 asks for.
const uint8_t *largest_of_tiles(const Row *rows, int64_t count, int64_t k, int threads) {
    static thread_local std::vector<uint8_t> memory;
    const int64_t tiles = (count + TILE - 1) / TILE, places = (k + 3) / 4 * 4;
    if (static_cast<int64_t>(memory.size()) < tiles * places) memory.resize(tiles * places);
    uint8_t *all = memory.data();
    in_parallel(tiles, 4, threads, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; tile++) {
            const int64_t first = tile * TILE, rest = count - first;
            largest_q8(rows + first, rest < TILE ? rest : TILE, k, all + tile * places);
        }
    });
    return all;
}

// One portion of the rows with layers that want the same integers.
struct Call {
    const Layer *layers;
    int64_t count, k;
    After after;
    const Row *rows;
    const float *residual;
    float *y;
    int64_t width;
    const int32_t *offsets; // for few rows and codes
    const uint8_t *largest; // for many rows, and weights of 8 bits that were looked at

    Columns columns(int64_t layer, int64_t column, After then) const {
        return {layers[layer], rows, y + column, width, then, residual, largest};
    }

    bool gated() const { return after == TIMES_SILU && count == 2; }

    // Panels of a layer that are computed together. Those of a gate and what it is for always are.
    int64_t together(bool few) const { return few || gated() || codes(layers[0]) ? 1 : 2; }

    int64_t items_of(int64_t layer, bool few) const {
        return (panels_of(layers[layer]) + together(few) - 1) / together(few);
    }

    // All layers' panels, one behind the other.
    int64_t items(bool few) const {
        if (gated()) return items_of(0, few);
        int64_t sum = 0;
        for (int64_t i = 0; i < count; i++) sum += items_of(i, few);
        return sum;
    }

    void panels(const Panel *some, int number, int64_t begin, int64_t end, bool few) const {
        if (!few && !codes(layers[0])) return many_q8(some, number, k, begin, end);
        for (const Panel *panel = some; panel < some + number; panel++)
            if (codes(layers[0]))
                panel_q4(panel->columns, k, begin, end, panel->number, offsets);
            else
                few_q8(*panel, k, begin, end);
    }

    void item(int64_t number, int64_t begin, int64_t end, bool few) const {
        if (gated()) {
            const Columns gate = columns(0, 0, STORE), up = columns(1, 0, TIMES_SILU);
            const Panel both[] = {{gate, number}, {up, number}};
            return panels(both, 2, begin, end, few);
        }
        int64_t layer = 0, column = 0;
        for (; number >= items_of(layer, few); layer++) {
            number -= items_of(layer, few);
            column += layers[layer].n;
        }
        const Columns own = columns(layer, column, after);
        const int64_t first = number * together(few), rest = panels_of(layers[layer]) - first;
        const Panel some[] = {{own, first}, {own, first + 1}};
        panels(some, rest > 1 && together(few) > 1 ? 2 : 1, begin, end, few);
    }

    void round(const float *x, int64_t n_rows, Norm norm, int threads) {
        static thread_local std::vector<int32_t> memory;
        const bool few = n_rows <= FEW_4;
        const Window codes_take = few ? Window::SIGNED : Window::EIGHT_BITS;
        rows = round_rows(x, n_rows, k, codes(layers[0]) ? codes_take : Window::SEVEN_BITS, norm, threads);
        if (BY_EIGHTS && !codes(layers[0]) && layers[0].wide_from && n_rows > FEW)
            largest = largest_of_tiles(rows, n_rows, k, threads);
        if (!few || !codes(layers[0])) return;
        const int64_t groups = (k + GROUP - 1) / GROUP;
        memory.resize(n_rows * groups);
        for (int64_t m = 0; m < n_rows; m++) offsets_q4(rows[m], groups, memory.data() + m * groups);
        offsets = memory.data();
    }

    void run(int64_t n_rows, int threads) const {
        const bool few = n_rows <= FEW;
        const int64_t all = items(few);
        if (few) {
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
// TIMES_SILU makes silu(first layer) * second layer of two. The norm's weight, its bias and the residual may be null.
BH_EXPORT void bh_linear_q(const float *x, const Layer *layers, int64_t count, After after, const float *norm,
                           const float *norm_bias, double eps, const float *residual, float *y, int64_t rows, int64_t k,
                           int threads) {
    int64_t width = 0;
    for (int64_t i = 0; i < count; i++) width = after == TIMES_SILU ? layers[i].n : width + layers[i].n;
    const int64_t at_once = rows_at_once(k);
    for (int64_t start = 0; start < rows; start += at_once) {
        const int64_t some = rows - start < at_once ? rows - start : at_once;
        const float *added = residual ? residual + start * width : nullptr;
        int64_t last, column = 0;
        for (int64_t first = 0; first < count; first = last) {
            Call call{layers + first, 0, k, after, nullptr, added, y + start * width + column, width, nullptr,
                      nullptr};
            for (last = first; last < count && codes(layers[last]) == codes(layers[first]); last++) {
                call.count++;
                if (after != TIMES_SILU) column += layers[last].n;
            }
            if (after == TIMES_SILU && last < count) call.after = STORE; // what the other layer finds
            call.round(x + start * k, some, {norm, norm_bias, eps}, threads);
            call.run(some, threads);
        }
    }
}

BH_REPLAYABLE(bh_linear_q)
