// The native operators as an ONNX Runtime custom-operator library.
//
// ONNX Runtime's packages bring no C header, so what is needed of its binary interface is declared
// here. The interface only ever grows: OrtApi is a table of functions whose places are fixed
// (onnxruntime_c_api.h; onnxruntime_c_api.cc asserts the number of entries of each version), and a
// custom operator states the version of the interface that it was written for: 17, since 1.17.

#include <stdlib.h>

#include "native.h"

enum { VERSION = 17 };

// Places in OrtApi: of version 1, which ends at 101, but for the last, of version 17 (266 to 275).
enum place {
    CREATE_STATUS = 0,
    CREATE_CUSTOM_OP_DOMAIN = 26,
    CUSTOM_OP_DOMAIN_ADD = 27,
    ADD_CUSTOM_OP_DOMAIN = 28,
    GET_TENSOR_MUTABLE_DATA = 51,
    GET_DIMENSIONS_COUNT = 61,
    GET_DIMENSIONS = 62,
    GET_TENSOR_TYPE_AND_SHAPE = 65,
    KERNEL_INFO_GET_ATTRIBUTE_INT64 = 86,
    KERNEL_CONTEXT_GET_INPUT = 90,
    KERNEL_CONTEXT_GET_OUTPUT = 91,
    RELEASE_TENSOR_TYPE_AND_SHAPE_INFO = 99,
    KERNEL_CONTEXT_PARALLEL_FOR = 274,
};

typedef void *status; // NULL: success
typedef void (*function)(void);
typedef const function *api;

struct api_base {
    api (*get_api)(uint32_t version);
    const char *(*get_version)(void);
};

// OrtCustomOp of version 17, in its order; later versions append to it.
struct custom_op {
    uint32_t version;
    void *(*create_kernel)(const struct custom_op *, api, const void *info);
    const char *(*name)(const struct custom_op *);
    const char *(*provider)(const struct custom_op *);
    int (*input_type)(const struct custom_op *, size_t);
    size_t (*inputs)(const struct custom_op *);
    int (*output_type)(const struct custom_op *, size_t);
    size_t (*outputs)(const struct custom_op *);
    void (*compute)(void *kernel, void *context);
    void (*destroy)(void *kernel);
    int (*input_kind)(const struct custom_op *, size_t);
    int (*output_kind)(const struct custom_op *, size_t);
    int (*input_memory)(const struct custom_op *, size_t);
    int (*variadic_inputs)(const struct custom_op *);
    int (*variadic_inputs_alike)(const struct custom_op *);
    int (*variadic_outputs)(const struct custom_op *);
    int (*variadic_outputs_alike)(const struct custom_op *);
    status (*create_kernel_2)(const struct custom_op *, api, const void *info, void **kernel);
    status (*compute_2)(void *kernel, void *context);
    status (*infer_shapes)(const struct custom_op *, void *context);
    int (*start_version)(const struct custom_op *);
    int (*end_version)(const struct custom_op *);
};

// An operator of ours in one element type.
struct operator {
    struct custom_op op; // first: ONNX Runtime hands it back
    const char *name;
    size_t inputs, typed; // the first `typed` inputs have the type, the rest are float32
    int type;
};

struct kernel {
    api api;
    int64_t height, width, pool;
    int type;
};

#define CALL(table, place, result, ...) ((result(*)(__VA_ARGS__))(table)[place])
#define TRY(expression)                       \
    do {                                      \
        const status tried = (expression);    \
        if (tried) return tried;              \
    } while (0)

static status fail(api api, const char *message)
{
    enum { ORT_FAIL = 1 };
    return CALL(api, CREATE_STATUS, status, int, const char *)(ORT_FAIL, message);
}

static const char *get_name(const struct custom_op *op) { return ((const struct operator *)op)->name; }
static const char *get_provider(const struct custom_op *op) { (void)op; return NULL; }
static size_t count_inputs(const struct custom_op *op) { return ((const struct operator *)op)->inputs; }
static size_t count_outputs(const struct custom_op *op) { (void)op; return 1; }
static int get_output_type(const struct custom_op *op, size_t i)
{
    (void)i;
    return ((const struct operator *)op)->type;
}
static int get_input_type(const struct custom_op *op, size_t i)
{
    const struct operator *ours = (const struct operator *)op;
    return i < ours->typed ? ours->type : FLOAT32;
}
static int zero_at(const struct custom_op *op, size_t i) { (void)op, (void)i; return 0; }
static int one(const struct custom_op *op) { (void)op; return 1; }
static int last_version(const struct custom_op *op) { (void)op; return INT32_MAX; }

