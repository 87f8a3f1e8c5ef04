// What the sources of the native library share: element types, work over threads, entry points.

#pragma once

#include <stddef.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

// ONNX's numbers of the element types.
enum { FLOAT32 = 1, FLOAT16 = 10, BFLOAT16 = 16 };

enum { DIRECTIONS = 4 };

// Runs body(context, i) for each i below count, on several threads.
struct threads {
    void (*run)(const struct threads *self, void (*body)(void *, size_t), void *context,
                size_t count);
    const void *of;
};

// Below as many operations, some 0.1 ms, other threads cost more than they help.
#define WORTH_THREADS 2e7

// Runs body(context, i) for each i below count, on several threads if that many operations in all
// are worth it.
INLINE void for_each(const struct threads *threads, void (*body)(void *, size_t), void *context,
                     int64_t count, double operations)
{
    if (operations >= WORTH_THREADS)
        threads->run(threads, body, context, (size_t)count);
    else
        for (int64_t i = 0; i < count; i++) body(context, (size_t)i);
}

// Correlation4d; see correlation/naive.py.
struct correlation {
    const void *query, *support, *weight; // [B,L,Nq,D], [B or 1,K,L,Ns,D], [B or 1,K,Ns]
    void *out;                            // [B,K,L,Nq,h'*w']
    int64_t batch, supports, weights, shots, layers, queries, height, width, channels, pool;
    int type;
};

// SelectiveScan2d; see selective_scan/naive.py.
struct scan {
    const void *x, *packed;                     // [S,H,W,D], [S,H,W,4,P]
    const float *dt_weight, *dt_bias, *a, *skip; // [4,D,R], [4,D], [4,D,N], [4,D]
    void *y;                                    // [S,H,W,D]
    int64_t sequences, height, width, channels, row, rank, states;
    int type;
};

// Both return 0, or 1 where there was no memory.
int correlation4d(const struct correlation *work, const struct threads *threads);
int selective_scan2d(const struct scan *work, const struct threads *threads);

// The number of windows along a side; `pool` may be far larger than the side.
INLINE int64_t windows_along(int64_t side, int64_t pool) { return (side - 1) / pool + 1; }

INLINE float from_bits(uint32_t bits)
{
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

INLINE uint32_t to_bits(float value)
{
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}

INLINE float from_half(uint16_t half)
{
    const uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13;
    // The exponents' biases differ by 112; the product is exact, for subnormals too.
    const uint32_t finite = to_bits(from_bits(magnitude) * 0x1p112f);
    const uint32_t bits = magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : finite;
    return from_bits(bits | (uint32_t)(half & 0x8000) << 16);
}

INLINE uint16_t to_half(float value)
{
    const uint32_t bits = to_bits(value), size = bits & 0x7fffffff;
    // A sum with 2^13 times the value's power of two (at least that of the smallest normal half)
    // rounds to the half's last bit; what remains is the half's bits, its exponent counted in.
    const float power = from_bits((size & 0x7f800000) < 0x38800000 ? 0x38800000 : size & 0x7f800000);
    const float rounded = (from_bits(size) + power * 0x1p13f) - power * 0x1p13f;
    const uint32_t half = to_bits(rounded * 0x1p-112f) >> 13;
    const uint32_t finite = rounded < 65520.0f ? half : 0x7c00;
    const uint32_t all = size > 0x7f800000 ? 0x7e00 : finite;
    return (uint16_t)(all | (bits >> 16 & 0x8000));
}

INLINE float from_bfloat(uint16_t half) { return from_bits((uint32_t)half << 16); }

INLINE uint16_t to_bfloat(float value)
{
    const uint32_t bits = to_bits(value);
    const uint32_t even = bits + 0x7fff + (bits >> 16 & 1);
    return (uint16_t)(((bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : even) >> 16);
}

// Copies `count` elements of a type to float32.
INLINE void widen(float *to, const void *from, int64_t first, int64_t count, int type)
{
    const uint16_t *half = (const uint16_t *)from + first;
    if (type == FLOAT32)
        __builtin_memcpy(to, (const float *)from + first, (size_t)count * 4);
    else if (type == FLOAT16)
        for (int64_t i = 0; i < count; i++) to[i] = from_half(half[i]);
    else
        for (int64_t i = 0; i < count; i++) to[i] = from_bfloat(half[i]);
}

// Copies `count` elements of float32 to a type.
INLINE void narrow(void *to, int64_t first, const float *from, int64_t count, int type)
{
    uint16_t *half = (uint16_t *)to + first;
    if (type == FLOAT32)
        __builtin_memcpy((float *)to + first, from, (size_t)count * 4);
    else if (type == FLOAT16)
        for (int64_t i = 0; i < count; i++) half[i] = to_half(from[i]);
    else
        for (int64_t i = 0; i < count; i++) half[i] = to_bfloat(from[i]);
}
