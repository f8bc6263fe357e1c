/* The parts of a packed step between its matrix products, for CPUs: normalisation, rotary positions and attention.

   Compiled by kernels.py for the machine that it runs on. Everything is float32 and row-major; a "head" is a query
   head, of which `heads / kv_heads` share each key/value head. Loops are written for the compiler's vectoriser.
   What a token's output is depends on nothing but that token and what it sees: not on the batch, not on threads. */

#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 16       /* keys lie in blocks of as many tokens: (size, LANES), so that a lane is a token */
#define TOKENS_A_JOB 8 /* tokens that a thread takes at a time */

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

/* What a token sees: three runs of keys, each at the beginning of a slot of a stack (images, groups, sequences). */
typedef struct {
    int64_t stack, slot, length; /* its own sequence; the token itself is the last, and is stored there */
    int64_t group_slot, group_length;
    int64_t image_slot, image_length;
} Token;

/* exp(x) for x within 87 of 0, and at that end beyond; Cody and Waite's reduction and Cephes' polynomial, whose error is
   two units in the last place. */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 87.0f ? 87.0f : x;
    float n = floorf(x * 1.44269504088896341f + 0.5f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    union { int32_t bits; float value; } power = {.bits = ((int32_t)n + 127) << 23};
    return p * power.value;
}

INLINE float inverse_norm(const float *x, int64_t size, float eps) {
    float sum = 0;
    for (int64_t i = 0; i < size; i++) sum += x[i] * x[i];
    return 1.0f / sqrtf(sum / size + eps);
}

/* out = weight * x / rms(x), row by row: (rows, size). */
void rms_norm(const float *x, const float *weight, float eps, int64_t rows, int64_t size, float *out, int threads) {
#pragma omp parallel for num_threads(threads) if (rows > 16)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * size;
        float *to = out + row * size, scale = inverse_norm(from, size, eps);
        for (int64_t i = 0; i < size; i++) to[i] = weight[i] * (from[i] * scale);
    }
}

