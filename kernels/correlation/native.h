// Correlation4d on a processor, for one instruction set: queries across a vector's lanes.
//
// Tokens are scaled to length 1 and laid out for products of SUPPORTS support tokens with
// QUERY_VECTORS vectors of queries, whose sums stay in registers over all channels. Each cosine is
// rectified, weighted and added to its window at once: the volume is never in memory. The supports
// of one layer and shot are laid out at a time, then blocks of queries are shared out over threads.

enum {
    FORM(PANEL) = QUERY_VECTORS * LANES,
    FORM(BLOCK) = (128 + FORM(PANEL) - 1) / FORM(PANEL) * FORM(PANEL), // queries of an item
};
#define PANEL FORM(PANEL)
#define BLOCK FORM(BLOCK)

struct FORM(correlating) {
    const struct correlation *work;
    float *panels;  // the supports: [panel][D][SUPPORTS]
    int32_t *window; // of each support token
    float *share;   // of a cell in its window's mean, by window
    int64_t windows, of_support, of_weight, shot, layer;
    int64_t first_query; // the first of the queries that meet these supports, [B] in all
    int64_t blocks;      // of queries in an image
    int failed;
};

// Lays `count` tokens of D channels out as [D][stride], scaled to length 1, with zeros up to the
// stride. `rows` holds stride * D floats.
INLINE void FORM(lay_out)(float *to, float *rows, const void *tokens, int64_t first, int64_t count,
                          int64_t channels, const int64_t stride, int type)
{
    widen(rows, tokens, first * channels, count * channels, type);
    for (int64_t i = 0; i < count; i++) {
        float *row = rows + i * channels;
        vec squares = {0};
        int64_t d = 0;
        for (; d + LANES <= channels; d += LANES) {
            const vec part = FORM(load)(row + d);
            squares += part * part;
        }
        float square = 0.0f;
        for (int lane = 0; lane < LANES; lane++) square += squares[lane];
        for (; d < channels; d++) square += row[d] * row[d];
        const float length = __builtin_sqrtf(square), scale = 1.0f / (length > EPS ? length : EPS);
        for (d = 0; d < channels; d++) row[d] *= scale;
    }
    for (int64_t i = count * channels; i < stride * channels; i++) rows[i] = 0.0f;
    for (int64_t d = 0; d < channels; d++)
        UNROLL for (int64_t i = 0; i < stride; i++) to[d * stride + i] = rows[i * channels + d];
}

