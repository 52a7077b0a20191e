// Kernels whose calls can be written down and made again: every argument as a word of 64 bits.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "pool.h"

union Word {
    int64_t integer;
    double real;
    void *address;
};

template <class T> T argument(const Word &word) {
    if constexpr (std::is_pointer_v<T>)
        return static_cast<T>(word.address);
    else if constexpr (std::is_floating_point_v<T>)
        return static_cast<T>(word.real);
    else
        return static_cast<T>(word.integer);
}

template <class... A, std::size_t... I>
void call(void (*kernel)(A...), const Word *words, std::index_sequence<I...>) {
    kernel(argument<A>(words[I])...);
}

template <class... A> void call(void (*kernel)(A...), const Word *words) {
    call(kernel, words, std::index_sequence_for<A...>());
}

#define BH_REPLAYABLE(kernel)                                                                                          \
    BH_EXPORT void kernel##_words(const Word *words) { call(kernel, words); }
