// Attention of odd shapes in buffers of just their size; prints how many were computed and compared.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "sanitized.h"

struct Row {
    void *cache;
    float *scales;
    int64_t capacity, context, length, token;
};

extern "C" {
void bh_attend_rows(const Row *, int64_t, const float *, const float *, const float *, float *, int64_t, int64_t,
                    int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);
void bh_attend_all(const float *, const float *, const float *, float *, int64_t, int64_t, int64_t, int64_t, int64_t,
                   int64_t, int64_t, int);
void bh_attend_q8_keep(const float *, const float *, const float *, char *, int64_t, int64_t, int64_t, int64_t, int64_t,
                       int);
void bh_attend_q8(const float *, char *, float *, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);
}

namespace {

bool close(const std::vector<float> &a, const std::vector<float> &b, float most = 1e-5f) {
    for (size_t i = 0; i < a.size(); i++)
        if (!(std::fabs(a[i] - b[i]) < most)) return false;
    return true;
}

} // namespace

int main() {
    int done = 0;
    for (int round = 0; round < 24; round++) {
        const int64_t heads = random(1, 2), shared = random(1, 3), dim = 8 * random(1, 16), length = random(1, 60);
        const int64_t context = 0, capacity = length, window = random(0, 1) * random(1, 40);
        const std::vector<float> q = numbers(length * heads * shared * dim);
        const std::vector<float> k = numbers(length * heads * dim), v = numbers(length * heads * dim);
        std::vector<float> wide(2 * heads * capacity * dim, NAN);
        std::vector<uint16_t> narrow(2 * heads * capacity * dim, 0x7E00);
        std::vector<int8_t> bytes(2 * heads * capacity * dim, -128);
        std::vector<float> scales(2 * heads * capacity, NAN);
        for (int bits = 8; bits <= 32; bits *= 2) {
            void *rows[] = {bytes.data(), narrow.data(), wide.data()};
            const Row row{rows[bits / 16], bits == 8 ? scales.data() : nullptr, capacity, context, length, 0};
            std::vector<float> few(q.size()), many(q.size());
            const int64_t width = heads * dim, all = width * shared;
            for (int way = 0; way < 2; way++)
                bh_attend_rows(&row, 1, q.data(), k.data(), v.data(), (way ? many : few).data(), all, width, 0,
                               heads * shared, heads, dim, window, bits, way, 1);
            // of integers either multiplies rounded queries and weights: the few of 15 bits, the many of 7
            if (!close(few, many, bits == 8 ? 0.05f : 1e-5f)) return std::printf("few and many differ\n"), 1;
            done += 2;
        }
        const int64_t n = random(1, 200), begin = random(0, static_cast<int>(n) - 1);
        const std::vector<float> x = numbers(n * heads * dim);
        std::vector<float> whole(x.size()), part((n - begin) * heads * dim);
        bh_attend_all(x.data(), x.data(), x.data(), whole.data(), 1, n, 0, n, heads, dim, heads * dim, 1);
        bh_attend_all(x.data(), x.data(), x.data(), part.data(), 1, n, begin, n, heads, dim, heads * dim, 1);
        if (std::vector<float>(whole.begin() + begin * heads * dim, whole.end()) != part)
            return std::printf("a part differs\n"), 1;
        const int64_t begins = (dim + 39) / 40 * 4;
        std::vector<char> kept(heads * (8 * dim + (n + 95) / 96 * (96 * (8 + 2 * dim + begins) + 4 * dim)));
        bh_attend_q8_keep(x.data(), x.data(), x.data(), kept.data(), 1, n, heads, dim, heads * dim, 1);
        std::vector<float> rounded(x.size());
        bh_attend_q8(x.data(), kept.data(), rounded.data(), 1, n, 0, n, heads, dim, heads * dim, 1);
        bh_attend_q8(x.data(), kept.data(), part.data(), 1, n, begin, n, heads, dim, heads * dim, 1);
        if (std::vector<float>(rounded.begin() + begin * heads * dim, rounded.end()) != part)
            return std::printf("a part of the rounded differs\n"), 1;
        if (!close(rounded, whole, 0.05f)) return std::printf("rounded too much\n"), 1;
        done += 2;
    }
    std::printf("%d attentions\n", done);
}
