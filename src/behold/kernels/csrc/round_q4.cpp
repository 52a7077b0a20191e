// Weights to codes of 4 bits with a multiplier for each 32, as `round_groups` in quant/rounding.py.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pool.h"
#include "vec.h"

namespace {

constexpr int64_t GROUP = 32;
constexpr float TINY = 1e-30f, LARGEST = 63;

struct Group {
    v8 of[4];

    Group(const float *w, int64_t length) {
        float padded[GROUP] = {};
        std::memcpy(padded, w, length * sizeof(float));
        for (int v = 0; v < 4; v++) of[v] = load8(padded + 8 * v);
    }

    float extreme() const {
        float found = 0;
        for (int v = 0; v < 4; v++)
            for (int i = 0; i < 8; i++)
                if (std::fabs(of[v][i]) > std::fabs(found)) found = of[v][i];
        return found;
    }

    // Codes, from -8 to 7, of one part with this step.
    v8 codes(int part, float inverse) const {
        const v8 magic = splat8(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
        v8 code = (of[part] * splat8(inverse) + magic) - magic;
        code = code > splat8(7) ? splat8(7) : code;
        return code < splat8(-8) ? splat8(-8) : code;
    }

    float error(float step) const {
        const float inverse = 1.0f / step;
        v8 sum = splat8(0);
        for (int v = 0; v < 4; v++) {
            const v8 rest = of[v] - codes(v, inverse) * splat8(step);
            sum += rest * rest;
        }
        return sum8(sum);
    }

    float best_step() const {
        const float largest = extreme();
        if (std::fabs(largest) < 8 * TINY) return TINY;
        float best = largest / -8, least = INFINITY;
        for (int sign = 1; sign >= -1; sign -= 2)
            for (int i = 0; i < 11; i++) {
                const float step = largest * (static_cast<float>(sign) * (0.65f + 0.05f * static_cast<float>(i)) / -8);
                const float rest = error(step);
                if (rest < least) {
                    least = rest;
                    best = step;
                }
            }
        return best;
    }
};

void round_row(const float *w, int64_t k, uint8_t *codes, int8_t *multipliers, float *scale, std::vector<float> &steps) {
    const int64_t groups = (k + GROUP - 1) / GROUP;
    float largest = 0;
    for (int64_t g = 0; g < groups; g++) {
        steps[g] = Group(w + g * GROUP, k - g * GROUP < GROUP ? k - g * GROUP : GROUP).best_step();
        largest = std::fabs(steps[g]) > largest ? std::fabs(steps[g]) : largest;
    }
    const float unit = largest / LARGEST > TINY ? largest / LARGEST : TINY;
    double products = 0, squares = 0;
    for (int64_t g = 0; g < groups; g++) {
        const Group group(w + g * GROUP, k - g * GROUP < GROUP ? k - g * GROUP : GROUP);
        float multiplier = std::nearbyint(steps[g] / unit);
        if (multiplier == 0) multiplier = 1;
        multipliers[g] = static_cast<int8_t>(multiplier);
        for (int v = 0; v < 4; v++) {
            const v8 code = group.codes(v, 1.0f / (multiplier * unit)), integer = code * splat8(multiplier);
            products += sum8(group.of[v] * integer);
            squares += sum8(integer * integer);
            for (int i = 0; i < 8; i++) codes[g * GROUP + 8 * v + i] = static_cast<uint8_t>(code[i] + 8);
        }
    }
    *scale = static_cast<float>(products / (squares > 1 ? squares : 1));
}

} // namespace

// w (n, k) to codes (n, groups of 32), multipliers (n, groups), scale (n).
BH_EXPORT void bh_round_q4(const float *w, uint8_t *codes, int8_t *multipliers, float *scale, int64_t n, int64_t k,
                           int threads) {
    const int64_t groups = (k + GROUP - 1) / GROUP;
    in_parallel(n, 8, threads, [&](int64_t begin, int64_t end) {
        std::vector<float> steps(groups);
        for (int64_t i = begin; i < end; i++)
            round_row(w + i * k, k, codes + i * groups * GROUP, multipliers + i * groups, scale + i, steps);
    });
}
