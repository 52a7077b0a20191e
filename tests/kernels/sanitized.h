// What the sanitized programs compute with: numbers that are the same in every run.
#pragma once

#include <cstdint>
#include <vector>

namespace {

uint64_t state = 1;

// A whole number from low to high.
int random(int low, int high) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return low + static_cast<int>((state >> 33) % static_cast<uint64_t>(high - low + 1));
}

// Thousandths from -1 to 1.
[[maybe_unused]] std::vector<float> numbers(int64_t size) {
    std::vector<float> values(size);
    for (float &value : values) value = static_cast<float>(random(-1000, 1000)) * 0.001f;
    return values;
}

} // namespace