static status create(const struct custom_op *op, api api, const void *info, void **made)
{
    struct kernel *kernel = calloc(1, sizeof *kernel);
    if (!kernel) return fail(api, "no memory");
    *kernel = (struct kernel){.api = api, .type = ((const struct operator *)op)->type};
    const char *names[] = {"height", "width", "pool"};
    int64_t *values[] = {&kernel->height, &kernel->width, &kernel->pool};
    const int grid = ((const struct operator *)op)->inputs == 3; // Correlation4d's
    for (int i = 0; grid && i < 3; i++) {
        const status failed = CALL(api, KERNEL_INFO_GET_ATTRIBUTE_INT64, status, const void *,
                                   const char *, int64_t *)(info, names[i], values[i]);
        if (failed) {
            free(kernel);
            return failed;
        }
    }
    *made = kernel;
    return NULL;
}

// Reads an input's data, and its shape, which must have `rank` dimensions.
static status read_input(api api, void *context, size_t index, size_t rank, int64_t *shape,
                         const void **data)
{
    const void *value;
    void *info;
    size_t found;
    TRY(CALL(api, KERNEL_CONTEXT_GET_INPUT, status, const void *, size_t, const void **)(
        context, index, &value));
    TRY(CALL(api, GET_TENSOR_TYPE_AND_SHAPE, status, const void *, void **)(value, &info));
    status failed = CALL(api, GET_DIMENSIONS_COUNT, status, const void *, size_t *)(info, &found);
    if (!failed && found != rank) failed = fail(api, "an input has the wrong number of dimensions");
    if (!failed)
        failed = CALL(api, GET_DIMENSIONS, status, const void *, int64_t *, size_t)(info, shape, rank);
    CALL(api, RELEASE_TENSOR_TYPE_AND_SHAPE_INFO, void, void *)(info);
    TRY(failed);
    return CALL(api, GET_TENSOR_MUTABLE_DATA, status, const void *, const void **)(value, data);
}

static status make_output(api api, void *context, const int64_t *shape, size_t rank, void **data)
{
    void *value;
    TRY(CALL(api, KERNEL_CONTEXT_GET_OUTPUT, status, void *, size_t, const int64_t *, size_t,
             void **)(context, 0, shape, rank, &value));
    return CALL(api, GET_TENSOR_MUTABLE_DATA, status, void *, void **)(value, data);
}

struct pool {
    api api;
    const void *context;
    status failed;
};

// Runs a loop on the session's own threads.
static void run_in_session(const struct threads *self, void (*body)(void *, size_t), void *context,
                           size_t count)
{
    struct pool *pool = (struct pool *)self->of;
    if (pool->failed || !count) return;
    pool->failed = CALL(pool->api, KERNEL_CONTEXT_PARALLEL_FOR, status, const void *,
                        void (*)(void *, size_t), size_t, size_t, void *)(pool->context, body, count,
                                                                          0, context);
}

static status finish(api api, int no_memory, status failed)
{
    if (failed) return failed;
    return no_memory ? fail(api, "no memory") : NULL;
}

static int same(const int64_t *a, const int64_t *b, size_t count)
{
    while (count && a[count - 1] == b[count - 1]) count--;
    return !count;
}

static status compute_correlation(void *made, void *context)
{
    const struct kernel *kernel = made;
    const api api = kernel->api;
    struct correlation work = {.height = kernel->height, .width = kernel->width,
                               .pool = kernel->pool, .type = kernel->type};
    int64_t query[4], support[5], weight[3];
    TRY(read_input(api, context, 0, 4, query, &work.query));
    TRY(read_input(api, context, 1, 5, support, &work.support));
    TRY(read_input(api, context, 2, 3, weight, &work.weight));
    // The attributes are the file's, so their product may be any number, or none.
    const int64_t height = kernel->height, width = kernel->width, tokens = support[3];
    const int grid = height > 0 && width > 0 && tokens % height == 0 && tokens / height == width;
    const int64_t of_support[] = {support[1], query[1], tokens, query[3]};
    const int64_t of_weight[] = {support[1], tokens};
    if (!grid || kernel->pool < 1 || !same(support + 1, of_support, 4) || !same(weight + 1, of_weight, 2) ||
        (support[0] != 1 && support[0] != query[0]) || (weight[0] != 1 && weight[0] != query[0]))
        return fail(api, "Correlation4d: the inputs' shapes do not fit together");
    work.batch = query[0], work.supports = support[0], work.weights = weight[0];
    work.shots = support[1], work.layers = query[1], work.queries = query[2];
    work.channels = query[3];
    const int64_t windows =
        windows_along(work.height, work.pool) * windows_along(work.width, work.pool);
    const int64_t shape[] = {work.batch, work.shots, work.layers, work.queries, windows};
    TRY(make_output(api, context, shape, 5, &work.out));
    struct pool pool = {api, context, NULL};
    const int no_memory = correlation4d(&work, &(struct threads){run_in_session, &pool});
    return finish(api, no_memory, pool.failed);
}

