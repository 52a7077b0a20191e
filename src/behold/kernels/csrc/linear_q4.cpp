// x · ((code - 8) · multiplier · scale)ᵀ + bias with codes of 4 bits: [panel of 32 columns][32 places of K][four places]
// [column][place], where a byte holds a place of the first 16 below and of the last 16 above; and a signed 8-bit
// multiplier for each column of each 32 places.
//
// The products of 32 places with integers of 8 bits fit two sums of 16 bits, and the instruction that widens such sums
// multiplies them as well: a group's multiplier costs nothing. AVX-512 with VNNI adds four products in 32 bits at once,
// which more than makes up for a multiplication of its own. For few rows, codes are used as they are read; for more, a
// part of a panel is spread to bytes first. All sums are exact, so all give the same.

#include <cstring>

#include "four.h"
#include "linear_q.h"

namespace {

constexpr int64_t GROUP_BYTES = PANEL * 16;  // of codes
constexpr int64_t SPREAD = 16;               // groups that are spread at a time
constexpr int64_t MOST = 192;                // rows of a portion

struct Codes {
    const uint8_t *codes;
    const int8_t *multipliers;

    Codes() = default;
    Codes(const Panel &panel, int64_t groups)
        : codes(static_cast<const uint8_t *>(panel.columns->layer->w) + panel.number * groups * GROUP_BYTES),
          multipliers(panel.columns->layer->multipliers + panel.number * groups * PANEL) {}
};

#if defined(__AVX2__)

// Eight multipliers, each twice in 16 bits.
inline __m256i twice(const int8_t *multipliers) {
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(multipliers)));
    return _mm256_blend_epi16(wide, _mm256_slli_epi32(wide, 16), 0xaa);
}

#endif
#if defined(__AVX512VNNI__)

constexpr int ROWS = 6; // that meet spread weights together

// -8 times the sum of a row's 32 signed integers: what its products with a group's codes begin at.
int32_t offset(const uint8_t *integers) {
    const __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), load(integers));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    return -8 * _mm_cvtsi128_si32(four);
}

inline __m512i sixteen(const int8_t *multipliers) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(multipliers)));
}

// sums += a group's products, which are multiplied.
inline void add_part(const Two &part, __m512i first, __m512i last, Two &sums) {
    sums.a = _mm512_add_epi32(sums.a, _mm512_mullo_epi32(part.a, first));
    sums.b = _mm512_add_epi32(sums.b, _mm512_mullo_epi32(part.b, last));
}

// The product of MR rows with N panels: from four at a time, or of one from four places.
template <int MR, int N>
void product_of_few(const Row *rows, const int32_t *offsets, const Codes (&panels)[N], int64_t groups,
                    int32_t (*out)[N][PANEL]) {
    const __m512i low = _mm512_set1_epi8(15);
    Two sums[MR][N];
    const auto group = [&](int64_t g) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int p = 0; p < N; p++) {
            const uint8_t *w = panels[p].codes + g * GROUP_BYTES;
            Two part[MR];
#pragma GCC unroll 4
            for (int m = 0; m < MR; m++) part[m].a = part[m].b = _mm512_set1_epi32(offsets[m * groups + g]);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const __m512i one = load64(w + 128 * j), two = load64(w + 128 * j + 64);
                __builtin_prefetch(w + 128 * j + AHEAD, 0, 2);
                __builtin_prefetch(w + 128 * j + AHEAD + 64, 0, 2);
                const __m512i one_low = _mm512_and_si512(one, low), two_low = _mm512_and_si512(two, low);
                const __m512i one_high = _mm512_and_si512(_mm512_srli_epi16(one, 4), low);
                const __m512i two_high = _mm512_and_si512(_mm512_srli_epi16(two, 4), low);
#pragma GCC unroll 4
                for (int m = 0; m < MR; m++) {
                    const uint8_t *x = rows[m].integers + g * GROUP + 4 * j;
                    const __m512i first = four_places64(x), last = four_places64(x + 16);
                    part[m].a = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(part[m].a, one_low, first), one_high, last);
                    part[m].b = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(part[m].b, two_low, first), two_high, last);
                }
            }
            const int8_t *multipliers = panels[p].multipliers + g * PANEL;
#pragma GCC unroll 4
            for (int m = 0; m < MR; m++) add_part(part[m], sixteen(multipliers), sixteen(multipliers + 16), sums[m][p]);
        }
    };
    const int64_t parts = N > 1 ? 1 : STREAMS, part = groups / parts;
    for (int64_t i = 0; i < part; i++)
        for (int64_t s = 0; s < parts; s++) group(s * part + i);
    for (int64_t g = part * parts; g < groups; g++) group(g);
    for (int m = 0; m < MR; m++)
        for (int p = 0; p < N; p++) sums[m][p].store_to(out[m][p]);
}

