// Rounding of input rows: one pass for a row's window, one for its integers.

#include "rows.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "pointwise.h"
#include "pool.h"
#include "vec.h"

namespace {

// As in quant/rounding.py.
constexpr int64_t BLOCK = 1024, GROUPS = 64;
constexpr int RANK = 24;
constexpr float LOUD = 1.25f, WIDEST = 32000.0f, TINY = 1e-30f;
constexpr float HUGE_ABOVE = 8.0f, LEAST = 0.8f;
constexpr double SHARE = 1.4, LENGTH = 8192.0;
constexpr int64_t MAX_OUTLIERS = 1024, MAX_EXCESS = int64_t{1} << 21;
constexpr int64_t MAX_SUM = 2147483647 / (8 * 63);
#if defined(__AVX512VNNI__)
constexpr int32_t SPARE = 64; // on either side of a window of 7 bits: products with all of a byte fit, and need no outlier
#else
constexpr int32_t SPARE = 0;
#endif
constexpr int32_t INFINITE = 0x7f800000; // bits; those of a NaN are larger

typedef int32_t i8 __attribute__((vector_size(32)));

struct Shape {
    int64_t k, stride, block;
    int32_t largest; // integer in the window
    float loud;
    int32_t spare;   // what is added to integers when they are stored
    uint8_t flipped; // and then these bits
    int64_t most, most_excess; // outliers in a row, and what they may have beyond the window

    Shape(int64_t places, Window window) : k(places) {
        largest = window == Window::SEVEN_BITS ? 127 : 255;
        loud = window == Window::SEVEN_BITS ? LOUD : 2 * LOUD;
        spare = window == Window::SEVEN_BITS ? SPARE : 0;
        flipped = window == Window::SIGNED ? 128 : 0;
        const int64_t rest = MAX_SUM - largest * k;
        most_excess = window == Window::SEVEN_BITS || rest > MAX_EXCESS ? MAX_EXCESS : rest;
        const int64_t blocks = (k + BLOCK - 1) / BLOCK;
        block = (k + blocks * GROUPS - 1) / (blocks * GROUPS) * GROUPS;
        stride = (k + 31) / 32 * 32 + 64; // rows do not all begin at the same place of a cache's sets
        most = 32 + k / 12 < MAX_OUTLIERS ? 32 + k / 12 : MAX_OUTLIERS;
    }
};

constexpr int VECTORS = GROUPS / 8;

// The vector whose lane i is lane i ^ X.
template <int X> i8 crossed(i8 v) {
    return i8{v[0 ^ X], v[1 ^ X], v[2 ^ X], v[3 ^ X], v[4 ^ X], v[5 ^ X], v[6 ^ X], v[7 ^ X]};
}

i8 larger(i8 a, i8 b) { return a > b ? a : b; }

i8 smaller(i8 a, i8 b) { return a < b ? a : b; }

// Puts values i and i ^ X of 64 in order, the larger first, where value i is in vector i % 8 and lane i / 8.
template <int X> void put_in_order(i8 (&values)[VECTORS]) {
    const i8 lane = {0, 1, 2, 3, 4, 5, 6, 7}, first = lane < (lane ^ (X >> 3));
    i8 others[VECTORS];
    for (int v = 0; v < VECTORS; v++) others[v] = crossed<(X >> 3)>(values[v ^ (X & 7)]);
    for (int v = 0; v < VECTORS; v++) {
        const i8 more = larger(values[v], others[v]), less = smaller(values[v], others[v]);
        values[v] = X < VECTORS ? v < (v ^ X) ? more : less : first ? more : less;
    }
}

// The smallest of 64 that no more than RANK are larger than: two halves are sorted, by bitonic merges, and what the last
// merge would do is done for its place alone.
int32_t ranked(i8 (&values)[VECTORS]) {
    static_assert(RANK == 24, "the lowest 8 of the upper 32");
    put_in_order<1>(values);
    put_in_order<3>(values), put_in_order<1>(values);
    put_in_order<7>(values), put_in_order<2>(values), put_in_order<1>(values);
    put_in_order<15>(values), put_in_order<4>(values), put_in_order<2>(values), put_in_order<1>(values);
    put_in_order<31>(values), put_in_order<8>(values), put_in_order<4>(values), put_in_order<2>(values);
    put_in_order<1>(values);
    i8 upper[VECTORS], found = {};
    for (int v = 0; v < VECTORS; v++) upper[v] = larger(values[v], crossed<7>(values[VECTORS - 1 - v]));
    for (int v = 0; v < VECTORS; v++) {
        const i8 lower = smaller(upper[v], crossed<2>(upper[v]));
        found = larger(found, smaller(lower, crossed<1>(lower)));
    }
    return found[0];
}

struct Statistics {
    float low = 0, high = 0, typical = 0;
    bool finite = true;
};

Statistics look(const float *x, const Shape &shape) {
    v8 low = splat8(0), high = splat8(0);
    int32_t typical = 0;
    i8 largest = {};
    for (int64_t start = 0; start < shape.k; start += shape.block) {
        const int64_t stop = start + shape.block < shape.k ? start + shape.block : shape.k;
        i8 groups[VECTORS] = {};
        for (int64_t at = start; at < stop; at += GROUPS) {
            alignas(32) float padded[GROUPS];
            const float *from = x + at;
            if (stop - at < GROUPS) {
                std::memset(padded, 0, sizeof padded);
                std::memcpy(padded, from, (stop - at) * sizeof(float));
                from = padded;
            }
            for (int g = 0; g < VECTORS; g++) {
                const v8 value = load8(from + 8 * g);
                const i8 magnitude = (i8)value & 0x7fffffff;
                groups[g] = magnitude > groups[g] ? magnitude : groups[g];
                low = value < low ? value : low;
                high = value > high ? value : high;
            }
        }
        for (const i8 &values : groups) largest = larger(values, largest);
        const int32_t middle = ranked(groups);
        typical = middle > typical ? middle : typical;
    }
    Statistics found;
    std::memcpy(&found.typical, &typical, sizeof typical);
    for (int i = 0; i < 8; i++) {
        found.finite = found.finite && largest[i] < INFINITE;
        found.low = low[i] < found.low ? low[i] : found.low;
        found.high = high[i] > found.high ? high[i] : found.high;
    }
    return found;
}

// The sum of the squares of integers round(x · up), which have 16 bits; k is at most 2^16.
int64_t squares(const float *x, int64_t k, float up) {
    i8 high = {}, low = {};
    for (int64_t at = 0; at < k; at += 8) {
        float padded[8] = {};
        const int64_t count = k - at < 8 ? k - at : 8;
        if (count < 8) std::memcpy(padded, x + at, count * sizeof *x);
        const i8 integers = nearest8(load8(count < 8 ? padded : x + at) * splat8(up));
        const i8 square = integers * integers;
        high += square >> 16;
        low += square & 0xffff;
    }
    int64_t sum = 0;
    for (int i = 0; i < 8; i++) sum += int64_t{high[i]} * 65536 + low[i];
    return sum;
}

// What takes the place of the threshold in a row with huge entries.
float threshold_beside(const float *x, const Statistics &row, float threshold, const Shape &shape) {
    const float largest = -row.low > row.high ? -row.low : row.high;
    if (shape.largest != 127 || !(largest > HUGE_ABOVE * row.typical) || !(largest > TINY)) return threshold;
    int exponent;
    std::frexp(largest, &exponent);
    const float up = std::ldexp(1.0f, 15 - exponent);
    const double mean = static_cast<double>(squares(x, shape.k, up)) / static_cast<double>(shape.k);
    const double share = SHARE - static_cast<double>(shape.k) / LENGTH;
    const float wanted = static_cast<float>(share * std::sqrt(mean) / static_cast<double>(up));
    const float least = row.typical * LEAST;
    const float narrow = wanted > least ? wanted : least;
    return narrow < threshold ? narrow : threshold;
}

struct Scale {
    float step, inverse;
    int32_t zero;

