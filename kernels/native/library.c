// The native operators: one form for each instruction set, chosen at run time, and the entry points.

#include <pthread.h>
#include <stdlib.h>
#if defined(__aarch64__)
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

#include "native.h"

#define EPS 1e-6f // identity.EPS
#define UNROLL _Pragma("GCC unroll 16")

#define JOIN(name, suffix) name##_##suffix
#define JOINED(name, suffix) JOIN(name, suffix)
#define FORM(name) JOINED(name, SUFFIX)

// Returns memory for `count` floats at the start of a cache line; `free` releases it.
static float *aligned_memory(int64_t count)
{
    return aligned_alloc(64, ((size_t)count * 4 + 64) / 64 * 64);
}

// Without one of these, vectors are those that every processor of the architecture has.
#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define SUFFIX avx512
#define LANES 16
#define LARGER(a, b) _mm512_max_ps((__m512)(a), (__m512)(b))
#define SCAN_VECTORS 2
#define SUPPORTS 12
#define QUERY_VECTORS 2
#include "form.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define SUFFIX avx2
#define LANES 8
#define LARGER(a, b) _mm256_max_ps((__m256)(a), (__m256)(b))
#define SCAN_VECTORS 2
#define SUPPORTS 6
#define QUERY_VECTORS 2
#include "form.h"
#pragma GCC pop_options
#endif

#define SUFFIX plain
#define LANES 4
#define SCAN_VECTORS 2
#if defined(__aarch64__)
#define LARGER(a, b) vmaxq_f32((float32x4_t)(a), (float32x4_t)(b))
#define SUPPORTS 8
#define QUERY_VECTORS 3
#else
#define LARGER(a, b) _mm_max_ps((__m128)(a), (__m128)(b))
#define SUPPORTS 6
#define QUERY_VECTORS 2
#endif
#include "form.h"

struct form {
    const char *name;
    int (*correlation4d)(const struct correlation *, const struct threads *);
    int (*selective_scan2d)(const struct scan *, const struct threads *);
    int runs;
};

// Best first; `runs` is set when the library is loaded.
static struct form forms[] = {
#if defined(__x86_64__)
    {"AVX-512", correlation4d_avx512, selective_scan2d_avx512, 0},
    {"AVX2", correlation4d_avx2, selective_scan2d_avx2, 0},
    {"SSE2", correlation4d_plain, selective_scan2d_plain, 1},
#else
    {"NEON", correlation4d_plain, selective_scan2d_plain, 1},
#endif
};
enum { FORMS = sizeof forms / sizeof *forms };
static const struct form *chosen;

__attribute__((constructor)) static void choose(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    forms[0].runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    forms[1].runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
    forms[0].runs = forms[0].runs && forms[1].runs;
#endif
    for (chosen = forms; !chosen->runs;) chosen++;
}

int correlation4d(const struct correlation *work, const struct threads *threads)
{
    return chosen->correlation4d(work, threads);
}

int selective_scan2d(const struct scan *work, const struct threads *threads)
{
    return chosen->selective_scan2d(work, threads);
}

struct shared {
    void (*body)(void *, size_t);
    void *context;
    size_t count, next;
};

static void *take_items(void *argument)
{
    struct shared *shared = argument;
    for (size_t i; (i = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED)) < shared->count;)
        shared->body(shared->context, i);
    return NULL;
}

// Starts threads for one loop and waits for them: microseconds, beside milliseconds of work. Where
// no thread can be started, the caller does the work.
static void run_threads(const struct threads *self, void (*body)(void *, size_t), void *context,
                        size_t count)
{
    enum { MOST = 256 };
    const size_t asked = (size_t) * (const int *)self->of;
    const size_t wanted = (asked < count ? asked : count) < MOST ? (asked < count ? asked : count) : MOST;
    struct shared shared = {body, context, count, 0};
    pthread_t others[MOST];
    size_t started = 0;
    while (started + 1 < wanted && !pthread_create(&others[started], NULL, take_items, &shared))
        started++;
    take_items(&shared);
    while (started) pthread_join(others[--started], NULL);
}

#define EXPORT __attribute__((visibility("default")))

// Returns the name of the i-th form that runs here, best first; NULL after the last.
EXPORT const char *uino_form(int i)
{
    for (int f = 0; f < FORMS; f++)
        if (forms[f].runs && i-- == 0) return forms[f].name;
    return NULL;
}

// Chooses the i-th of the forms that run here, for tests.
EXPORT void uino_choose(int i)
{
    for (int f = 0; f < FORMS; f++)
        if (forms[f].runs && i-- == 0) chosen = &forms[f];
}

EXPORT int uino_correlation4d(int type, const void *query, const void *support, const void *weight,
                              void *out, const int64_t *sizes, int count)
{
    const struct threads threads = {run_threads, &count};
    const struct correlation work = {
        .query = query, .support = support, .weight = weight, .out = out,
        .batch = sizes[0], .supports = sizes[1], .weights = sizes[2], .shots = sizes[3],
        .layers = sizes[4], .queries = sizes[5], .height = sizes[6], .width = sizes[7],
        .channels = sizes[8], .pool = sizes[9], .type = type,
    };
    return correlation4d(&work, &threads);
}

EXPORT int uino_selective_scan2d(int type, const void *x, const void *packed,
                                 const float *dt_weight, const float *dt_bias, const float *a,
                                 const float *skip, void *y, const int64_t *sizes, int count)
{
    const struct threads threads = {run_threads, &count};
    const struct scan work = {
        .x = x, .packed = packed, .dt_weight = dt_weight, .dt_bias = dt_bias, .a = a,
        .skip = skip, .y = y, .sequences = sizes[0], .height = sizes[1], .width = sizes[2],
        .channels = sizes[3], .row = sizes[4], .rank = sizes[5], .states = sizes[6], .type = type,
    };
    return selective_scan2d(&work, &threads);
}