#elif defined(__AVX2__)

// -8 times the sums of a row's 32 signed integers, as the products of codes and integers are summed: two times 16 bits.
int32_t offset(const uint8_t *integers) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), load(integers));
    __m128i sums = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0x4e));
    sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0xb1));
    return _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), _mm_slli_epi16(sums, 3)));
}

// parts += the products of a group's places 4 · j, and those 16 further, of MR rows with a panel.
template <int MR>
inline __attribute__((always_inline)) void add_codes(Four &one, Four &other, const uint8_t *a, const uint8_t *b,
                                                     const uint8_t *w) {
    const __m256i low = _mm256_set1_epi8(15), first = four_places(a), last = four_places(a + 16);
    const __m256i other_first = MR > 1 ? four_places(b) : first, other_last = MR > 1 ? four_places(b + 16) : last;
    const auto add = [&](__m256i &x, __m256i &y, int v) __attribute__((always_inline)) {
        const __m256i codes = load(w + 32 * v), below = _mm256_and_si256(codes, low);
        const __m256i above = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low);
        x = _mm256_add_epi16(x, _mm256_maddubs_epi16(below, first));
        x = _mm256_add_epi16(x, _mm256_maddubs_epi16(above, last));
        if (MR == 1) return;
        y = _mm256_add_epi16(y, _mm256_maddubs_epi16(below, other_first));
        y = _mm256_add_epi16(y, _mm256_maddubs_epi16(above, other_last));
    };
    add(one.a, other.a, 0);
    add(one.b, other.b, 1);
    add(one.c, other.c, 2);
    add(one.d, other.d, 3);
    one.keep();
    if (MR > 1) other.keep();
}

inline __attribute__((always_inline)) void add_part(const Four &part, const int8_t *multipliers, Four &sums) {
    sums.a = _mm256_add_epi32(sums.a, _mm256_madd_epi16(part.a, twice(multipliers)));
    sums.b = _mm256_add_epi32(sums.b, _mm256_madd_epi16(part.b, twice(multipliers + 8)));
    sums.c = _mm256_add_epi32(sums.c, _mm256_madd_epi16(part.c, twice(multipliers + 16)));
    sums.d = _mm256_add_epi32(sums.d, _mm256_madd_epi16(part.d, twice(multipliers + 24)));
}

constexpr int ROWS = 1; // is as fast as several: the weights are operands anyway, and there are registers for the sums

// 128 bytes are fetched at each of four places.
struct Ahead {
    const uint8_t *from;
    int64_t apart;

    __attribute__((always_inline)) void fetch(int place) const {
        __builtin_prefetch(from + place * apart);
        __builtin_prefetch(from + place * apart + 64);
    }
};

// MR rows by a panel, read from four places at a time. What comes next, in this panel or the one behind it, is fetched
// from all four in turn: memory gives more than where a group's 512 bytes are read at once.
template <int MR, int>
void product_of_few(const Row *rows, const int32_t *offsets, const Codes (&panel)[1], int64_t groups,
                    int32_t (*out)[1][PANEL]) {
    constexpr int PLACES = 4;
    const uint8_t *a = rows[0].integers, *b = rows[MR - 1].integers, *w = panel->codes;
    const int8_t *multipliers = panel->multipliers;
    Four first, second;
    const int64_t part = groups / PLACES;
    const auto group = [&](int64_t g, Ahead ahead) __attribute__((always_inline)) {
        const uint8_t *codes = w + g * GROUP_BYTES, *x = a + g * GROUP, *y = b + g * GROUP;
        Four one, other;
        one.a = one.b = one.c = one.d = _mm256_set1_epi32(offsets[g]);
        if (MR > 1) other.a = other.b = other.c = other.d = _mm256_set1_epi32(offsets[groups + g]);
        for (int j = 0; j < 4; j++) {
            add_codes<MR>(one, other, x + 4 * j, y + 4 * j, codes + 128 * j);
            ahead.fetch(j);
        }
        add_part(one, multipliers + g * PANEL, first);
        if (MR > 1) add_part(other, multipliers + g * PANEL, second);
    };
    for (int64_t i = 0; i < part; i++) {
        const int64_t next = i + 1 < part ? i + 1 : groups;
        for (int s = 0; s < PLACES; s++) {
            if (!(i & 1)) __builtin_prefetch(multipliers + (next + s * part) * PANEL);
            const uint8_t *ahead = w + next * GROUP_BYTES + s * (GROUP_BYTES / PLACES);
            group(s * part + i, {ahead, part * GROUP_BYTES});
        }
    }
    for (int64_t g = part * PLACES; g < groups; g++) group(g, {w + (g + 1) * GROUP_BYTES, 128});
    first.store_to(out[0][0]);
    if (MR > 1) second.store_to(out[MR - 1][0]);
}

