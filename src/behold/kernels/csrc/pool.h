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

// The same for what lies in memory in order: each thread has a part of its own, and helps the others after that.
template <class F> void in_parallel_parts(int64_t n, int64_t grain, int threads, const F &f) {
    constexpr int MOST = 64;
    struct Job {
        const F &f;
        int64_t n, grain;
        int parts;
        std::atomic<int> begun{0};
        struct alignas(64) Part {
            std::atomic<int64_t> next;
        } of[MOST];
        int64_t first(int part) const { return n * part / parts; }
        static void run(void *data) {
            Job &job = *static_cast<Job *>(data);
            const int own = job.begun.fetch_add(1, std::memory_order_relaxed);
            for (int i = 0; i < job.parts; i++) {
                const int part = (own + i) % job.parts;
                const int64_t last = job.first(part + 1);
                for (int64_t begin; (begin = job.of[part].next.fetch_add(job.grain, std::memory_order_relaxed)) < last;)
                    job.f(begin, begin + job.grain < last ? begin + job.grain : last);
            }
        }
    };
    if (!bh_fork || threads <= 1 || n <= grain) {
        f(0, n);
        return;
    }
    Job job{f, n, grain, threads < MOST ? threads : MOST};
    for (int i = 0; i < job.parts; i++) job.of[i].next.store(job.first(i), std::memory_order_relaxed);
    bh_fork(&Job::run, &job, static_cast<unsigned>(threads), 0);
}

#define BH_EXPORT extern "C" __attribute__((visibility("default")))
