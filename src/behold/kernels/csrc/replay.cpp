#include "replay.h"

namespace {

struct Call {
    void (*kernel)(const Word *);
    Word words[23];
};

} // namespace

// Calls that were written down, one after the other.
BH_EXPORT void bh_replay(const Call *calls, int64_t count) {
    for (int64_t i = 0; i < count; i++) calls[i].kernel(calls[i].words);
}