    Scale(const Statistics &row, float threshold, const Shape &shape) {
        const float most = static_cast<float>(shape.largest - 1);
        const float largest = -row.low > row.high ? -row.low : row.high;
        const float low = row.low < -threshold ? -threshold : row.low, high = row.high > threshold ? threshold : row.high;
        step = high / most - low / most;
        step = step > TINY ? step : TINY;
        step = step > largest / WIDEST ? step : largest / WIDEST;
        inverse = 1.0f / step;
        zero = static_cast<int32_t>(std::lrintf(-low * inverse));
    }
};

// Writes a row's integers and outliers. False where there are too many of them: by the window, which is the same
// whatever room there is beside it.
struct Writer {
    const Shape &shape;
    Outlier *outliers;
    int64_t written = 0, count = 0, excess = 0;

    void add(int64_t place, int32_t integer) {
        const int32_t beyond = integer < 0 ? integer : integer - shape.largest, far = beyond < 0 ? -beyond : beyond;
        count++;
        excess += far;
        if (far <= shape.spare || written == shape.most) return;
        const int32_t left = beyond < 0 ? beyond + shape.spare : beyond - shape.spare;
        outliers[written++] = {static_cast<int32_t>(place), left, 1 << place % 4 * 8, left & 0xffff};
    }