/* out = silu(gate) * up, of rows that hold the gate's values and then the up's: (rows, 2 * size) -> (rows, size). */
void silu_mul(const float *gate_up, int64_t rows, int64_t size, float *out, int threads) {
#pragma omp parallel for num_threads(threads) if (rows > 4)
    for (int64_t row = 0; row < rows; row++) {
        const float *gate = gate_up + row * 2 * size, *up = gate + size;
        float *to = out + row * size;
        for (int64_t i = 0; i < size; i++) to[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
    }
}

/* Whether x is NaN or infinite, by its bits: the compiler is told that no value is. */
INLINE int odd(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return (bits & 0x7f800000u) == 0x7f800000u;
}

/* One head's normalisation, rotary position and scale; `stride` is between the values that are written. Says whether any
   of them is NaN or infinite. */
INLINE int place(const float *in, const float *weight, const float *cosine, const float *sine, float eps, float scale,
                  int size, int stride, float *out) {
    float norm = inverse_norm(in, size, eps), turned[size];
    int half = size / 2;
    for (int d = 0; d < half; d++) {
        float a = weight[d] * (in[d] * norm), b = weight[d + half] * (in[d + half] * norm);
        turned[d] = (a * cosine[d] - b * sine[d]) * scale;
        turned[d + half] = (b * cosine[d + half] + a * sine[d + half]) * scale;
    }
    int found = 0;
    for (int d = 0; d < size; d++) found |= odd(turned[d]);
    for (int d = 0; d < size; d++) out[d * stride] = turned[d];
    return found;
}

/* Scores of `many` queries over `wide` blocks of one head's keys: scores[q * row + t]. */
INLINE void score_some(const float *const *queries, int many, int wide, int size, const float *keys, float *scores,
                       int64_t row) {
    Vector sums[4][4];
    for (int q = 0; q < many; q++)
        for (int j = 0; j < wide; j++) sums[q][j] = (Vector){0};
    for (int d = 0; d < size; d++)
        for (int j = 0; j < wide; j++) {
            Vector key = *(const Vector *)(keys + (j * size + d) * LANES);
            for (int q = 0; q < many; q++) sums[q][j] += queries[q][d] * key;
        }
    for (int q = 0; q < many; q++)
        for (int j = 0; j < wide; j++) *(Vector *)(scores + q * row + j * LANES) = sums[q][j];
}

/* Calls SOME(count, wide) for `many` queries, as many at a time as fit into the registers. */
#define IN_REGISTERS(wide)                                                                                            \
    SOME(4, wide);                                                                                                    \
    SOME(2, wide);                                                                                                    \
    SOME(1, wide);

/* `many` queries over the first `length` keys (whole blocks of them), scores in rows of `row`. */
INLINE void score(const float *const *queries, int many, int size, const float *keys, int64_t length, float *scores,
                  int64_t row) {
    int64_t blocks = (length + LANES - 1) / LANES;
    for (int64_t b = 0, wide; b < blocks; b += wide) {
        int q = 0;
        wide = b + 4 <= blocks ? 4 : 1;
#define SOME(count, vectors)                                                                                          \
    for (; q + count <= many; q += count)                                                                             \
    score_some(queries + q, count, vectors, size, keys + b * size * LANES, scores + q * row + b * LANES, row)
        if (wide == 4) {
            IN_REGISTERS(4)
        } else {
            IN_REGISTERS(1)
        }
#undef SOME
    }
}

/* out[q] += sum over t of weights[q * row + t] * values[t], for `many` queries at once and `wide` vectors of each. */
INLINE void weigh_some(const float *weights, int64_t row, int many, const float *values, int64_t length, int size,
                       int wide, float *out) {
    Vector sums[4][4];
    for (int q = 0; q < many; q++)
        for (int j = 0; j < wide; j++) sums[q][j] = *(Vector *)(out + q * size + j * LANES);
    for (int64_t t = 0; t < length; t++)
        for (int j = 0; j < wide; j++) {
            Vector value = *(const Vector *)(values + t * size + j * LANES);
            for (int q = 0; q < many; q++) sums[q][j] += weights[q * row + t] * value;
        }
    for (int q = 0; q < many; q++)
        for (int j = 0; j < wide; j++) *(Vector *)(out + q * size + j * LANES) = sums[q][j];
}

/* The same for all dimensions and any number of queries. */
INLINE void weigh(const float *weights, int64_t row, int many, const float *values, int64_t length, int size,
                  float *out) {
    for (int d = 0, wide; d < size; d += wide * LANES) {
        int q = 0;
        wide = size - d >= 4 * LANES ? 4 : 1;
#define SOME(count, vectors)                                                                                          \
    for (; q + count <= many; q += count)                                                                             \
    weigh_some(weights + q * row, row, count, values + d, length, size, vectors, out + q * size + d)
        if (wide == 4) {
            IN_REGISTERS(4)
        } else {
            IN_REGISTERS(1)
        }
#undef SOME
    }
}

/* One query's scores over its three runs become weights of sum 1; those of a run beyond its length, up to `filled`,
   become 0. */
INLINE void softmax(float *scores, const int64_t starts[3], const int64_t lengths[3], const int64_t filled[3]) {
    float top = -FLT_MAX, sum = 0;
    for (int run = 0; run < 3; run++)
        for (int64_t t = 0; t < lengths[run]; t++) {
            float score = scores[starts[run] + t];
            top = score > top ? score : top;
        }
    for (int run = 0; run < 3; run++) {
        float *line = scores + starts[run];
        for (int64_t t = 0; t < lengths[run]; t++) {
            line[t] = exponential(line[t] - top);
            sum += line[t];
        }
        for (int64_t t = lengths[run]; t < filled[run]; t++) line[t] = 0;
    }
    float scale = 1.0f / sum;
    for (int run = 0; run < 3; run++)
        for (int64_t t = 0; t < lengths[run]; t++) scores[starts[run] + t] *= scale;
}

typedef struct {
    int64_t stack, slot, length;
} Run;

INLINE Run run_of(const Token *token, int level) {
    if (level == 0) return (Run){0, token->image_slot, token->image_length};
    if (level == 1) return (Run){1, token->group_slot, token->group_length};
    return (Run){token->stack, token->slot, token->length};
}

typedef struct {
    const float *qkv;
    float *const *stacks;
    const int64_t *capacities;
    int heads, kv_heads, size;
    float *out;
} Layer;

/* Attention of tokens [first, end) with one key/value head; `scores` has room for all their queries. */
INLINE void attend(const Layer *layer, const Token *tokens, int64_t first, int64_t end, int64_t head, float *scores,
                   int64_t row, int group, int size) {
    int width = (layer->heads + 2 * layer->kv_heads) * size;
    const float *queries[TOKENS_A_JOB * group];
    float out[TOKENS_A_JOB * group * size];
    int64_t count = end - first, starts[3], longest[3] = {0, 0, 0};
    for (int64_t i = 0; i < count; i++) {
        for (int h = 0; h < group; h++)
            queries[i * group + h] = layer->qkv + (first + i) * width + (head * group + h) * size;
        for (int level = 0; level < 3; level++) {
            int64_t length = run_of(tokens + first + i, level).length;
            longest[level] = length > longest[level] ? length : longest[level];
        }
    }
    starts[0] = 0;
    for (int level = 1; level < 3; level++)
        starts[level] = starts[level - 1] + (longest[level - 1] + LANES - 1) / LANES * LANES;
    int64_t filled[TOKENS_A_JOB][3]; /* by token and level: how far the weights of a run are read */
    memset(filled, 0, sizeof(filled));
    for (int pass = 0; pass < 2; pass++) {
        for (int level = 0; level < 3; level++)
            for (int64_t i = 0, next; i < count; i = next) { /* tokens that read the same slot, together */
                Run run = run_of(tokens + first + i, level);
                for (next = i + 1; next < count; next++) {
                    Run other = run_of(tokens + first + next, level);
                    if (other.stack != run.stack || other.slot != run.slot) break;
                    run.length = other.length > run.length ? other.length : run.length;
                }
                if (!run.length) continue;
                int64_t at = (run.slot * layer->kv_heads + head) * layer->capacities[run.stack] * size;
                int many = (next - i) * group;
                float *line = scores + i * group * row + starts[level];
                if (pass == 0)
                    score(queries + i * group, many, size, layer->stacks[run.stack] + at, run.length, line, row);
                else
                    weigh(line, row, many, layer->stacks[3 + run.stack] + at, run.length, size,
                          out + i * group * size);
                for (int64_t j = i; j < next; j++) filled[j][level] = run.length;
            }
        if (pass == 0) {
            for (int64_t i = 0; i < count; i++) {
                int64_t lengths[3];
                for (int level = 0; level < 3; level++) lengths[level] = run_of(tokens + first + i, level).length;
                for (int h = 0; h < group; h++)
                    softmax(scores + (i * group + h) * row, starts, lengths, filled[i]);
            }
            memset(out, 0, sizeof(float) * count * group * size);
        }
    }
    for (int64_t i = 0; i < count; i++)
        memcpy(layer->out + ((first + i) * layer->heads + head * group) * size, out + i * group * size,
               sizeof(float) * group * size);
}

/* A softmax over scores that are no numbers gives weights that look like some. So a token whose query or key holds NaN
   or infinity gets NaN for its value, which it and all that see it then pass on, up to the logits. */
static void spoil(float *values, const Token *token, int kv_heads, int64_t capacity, int size) {
    const uint32_t nan = 0x7fc00000u;
    for (int h = 0; h < kv_heads; h++)
        for (int d = 0; d < size; d++)
            memcpy(values + ((token->slot * kv_heads + h) * capacity + token->length - 1) * size + d, &nan, sizeof(nan));
}

/* Attention of a layer over a packed step.

   qkv (n, (heads + 2 * kv_heads) * size) is what the three projections gave, and is overwritten; cosine and sine are
   (n, size). stacks holds the addresses of the layer's keys of images, groups and sequences, then of their values, each
   (slots, kv_heads, capacities[stack], size), the keys in blocks. `size` and the capacities are multiples of LANES.
   Every token's key and value are stored before any token attends. out is (n, heads * size). Returns 0, or -1 where
   there is no memory. */
int attention(float *qkv, const float *cosine, const float *sine, const float *query_norm, const float *key_norm,
              float eps, float scaling, float *const *stacks, const int64_t *capacities, const Token *tokens, int64_t n,
              int heads, int kv_heads, int size, float *out, int threads) {
    int group = heads / kv_heads, width = (heads + 2 * kv_heads) * size;
    Layer layer = {qkv, stacks, capacities, heads, kv_heads, size, out};
    int64_t longest[3] = {0, 0, 0}, row = 0;
    for (int64_t i = 0; i < n; i++)
        for (int level = 0; level < 3; level++) {
            int64_t length = run_of(tokens + i, level).length;
            longest[level] = length > longest[level] ? length : longest[level];
        }
    for (int level = 0; level < 3; level++) row += (longest[level] + LANES - 1) / LANES * LANES;
    row += LANES; /* rows that lie a power of two apart would share the cache's places */
    int64_t room = row * group * TOKENS_A_JOB;
    float *scratch = aligned_alloc(64, sizeof(float) * room * threads);
    if (!scratch) return -1;
    int64_t blocks = (n + TOKENS_A_JOB - 1) / TOKENS_A_JOB;
#pragma omp parallel num_threads(threads) if (n > 1)
    {
        float *scores = scratch + room * omp_get_thread_num();
#pragma omp for
        for (int64_t i = 0; i < n; i++) {
            const Token *token = tokens + i;
            const float *c = cosine + i * size, *s = sine + i * size;
            float *line = qkv + i * width;
#define PLACE(constant)                                                                                               \
    {                                                                                                                 \
        int found = 0;                                                                                                \
        for (int h = 0; h < heads; h++)                                                                               \
            found |= place(line + h * constant, query_norm, c, s, eps, scaling, constant, 1, line + h * constant);    \
        for (int h = 0; h < kv_heads; h++) {                                                                          \
            int64_t at = (token->slot * kv_heads + h) * capacities[token->stack], t = token->length - 1;              \
            float *key = stacks[token->stack] + (at + t / LANES * LANES) * constant + t % LANES;                      \
            found |= place(line + (heads + h) * constant, key_norm, c, s, eps, 1.0f, constant, LANES, key);           \
            memcpy(stacks[3 + token->stack] + (at + t) * constant, line + (heads + kv_heads + h) * constant,          \
                   sizeof(float) * constant);                                                                         \
        }                                                                                                             \
        if (found) spoil(stacks[3 + token->stack], token, kv_heads, capacities[token->stack], constant);              \
    }
            if (size == 64) PLACE(64)
            else if (size == 128) PLACE(128)
            else PLACE(size)
        }
        /* Head by head, so that the image's keys and values stay in the core's cache from job to job. */
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < blocks * kv_heads; job++) {
            int64_t head = job / blocks, first = job % blocks * TOKENS_A_JOB;
            int64_t end = first + TOKENS_A_JOB < n ? first + TOKENS_A_JOB : n;
            if (size == 64 && group == 2) attend(&layer, tokens, first, end, head, scores, row, 2, 64);
            else if (size == 128 && group == 4) attend(&layer, tokens, first, end, head, scores, row, 4, 128);
            else attend(&layer, tokens, first, end, head, scores, row, group, size);
        }
    }
    free(scratch);
    return 0;
}