#endif
#if defined(__AVX2__)

// Some groups of a panel as the products of many rows want them.
struct Spread {
    alignas(32) int8_t codes[SPREAD * GROUP * PANEL];
    alignas(32) int32_t multipliers[SPREAD * PANEL]; // twice 16 bits; of 32, where products have as many

    void fill(const uint8_t *w, const int8_t *from, int64_t groups) {
        const __m256i low = _mm256_set1_epi8(15), middle = _mm256_set1_epi8(8);
        for (int64_t g = 0; g < groups; g++) {
            int8_t *out = codes + g * GROUP * PANEL;
            for (int64_t i = 0; i < GROUP_BYTES; i += 32) {
                const __m256i both = load(w + g * GROUP_BYTES + i);
                store(out + i, _mm256_sub_epi8(_mm256_and_si256(both, low), middle));
                const __m256i above = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
                store(out + GROUP_BYTES + i, _mm256_sub_epi8(above, middle));
            }
#if defined(__AVX512VNNI__)
            for (int v = 0; v < 2; v++) store64(multipliers + g * PANEL + 16 * v, sixteen(from + g * PANEL + 16 * v));
#else
            for (int v = 0; v < 4; v++) store(multipliers + g * PANEL + 8 * v, twice(from + g * PANEL + 8 * v));
#endif
        }
    }

    // Adds an outlier, whose place is counted from here.
    void add(const Outlier &outlier, int32_t place, int32_t *sums) const {
        const int8_t *quad = codes + (place & ~3) * PANEL;
        const int32_t *factors = multipliers + (place & -GROUP);
        const __m256i one = _mm256_set1_epi32(outlier.at), beyond = _mm256_set1_epi32(outlier.low);
        for (int v = 0; v < 4; v++) {
#if defined(__AVX512VNNI__)
            const __m256i code = _mm256_dpbusd_epi32(_mm256_setzero_si256(), one, load(quad + 32 * v));
            const __m256i weight = _mm256_mullo_epi32(code, load(factors + 8 * v));
#else
            const __m256i code = _mm256_maddubs_epi16(one, load(quad + 32 * v)); // beside 16 zeros
            const __m256i weight = _mm256_madd_epi16(code, load(factors + 8 * v));
#endif
            store(sums + 8 * v, _mm256_add_epi32(load(sums + 8 * v), _mm256_madd_epi16(weight, beyond)));
        }
    }
};

#if defined(__AVX512VNNI__)