static status compute_scan(void *made, void *context)
{
    const struct kernel *kernel = made;
    const api api = kernel->api;
    struct scan work = {.type = kernel->type};
    int64_t x[4], packed[5], weight[3], bias[2], a[3], skip[2];
    TRY(read_input(api, context, 0, 4, x, &work.x));
    TRY(read_input(api, context, 1, 5, packed, &work.packed));
    TRY(read_input(api, context, 2, 3, weight, (const void **)&work.dt_weight));
    TRY(read_input(api, context, 3, 2, bias, (const void **)&work.dt_bias));
    TRY(read_input(api, context, 4, 3, a, (const void **)&work.a));
    TRY(read_input(api, context, 5, 2, skip, (const void **)&work.skip));
    const int64_t channels[] = {DIRECTIONS, x[3]};
    if (!same(packed, x, 3) || packed[3] != DIRECTIONS || packed[4] < weight[2] + 2 * a[2] ||
        !same(weight, channels, 2) || !same(bias, channels, 2) || !same(a, channels, 2) ||
        !same(skip, channels, 2))
        return fail(api, "SelectiveScan2d: the inputs' shapes do not fit together");
    work.sequences = x[0], work.height = x[1], work.width = x[2], work.channels = x[3];
    work.row = packed[4], work.rank = weight[2], work.states = a[2];
    TRY(make_output(api, context, x, 4, &work.y));
    struct pool pool = {api, context, NULL};
    const int no_memory = selective_scan2d(&work, &(struct threads){run_in_session, &pool});
    return finish(api, no_memory, pool.failed);
}

#define OPERATOR(of_name, of_inputs, of_typed, of_type, of_compute)                             \
    {                                                                                           \
        .op = {.version = VERSION, .name = get_name, .provider = get_provider,                  \
               .input_type = get_input_type, .inputs = count_inputs,                            \
               .output_type = get_output_type, .outputs = count_outputs, .destroy = free,       \
               .input_kind = zero_at, .output_kind = zero_at, .input_memory = zero_at,          \
               .variadic_inputs = one, .variadic_inputs_alike = one, .variadic_outputs = one,   \
               .variadic_outputs_alike = one, .create_kernel_2 = create,                        \
               .compute_2 = of_compute, .start_version = one, .end_version = last_version},     \
        .name = of_name, .inputs = of_inputs, .typed = of_typed, .type = of_type,               \
    }

static const struct operator operators[] = {
    OPERATOR("Correlation4d", 3, 3, FLOAT32, compute_correlation),
    OPERATOR("Correlation4d", 3, 3, FLOAT16, compute_correlation),
    OPERATOR("Correlation4d", 3, 3, BFLOAT16, compute_correlation),
    OPERATOR("SelectiveScan2d", 6, 2, FLOAT32, compute_scan),
    OPERATOR("SelectiveScan2d", 6, 2, FLOAT16, compute_scan),
    OPERATOR("SelectiveScan2d", 6, 2, BFLOAT16, compute_scan),
};

// ONNX Runtime calls this when the library is registered with a session's options, in any thread. The
// domain lives as long as the process: a session may outlive its options.
__attribute__((visibility("default"))) status RegisterCustomOps(void *options,
                                                                const struct api_base *base)
{
    static void *shared;
    const api api = base->get_api(VERSION);
    if (!api) return NULL; // older than any that this package accepts
    void *domain = __atomic_load_n(&shared, __ATOMIC_ACQUIRE);
    if (!domain) {
        TRY(CALL(api, CREATE_CUSTOM_OP_DOMAIN, status, const char *, void **)("uino", &domain));
        for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
            TRY(CALL(api, CUSTOM_OP_DOMAIN_ADD, status, void *, const void *)(domain, &operators[i]));
        __atomic_store_n(&shared, domain, __ATOMIC_RELEASE);
    }
    return CALL(api, ADD_CUSTOM_OP_DOMAIN, status, void *, void *)(options, domain);
}
