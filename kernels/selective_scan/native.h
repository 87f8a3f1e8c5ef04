// SelectiveScan2d on a processor, for one instruction set: channels across a vector's lanes.
//
// An item of work is one sequence and SCAN_VECTORS vectors of its channels. It runs the four
// directions one after another; states stay in registers, and y is added up in memory.

enum { FORM(CHUNK) = SCAN_VECTORS * LANES };
#define CHUNK FORM(CHUNK)

// A direction's parameters for one chunk of channels, channels last and zeros beyond the last.
struct FORM(parameters) {
    float bias[CHUNK], skip[CHUNK];
    float *weight; // [R][CHUNK]
    float *a;      // [N][CHUNK], times log2(e)
};

struct FORM(plane) {
    const float *x, *packed;
    float *y, *state; // state: [N][CHUNK]
    int64_t x_row, y_row, packed_row; // floats from one cell to the next
};

// Visits one cell. Where states and rank are constants, all loops unroll.
INLINE void FORM(visit)(const struct FORM(parameters) *p, const float *x, const float *packed,
                        float *y, vec *state, int add, const int64_t rank, const int64_t states)
{
    vec delta[SCAN_VECTORS], input[SCAN_VECTORS], sum[SCAN_VECTORS];
    UNROLL for (int v = 0; v < SCAN_VECTORS; v++) {
        vec raised = FORM(load)(p->bias + v * LANES);
        UNROLL for (int64_t r = 0; r < rank; r++)
            raised += packed[r] * FORM(load)(p->weight + r * CHUNK + v * LANES);
        const vec of_x = FORM(load)(x + v * LANES);
        delta[v] = FORM(softplus)(raised);
        input[v] = delta[v] * of_x;
        sum[v] = FORM(load)(p->skip + v * LANES) * of_x;
        if (add) sum[v] += FORM(load)(y + v * LANES);
    }
    UNROLL for (int64_t n = 0; n < states; n++) {
        const float b = packed[rank + n], c = packed[rank + states + n];
        UNROLL for (int v = 0; v < SCAN_VECTORS; v++) {
            const vec a = FORM(load)(p->a + n * CHUNK + v * LANES);
            vec *const s = state + n * SCAN_VECTORS + v;
            *s = FORM(exp2)(delta[v] * a) * *s + input[v] * b;
            sum[v] += *s * c;
        }
    }
    UNROLL for (int v = 0; v < SCAN_VECTORS; v++) FORM(store)(y + v * LANES, sum[v]);
}

// Scans a plane in one direction.
INLINE void FORM(direction)(const struct scan *work, const struct FORM(plane) *plane,
                            const struct FORM(parameters) *p, int g, const int64_t rank,
                            const int64_t states, vec *state)
{
    const int64_t height = work->height, width = work->width, cells = height * width;
    const int by_column = g & 1, backwards = g >= 2;
    const int64_t lines = by_column ? width : height, length = by_column ? height : width;
    const int64_t step = by_column ? width : 1, line = by_column ? 1 : width;
    for (int64_t n = 0; n < states * SCAN_VECTORS; n++) state[n] = FORM(all)(0.0f);
    for (int64_t i = 0; i < lines; i++)
        for (int64_t j = 0; j < length; j++) {
            const int64_t there = i * line + j * step;
            const int64_t cell = backwards ? cells - 1 - there : there;
            FORM(visit)(p, plane->x + cell * plane->x_row,
                        plane->packed + cell * plane->packed_row + g * work->row,
                        plane->y + cell * plane->y_row, state, g > 0, rank, states);
        }
}