// Adds the product of N rows' integers, from a place on, with the spread groups.
template <int N>
void product(const Row *rows, int64_t place, const Spread &panel, int64_t groups, int32_t (*out)[PANEL]) {
    Two sums[N];
#pragma GCC unroll 8
    for (int m = 0; m < N; m++) sums[m] = {load64(out[m]), load64(out[m] + 16)};
    for (int64_t g = 0; g < groups; g++) {
        Two part[N];
        const int8_t *w = panel.codes + g * GROUP * PANEL;
        const int64_t at = place + g * GROUP;
#pragma GCC unroll 8
        for (int quad = 0; quad < GROUP; quad += 4) {
            const __m512i first = load64(w + quad * PANEL), last = load64(w + quad * PANEL + 64);
#pragma GCC unroll 8
            for (int m = 0; m < N; m++) {
                const __m512i four = four_places64(rows[m].integers + at + quad);
                part[m].a = _mm512_dpbusd_epi32(part[m].a, four, first);
                part[m].b = _mm512_dpbusd_epi32(part[m].b, four, last);
            }
        }
        const __m512i first = load64(panel.multipliers + g * PANEL), last = load64(panel.multipliers + g * PANEL + 16);
#pragma GCC unroll 8
        for (int m = 0; m < N; m++) add_part(part[m], first, last, sums[m]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < N; m++) sums[m].store_to(out[m]);
}

#else

// part = or += the products of four places of a row with a panel.
template <bool ADD>
inline __attribute__((always_inline)) void products(Four &part, const uint8_t *integers, const int8_t *w) {
    const __m256i a = four_places(integers);
    const auto product = [&](__m256i sum, int v) __attribute__((always_inline)) {
        const __m256i one = _mm256_maddubs_epi16(a, load(w + 32 * v));
        return ADD ? _mm256_add_epi16(sum, one) : one;
    };
    part.a = product(part.a, 0);
    part.b = product(part.b, 1);
    part.c = product(part.c, 2);
    part.d = product(part.d, 3);
    part.keep();
}

inline __attribute__((always_inline)) void add_part(const Four &part, const int32_t *multipliers, Four &sums) {
    sums.a = _mm256_add_epi32(sums.a, _mm256_madd_epi16(part.a, load(multipliers)));
    sums.b = _mm256_add_epi32(sums.b, _mm256_madd_epi16(part.b, load(multipliers + 8)));
    sums.c = _mm256_add_epi32(sums.c, _mm256_madd_epi16(part.c, load(multipliers + 16)));
    sums.d = _mm256_add_epi32(sums.d, _mm256_madd_epi16(part.d, load(multipliers + 24)));
    sums.keep();
}

// Adds the product of a row's integers, from a place on, with the spread groups.
template <int> void product(const Row *row, int64_t place, const Spread &panel, int64_t groups, int32_t (*all)[PANEL]) {
    const uint8_t *integers = row->integers + place;
    int32_t *out = all[0];
    Four sums{load(out), load(out + 8), load(out + 16), load(out + 24)};
    for (int64_t g = 0; g < groups; g++) {
        Four part;
        const uint8_t *x = integers + g * GROUP;
        const int8_t *w = panel.codes + g * GROUP * PANEL;
        products<false>(part, x, w);
#pragma GCC unroll 7
        for (int at = 4; at < GROUP; at += 4) products<true>(part, x + at, w + at * PANEL);
        add_part(part, panel.multipliers + g * PANEL, sums);
    }
    sums.store_to(out);
}

#endif

void add_outliers(const Row &row, const uint8_t *w, const int8_t *multipliers, int32_t *out) {
    const __m256i low = _mm256_set1_epi32(15), middle = _mm256_set1_epi32(8), half = _mm256_set1_epi32(0xffff);
    for (int32_t i = 0; i < row.n_outliers; i++) {
        const Outlier outlier = row.outliers[i];
        const int64_t g = outlier.place / GROUP, at = outlier.place % GROUP;
        const uint8_t *quad = w + g * GROUP_BYTES + at % 16 / 4 * 128;
        const __m128i down = _mm_cvtsi32_si128(static_cast<int>(at % 4 * 8 + at / 16 * 4));
        const __m256i excess = _mm256_set1_epi32(outlier.excess & 0xffff);
        for (int v = 0; v < 4; v++) {
            const __m256i code = _mm256_and_si256(_mm256_srl_epi32(load(quad + 32 * v), down), low);
            const __m256i one = _mm256_and_si256(_mm256_sub_epi32(code, middle), half);
            const __m256i weight = _mm256_madd_epi16(one, twice(multipliers + g * PANEL + 8 * v));
            store(out + 8 * v, _mm256_add_epi32(load(out + 8 * v), _mm256_madd_epi16(weight, excess)));
        }
    }
}

#else

int32_t offset(const uint8_t *) { return 0; }

inline int32_t weight(const uint8_t *w, const int8_t *multipliers, int64_t place, int column) {
    const int64_t g = place / GROUP, at = place % GROUP;
    const uint8_t both = w[g * GROUP_BYTES + at % 16 / 4 * 128 + column * 4 + at % 4];
    return ((at < 16 ? both & 15 : both >> 4) - 8) * multipliers[g * PANEL + column];
}

template <int MR, int>
void product_of_few(const Row *rows, const int32_t *, const Codes (&panel)[1], int64_t groups,
                    int32_t (*out)[1][PANEL]) {
    const uint8_t *w = panel->codes;
    const int8_t *multipliers = panel->multipliers;
    std::memset(out, 0, MR * sizeof *out);
    for (int m = 0; m < MR; m++)
        for (int64_t k = 0; k < groups * GROUP; k++)
            for (int c = 0; c < PANEL; c++) out[m][0][c] += static_cast<int8_t>(rows[m].integers[k]) * weight(w, multipliers, k, c);
}

struct Spread {
    int16_t weights[SPREAD * GROUP * PANEL];

    void fill(const uint8_t *w, const int8_t *multipliers, int64_t groups) {
        for (int64_t k = 0; k < groups * GROUP; k++)
            for (int c = 0; c < PANEL; c++)
                weights[k * PANEL + c] = static_cast<int16_t>(weight(w, multipliers, k, c));
    }

    void add(const Outlier &outlier, int32_t place, int32_t *sums) const {
        for (int c = 0; c < PANEL; c++) sums[c] += outlier.excess * weights[place * PANEL + c];
    }
};

constexpr int ROWS = 1;

template <int> void product(const Row *row, int64_t place, const Spread &panel, int64_t groups, int32_t (*out)[PANEL]) {
    for (int64_t k = 0; k < groups * GROUP; k++)
        for (int c = 0; c < PANEL; c++) out[0][c] += row->integers[place + k] * panel.weights[k * PANEL + c];
}

void add_outliers(const Row &row, const uint8_t *w, const int8_t *multipliers, int32_t *out) {
    for (int32_t i = 0; i < row.n_outliers; i++)
        for (int c = 0; c < PANEL; c++)
            out[c] += row.outliers[i].excess * weight(w, multipliers, row.outliers[i].place, c);
}

#endif

// MR rows of N panels, from m on, whose codes are used as they are read.
template <int MR, int N>
void few(const Panel *panels, const Codes (&own)[N], int64_t groups, const int32_t *offsets, int64_t m) {
    alignas(64) int32_t sums[MR][N][PANEL];
    const Row *rows = panels->columns->rows + m;
    product_of_few<MR, N>(rows, offsets + m * groups, own, groups, sums);
    for (int p = 0; p < N; p++)
        for (int i = 0; i < MR; i++) {
            add_outliers(rows[i], own[p].codes, own[p].multipliers, sums[i][p]);
            panels[p].columns->finish(m + i, panels[p].number, sums[i][p]);
        }
}

// Rows [begin, end) of N panels.
template <int N>
void few_of(const Panel *panels, int64_t groups, int64_t begin, int64_t end, const int32_t *offsets) {
    Codes own[N];
    for (int p = 0; p < N; p++) own[p] = Codes(panels[p], groups);
    int64_t m = begin;
    for (; end - m >= 2; m += 2) few<2, N>(panels, own, groups, offsets, m);
    if (m < end) few<1, N>(panels, own, groups, offsets, m);
}

} // namespace

