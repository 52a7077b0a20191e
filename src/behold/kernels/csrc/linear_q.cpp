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
        return {layers + layer, rows, y + column, width, then, residual, largest};
    }

    bool gated() const { return after == TIMES_SILU && count == 2; }

    // Panels of a layer that many rows meet together. Those of a gate and what it is for always are.
    int64_t together() const { return gated() || codes(layers[0]) ? 1 : 2; }

    int64_t items_of(int64_t layer, int64_t panels) const { return (panels_of(layers[layer]) + panels - 1) / panels; }

    // All layers' panels, one behind the other, `panels` of a layer in an item.
    int64_t items(int64_t panels) const {
        if (gated()) return items_of(0, panels);
        int64_t sum = 0;
        for (int64_t i = 0; i < count; i++) sum += items_of(i, panels);
        return sum;
    }

    // Some of the layers' panels, which are computed together.
    struct Some {
        Columns columns[STREAMS > 2 ? STREAMS : 2];
        Panel panels[STREAMS > 2 ? STREAMS : 2];
        int count = 0;

        void add(const Columns &of, int64_t number) {
            columns[count] = of;
            panels[count] = {columns + count, number};
            count++;
        }
    };

    void add_item(Some &some, int64_t number, int64_t panels) const {
        if (gated()) {
            some.add(columns(0, 0, STORE), number);
            return some.add(columns(1, 0, TIMES_SILU), number);
        }
        int64_t layer = 0, column = 0;
        for (; number >= items_of(layer, panels); layer++) {
            number -= items_of(layer, panels);
            column += layers[layer].n;
        }
        for (int64_t i = number * panels; i < (number + 1) * panels && i < panels_of(layers[layer]); i++)
            some.add(columns(layer, column, after), i);
    }

    // Items from, from + apart, … of few rows.
    void few_rows(int64_t from, int64_t apart, int64_t items, int64_t n_rows) const {
        Some some;
        for (int64_t i = 0; i < items; i++) add_item(some, from + i * apart, 1);
        if (!codes(layers[0])) return few_q8(some.panels, some.count, k, 0, n_rows);
        if (offsets) return few_q4(some.panels, some.count, k, 0, n_rows, offsets);
        for (int i = 0; i < some.count; i++) many_q4(some.panels[i], k, 0, n_rows);
    }

    void many_rows(int64_t item, int64_t begin, int64_t end) const {
        Some some;
        add_item(some, item, together());
        if (!codes(layers[0])) return many_q8(some.panels, some.count, k, begin, end);
        for (int i = 0; i < some.count; i++) many_q4(some.panels[i], k, begin, end);
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
        if (n_rows <= FEW) return run_few(n_rows, threads);
        const int64_t all = items(together()), portion = rows_per_portion(n_rows, k);
        in_parallel((n_rows + portion - 1) / portion * all, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t number = begin; number < end; number++) {
                const int64_t first = number / all * portion;
                many_rows(number % all, first, first + portion < n_rows ? first + portion : n_rows);
            }
        });
    }

    // Each thread goes through parts of the weights side by side: memory gives more in several long runs than in one.
    void run_few(int64_t n_rows, int threads) const {
        const int64_t all = items(1), most = gated() && STREAMS > 1 ? STREAMS / 2 : STREAMS;
        const int64_t beside = all >= 2 * most * threads ? most : 1, steps = all / beside;
        in_parallel_parts(steps, beside == 1 && all >= 32 ? 2 : 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t number = begin; number < end; number++) few_rows(number, steps, beside, n_rows);
        });
        for (int64_t number = steps * beside; number < all; number++) few_rows(number, 0, 1, n_rows);
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
