// Vectors of one instruction set: included once for each, with LANES and FORM defined.
//
// gcc's vector extension, so that one source serves AVX-512, AVX2, NEON and plain SSE2.

typedef float FORM(vec) __attribute__((vector_size(4 * LANES)));
typedef int32_t FORM(ivec) __attribute__((vector_size(4 * LANES)));
// The same vectors at any address.
typedef float FORM(loose) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define vec FORM(vec)
#define ivec FORM(ivec)

INLINE vec FORM(load)(const float *from) { return *(const FORM(loose) *)from; }
INLINE void FORM(store)(float *to, vec value) { *(FORM(loose) *)to = value; }
INLINE vec FORM(all)(float value) { return value - (vec){0}; }
// The larger of a bound and a value, which may be no number: then the result is none either.
INLINE vec FORM(at_least)(float bound, vec value) { return (vec)LARGER(FORM(all)(bound), value); }

// 2^z to 2e-9 of its size before rounding, exactly 1 at 0; z below -126 gives the smallest normal.
INLINE vec FORM(exp2)(vec z)
{
    z = FORM(at_least)(-126.0f, z);
    const vec shifted = z + 12582912.0f; // 1.5 * 2^23: the integer nearest to z in the low bits
    const vec f = z - (shifted - 12582912.0f);
    vec p = 1.53458115e-4f * f + 1.33999315e-3f;
    p = p * f + 9.61848896e-3f;
    p = p * f + 5.55032878e-2f;
    p = p * f + 2.40226469e-1f;
    p = p * f + 6.93147182e-1f;
    p = p * f + 1.0f;
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

// log(1 + exp(v)) to 2e-7 of its size; the polynomial is that of the Triton kernel.
INLINE vec FORM(softplus)(vec v)
{
    const vec size = (vec)((ivec)v & 0x7fffffff);
    const vec e = FORM(exp2)(size * -1.44269504f);
    vec p = 0.005253457929939032f * e - 0.02958850748836994f;
    p = p * e + 0.07836166769266129f;
    p = p * e - 0.13674770295619965f;
    p = p * e + 0.19111430644989014f;
    p = p * e - 0.24844369292259216f;
    p = p * e + 0.33319270610809326f;
    p = p * e - 0.49999502301216125f;
    p = p * e + 1.0f;
    return FORM(at_least)(0.0f, v) + e * p;
}