void offsets_q4(const Row &row, int64_t groups, int32_t *offsets) {
    for (int64_t g = 0; g < groups; g++) offsets[g] = offset(row.integers + g * GROUP);
}

void few_q4(const Panel *panels, int count, int64_t k, int64_t begin, int64_t end, const int32_t *offsets) {
    const int64_t groups = (k + GROUP - 1) / GROUP;
    if (count == STREAMS) return few_of<STREAMS>(panels, groups, begin, end, offsets);
    for (int p = 0; p < count; p++) few_of<1>(panels + p, groups, begin, end, offsets);
}

void many_q4(const Panel &panel, int64_t k, int64_t begin, int64_t end) {
    const int64_t groups = (k + GROUP - 1) / GROUP;
    const Columns &columns = *panel.columns;
    const Codes own(panel, groups);
    alignas(32) int32_t sums[MOST][PANEL];
    int32_t next[MOST]; // of each row's outliers, which are in order
    Spread spread;
    std::memset(sums, 0, (end - begin) * sizeof *sums);
    std::memset(next, 0, (end - begin) * sizeof *next);
    const Row *rows = columns.rows + begin;
    for (int64_t g = 0; g < groups; g += SPREAD) {
        const int64_t some = groups - g < SPREAD ? groups - g : SPREAD;
        spread.fill(own.codes + g * GROUP_BYTES, own.multipliers + g * PANEL, some);
        for (int64_t m = 0, done = 0; m < end - begin; m++) {
            if (g + SPREAD >= groups) columns.expect(begin + m, panel.number);
            if (m == done) {
                const bool whole = end - begin - m >= ROWS;
                (whole ? product<ROWS> : product<1>)(rows + m, g * GROUP, spread, some, sums + m);
                done += whole ? ROWS : 1;
            }
            for (; next[m] < rows[m].n_outliers; next[m]++) {
                const Outlier &outlier = rows[m].outliers[next[m]];
                if (outlier.place >= (g + some) * GROUP) break;
                spread.add(outlier, outlier.place - static_cast<int32_t>(g * GROUP), sums[m]);
            }
        }
    }
    for (int64_t m = begin; m < end; m++) columns.finish(m, panel.number, sums[m - begin]);
}