    bool write(const float *x, const Scale &scale, uint8_t *out) {
        int64_t i = 0;
#if defined(__AVX2__)
        const __m256 inverse = _mm256_set1_ps(scale.inverse);
        const __m256i zero = _mm256_set1_epi32(scale.zero), top = _mm256_set1_epi32(shape.largest);
        const __m256i outside = _mm256_set1_epi32(~shape.largest), flipped = _mm256_set1_epi8(static_cast<char>(shape.flipped));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        for (; i + 32 <= shape.k; i += 32) {
            __m256i v[4];
            for (int a = 0; a < 4; a++) {
                const __m256i rounded = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * a), inverse));
                v[a] = _mm256_add_epi32(rounded, zero);
            }
            const __m256i limit = _mm256_set1_epi16(static_cast<int16_t>(shape.largest + 2 * shape.spare));
            const __m256i more = _mm256_set1_epi16(static_cast<int16_t>(shape.spare));
            const __m256i low = _mm256_adds_epi16(_mm256_packs_epi32(v[0], v[1]), more);
            const __m256i high = _mm256_adds_epi16(_mm256_packs_epi32(v[2], v[3]), more);
            const __m256i bytes = _mm256_packus_epi16(_mm256_min_epi16(low, limit), _mm256_min_epi16(high, limit));
            const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, order);
            _mm256_storeu_si256((__m256i *)(out + i), _mm256_xor_si256(ordered, flipped));
            const __m256i all = _mm256_or_si256(_mm256_or_si256(v[0], v[1]), _mm256_or_si256(v[2], v[3]));
            if (!_mm256_testz_si256(all, outside)) {
                for (int a = 0; a < 4; a++) {
                    const __m256i sign = _mm256_or_si256(v[a], _mm256_sub_epi32(top, v[a]));
                    int mask = _mm256_movemask_ps(_mm256_castsi256_ps(sign));
                    if (!mask) continue;
                    alignas(32) int32_t values[8];
                    _mm256_store_si256((__m256i *)values, v[a]);
                    for (; mask; mask &= mask - 1) {
                        const int lane = __builtin_ctz(static_cast<unsigned>(mask));
                        add(i + 8 * a + lane, values[lane]);
                    }
                }
                if (count > shape.most) return false;
            }
        }
#endif
        for (; i < shape.k; i++) {
            const int32_t integer = static_cast<int32_t>(std::lrintf(x[i] * scale.inverse)) + scale.zero;
            const int32_t spare = shape.spare, end = shape.largest + spare;
            const int32_t inside = integer < -spare ? -spare : integer > end ? end : integer;
            out[i] = static_cast<uint8_t>((inside + spare) ^ shape.flipped);
            if (integer < 0 || integer > shape.largest) add(i, integer);
        }
        return count <= shape.most && excess <= shape.most_excess;
    }
};

void round_row(const float *x, const Shape &shape, uint8_t *out, Outlier *outliers, Row &row) {
    std::memset(out + shape.k, 0, shape.stride - shape.k);
    const Statistics found = look(x, shape);
    if (!found.finite) {
        std::memset(out, 0, shape.k);
        row = {out, outliers, 0, 0, NAN};
        return;
    }
    const float usual = found.typical * shape.loud, first = threshold_beside(x, found, usual, shape);
    Scale scale(found, first, shape);
    Writer writer{shape, outliers};
    bool fits = writer.write(x, scale, out);
    for (const float threshold : {usual, INFINITY}) {
        if (fits || threshold == first) continue;
        scale = Scale(found, threshold, shape);
        writer.written = writer.count = writer.excess = 0;
        fits = writer.write(x, scale, out);
    }
    const int32_t zero = scale.zero + shape.spare - shape.flipped;
    row = {out, outliers, static_cast<int32_t>(writer.written), zero, scale.step};
}

struct Memory {
    std::vector<uint8_t> integers;
    std::vector<Outlier> outliers;
    std::vector<Row> rows;
};

template <class T> T *room(std::vector<T> &memory, int64_t length) {
    if (static_cast<int64_t>(memory.size()) < length) memory.resize(length);
    return memory.data();
}

} // namespace

const Row *round_rows(const float *x, int64_t rows, int64_t k, Window window, Norm norm, int threads) {
    static thread_local Memory memory;
    const Shape shape(k, window);
    uint8_t *integers = room(memory.integers, rows * shape.stride);
    Outlier *outliers = room(memory.outliers, rows * shape.most);
    Row *all = room(memory.rows, rows);
    in_parallel(rows, 4, threads, [&](int64_t begin, int64_t end) {
        static thread_local std::vector<float> normed;
        for (int64_t m = begin; m < end; m++) {
            const float *row = x + m * k;
            if (norm.weight) {
                if (norm.bias)
                    layer_norm(row, norm.weight, norm.bias, room(normed, k), k, norm.eps);
                else
                    rms_norm(row, norm.weight, room(normed, k), k, norm.eps);
                row = normed.data();
            }
            round_row(row, shape, integers + m * shape.stride, outliers + m * shape.most, all[m]);
        }
    });
    return all;
}