static void FORM(scan_plane)(const struct scan *work, const struct FORM(plane) *plane,
                             struct FORM(parameters) *p, int64_t first)
{
    const int64_t rank = work->rank, states = work->states, channels = work->channels;
    const int64_t count = channels - first < CHUNK ? channels - first : CHUNK;
    for (int g = 0; g < DIRECTIONS; g++) {
        for (int64_t i = 0; i < CHUNK; i++) {
            const int64_t channel = g * channels + first + (i < count ? i : 0);
            const float used = i < count ? 1.0f : 0.0f;
            p->bias[i] = used * work->dt_bias[channel];
            p->skip[i] = used * work->skip[channel];
            for (int64_t r = 0; r < rank; r++)
                p->weight[r * CHUNK + i] = used * work->dt_weight[channel * rank + r];
            for (int64_t n = 0; n < states; n++)
                p->a[n * CHUNK + i] = used * 1.44269504f * work->a[channel * states + n];
        }
        vec four[4 * SCAN_VECTORS];
        if (states == 4 && rank == 2)
            FORM(direction)(work, plane, p, g, 2, 4, four);
        else if (states == 4 && rank == 4)
            FORM(direction)(work, plane, p, g, 4, 4, four);
        else
            FORM(direction)(work, plane, p, g, rank, states, (vec *)plane->state);
    }
}

struct FORM(scanning) {
    const struct scan *work;
    int failed;
};

// Scans item `index`: one sequence, one chunk of channels.
static void FORM(scan_item)(void *context, size_t index)
{
    struct FORM(scanning) *scanning = context;
    const struct scan *work = scanning->work;
    const int64_t channels = work->channels, cells = work->height * work->width;
    const int64_t chunks = (channels + CHUNK - 1) / CHUNK;
    const int64_t sequence = (int64_t)index / chunks, first = (int64_t)index % chunks * CHUNK;
    const int64_t count = channels - first < CHUNK ? channels - first : CHUNK;
    const int64_t packed_row = DIRECTIONS * work->row;
    // Half types, and the channels of a last and partial chunk, are laid out in float32 first.
    const int wide = work->type == FLOAT32, direct = wide && count == CHUNK;
    const int64_t of_plane = direct ? 0 : cells * CHUNK, of_packed = wide ? 0 : cells * packed_row;
    const int64_t of_rows = (work->rank + 2 * work->states) * CHUNK;
    float *memory = aligned_memory(2 * of_plane + of_packed + of_rows);
    if (!memory) {
        __atomic_store_n(&scanning->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    struct FORM(parameters) p = {.a = memory + work->states * CHUNK};
    p.weight = p.a + work->states * CHUNK;
    struct FORM(plane) plane = {.state = memory, .packed_row = packed_row};
    float *packed = memory + of_rows, *x = packed + of_packed, *y = x + of_plane;
    const int64_t plane_at = sequence * cells * channels + first;
    if (wide) {
        plane.packed = (const float *)work->packed + sequence * cells * packed_row;
    } else {
        widen(packed, work->packed, sequence * cells * packed_row, cells * packed_row, work->type);
        plane.packed = packed;
    }
    if (direct) {
        plane.x = (const float *)work->x + plane_at;
        plane.y = (float *)work->y + plane_at;
        plane.x_row = plane.y_row = channels;
    } else {
        for (int64_t cell = 0; cell < cells; cell++) {
            widen(x + cell * CHUNK, work->x, plane_at + cell * channels, count, work->type);
            for (int64_t i = count; i < CHUNK; i++) x[cell * CHUNK + i] = 0.0f;
        }
        plane.x = x;
        plane.y = y;
        plane.x_row = plane.y_row = CHUNK;
    }
    FORM(scan_plane)(work, &plane, &p, first);
    if (!direct)
        for (int64_t cell = 0; cell < cells; cell++)
            narrow(work->y, plane_at + cell * channels, y + cell * CHUNK, count, work->type);
    free(memory);
}

static int FORM(selective_scan2d)(const struct scan *work, const struct threads *threads)
{
    struct FORM(scanning) scanning = {work, 0};
    const int64_t chunks = (work->channels + CHUNK - 1) / CHUNK;
    const double updates = (double)(DIRECTIONS * work->sequences * work->height * work->width) *
                           (double)(work->channels * work->states);
    for_each(threads, FORM(scan_item), &scanning, work->sequences * chunks, 20 * updates);
    return scanning.failed;
}

#undef CHUNK