static void FORM(support_panel)(void *context, size_t index)
{
    struct FORM(correlating) *now = context;
    const struct correlation *work = now->work;
    const int64_t channels = work->channels, tokens = work->height * work->width;
    const int64_t first = (int64_t)index * SUPPORTS;
    const int64_t count = tokens - first < SUPPORTS ? tokens - first : SUPPORTS;
    const int64_t at = ((now->of_support * work->shots + now->shot) * work->layers + now->layer);
    float *rows = aligned_memory(SUPPORTS * channels);
    if (!rows) {
        __atomic_store_n(&now->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    FORM(lay_out)(now->panels + first * channels, rows, work->support, at * tokens + first, count,
                  channels, SUPPORTS, work->type);
    free(rows);
}

// Adds a panel of supports, times a panel of queries, to the queries' windows [window][BLOCK].
INLINE void FORM(tile)(const struct FORM(correlating) *now, const float *supports,
                       const float *queries, const float *weight, float *pooled, int64_t first,
                       int64_t count)
{
    const int64_t channels = now->work->channels;
    vec sum[SUPPORTS][QUERY_VECTORS];
    UNROLL for (int i = 0; i < SUPPORTS; i++)
        UNROLL for (int v = 0; v < QUERY_VECTORS; v++) sum[i][v] = FORM(all)(0.0f);
    for (int64_t d = 0; d < channels; d++) {
        vec of_query[QUERY_VECTORS];
        UNROLL for (int v = 0; v < QUERY_VECTORS; v++)
            of_query[v] = FORM(load)(queries + d * PANEL + v * LANES);
        UNROLL for (int i = 0; i < SUPPORTS; i++) {
            const float of_support = supports[d * SUPPORTS + i];
            UNROLL for (int v = 0; v < QUERY_VECTORS; v++) sum[i][v] += of_support * of_query[v];
        }
    }
    UNROLL for (int i = 0; i < SUPPORTS; i++) {
        if (i >= count) break;
        float *row = pooled + (int64_t)now->window[first + i] * BLOCK;
        UNROLL for (int v = 0; v < QUERY_VECTORS; v++) {
            const vec positive = FORM(at_least)(0.0f, sum[i][v]) * weight[first + i];
            FORM(store)(row + v * LANES, FORM(load)(row + v * LANES) + positive);
        }
    }
}

// Correlates one block of an image's queries with the supports that are laid out.
static void FORM(query_block)(void *context, size_t index)
{
    struct FORM(correlating) *now = context;
    const struct correlation *work = now->work;
    const int64_t channels = work->channels, tokens = work->height * work->width;
    const int64_t image = now->first_query + (int64_t)index / now->blocks;
    const int64_t first = (int64_t)index % now->blocks * BLOCK;
    const int64_t count = work->queries - first < BLOCK ? work->queries - first : BLOCK;
    const int64_t of_rows = PANEL * channels > now->windows ? PANEL * channels : now->windows;
    const int64_t of_pooled = now->windows * BLOCK;
    float *queries = aligned_memory(BLOCK * channels + of_pooled + tokens + of_rows);
    if (!queries) {
        __atomic_store_n(&now->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    float *pooled = queries + BLOCK * channels, *weight = pooled + of_pooled;
    float *rows = weight + tokens;
    const int64_t of_weight = work->weights == 1 ? 0 : image;
    widen(weight, work->weight, (of_weight * work->shots + now->shot) * tokens, tokens, work->type);
    for (int64_t s = 0; s < tokens; s++) weight[s] *= now->share[now->window[s]];
    for (int64_t i = 0; i < of_pooled; i++) pooled[i] = 0.0f;
    for (int64_t q = 0; q < count; q += PANEL)
        FORM(lay_out)(queries + q * channels, rows, work->query,
                      (image * work->layers + now->layer) * work->queries + first + q,
                      count - q < PANEL ? count - q : PANEL, channels, PANEL, work->type);
    for (int64_t s = 0; s < tokens; s += SUPPORTS)
        for (int64_t q = 0; q < count; q += PANEL)
            FORM(tile)(now, now->panels + s * channels, queries + q * channels, weight, pooled + q,
                       s, tokens - s < SUPPORTS ? tokens - s : SUPPORTS);
    const int64_t volume = (image * work->shots + now->shot) * work->layers + now->layer;
    for (int64_t q = 0; q < count; q++) {
        for (int64_t w = 0; w < now->windows; w++) rows[w] = pooled[w * BLOCK + q];
        narrow(work->out, (volume * work->queries + first + q) * now->windows, rows, now->windows,
               work->type);
    }
    free(queries);
}

// Assigns the support tokens to their windows.
static void FORM(divide)(struct FORM(correlating) *now)
{
    const struct correlation *work = now->work;
    const int64_t pool = work->pool, across = windows_along(work->width, pool);
    for (int64_t w = 0; w < now->windows; w++) now->share[w] = 0.0f;
    for (int64_t y = 0; y < work->height; y++)
        for (int64_t x = 0; x < work->width; x++) {
            const int64_t window = y / pool * across + x / pool;
            now->window[y * work->width + x] = (int32_t)window;
            now->share[window] += 1.0f;
        }
    for (int64_t w = 0; w < now->windows; w++) now->share[w] = 1.0f / now->share[w];
}

static int FORM(correlation4d)(const struct correlation *work, const struct threads *threads)
{
    const int64_t tokens = work->height * work->width;
    const int64_t panels = (tokens + SUPPORTS - 1) / SUPPORTS;
    struct FORM(correlating) now = {
        .work = work,
        .windows = windows_along(work->height, work->pool) * windows_along(work->width, work->pool),
        .blocks = (work->queries + BLOCK - 1) / BLOCK,
    };
    now.panels = aligned_memory(panels * SUPPORTS * work->channels + now.windows + tokens);
    if (!now.panels) return 1;
    now.share = now.panels + panels * SUPPORTS * work->channels;
    now.window = (int32_t *)(now.share + now.windows);
    FORM(divide)(&now);
    const double elements = (double)(tokens * work->channels); // of the supports
    const int64_t images = work->supports == 1 ? work->batch : 1; // that meet the same supports
    for (now.of_support = 0; now.of_support < work->supports; now.of_support++)
        for (now.shot = 0; now.shot < work->shots; now.shot++)
            for (now.layer = 0; now.layer < work->layers; now.layer++) {
                now.first_query = now.of_support;
                for_each(threads, FORM(support_panel), &now, panels, 64 * elements);
                for_each(threads, FORM(query_block), &now, images * now.blocks,
                         2 * elements * (double)(images * work->queries));
            }
    free(now.panels);
    return now.failed;
}

#undef PANEL
#undef BLOCK
