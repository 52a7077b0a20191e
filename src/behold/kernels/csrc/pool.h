// Work for several threads: those of torch, so that never two pools spin on the same cores.
#pragma once

#include <atomic>
#include <cstdint>

// GOMP_parallel of the OpenMP runtime that torch has loaded: run `body` in `threads` threads and wait.
using Fork = void (*)(void (*body)(void *), void *data, unsigned threads, unsigned flags);
extern Fork bh_fork;

// f(begin, end) over [0, n) in portions of `grain`; whoever is free takes the next one.
template <class F> void in_parallel(int64_t n, int64_t grain, int threads, const F &f) {
    struct Job {
        const F &f;
        int64_t n, grain;
        std::atomic<int64_t> next{0};
        static void run(void *data) {
            Job &job = *static_cast<Job *>(data);
            for (int64_t begin; (begin = job.next.fetch_add(job.grain, std::memory_order_relaxed)) < job.n;)
                job.f(begin, begin + job.grain < job.n ? begin + job.grain : job.n);
        }
    } job{f, n, grain};
    if (bh_fork && threads > 1 && n > grain)
        bh_fork(&Job::run, &job, static_cast<unsigned>(threads), 0);
    else
        Job::run(&job);
}

#define BH_EXPORT extern "C" __attribute__((visibility("default")))
