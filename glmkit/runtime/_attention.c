/* Attention of new tokens over the slot cache, float32.
 *
 * One call turns queries and keys by their positions, puts new keys and values into the cache, and
 * lets every token see what its own row has up to itself: no pads, no mask, no copy of the cache.
 *
 * The keys of a row are taken 64 at a time, counted from its beginning. They are laid out anew with
 * the tokens side by side, so that eight scores are summed in eight lanes and none across; then each
 * query's scores become weights with a running maximum, and the values are added up by the weights.
 * All sums of a query run in the order of its own keys, whatever is computed beside it: alone, in a
 * batch, as a part of a prompt or token by token, the result is the same to the last bit.
 *
 * Query heads that share a key/value head go through the keys together, and so do up to 96 queries
 * of neighbouring tokens. A row, a key/value head and such a run of tokens are a piece of the work.
 */
#include "_attention.h"
#include "_threads.h"

#ifdef HAVE_KERNELS
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#define INLINE static inline __attribute__((always_inline))

enum { KEYS = 64, QUERIES = 96 };
enum { BOTH, STORE, SEE }; /* what a piece does: store the new keys and values, see them, or both */

/* What a piece works on; all of it in one allocation. */
typedef struct {
    float *queries; /* (N, D), turned and scaled */
    float *keys;    /* (D, KEYS) */
    float *values;  /* (KEYS, width), where D is no multiple of 8 */
    float *weights; /* (N, KEYS): scores, then weights */
    float *sums;    /* (N, width) */
    float *most, *total, *shrink; /* (N): greatest score, sum of weights, what the sums are scaled by */
    long width;     /* D, rounded up to a multiple of 8 */
} Scratch;

AVX2 INLINE float across(__m256 v) {
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

AVX2 INLINE float greatest(__m256 v) {
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}

/* e to the x for x <= 0, to 2 units of the last place; NaN stays. Below -87 the result is 1e-38. */
AVX2 INLINE __m256 exp8(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(-87.3f), x);
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    /* ln 2 in two parts, the first of few bits, so that n times it is exact */
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 sum = _mm256_set1_ps(1.0f / 5040);
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 720));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 120));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 24));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 6));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(0.5f));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f));
    const __m256i power = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23)));
}

/* c (R, 8 N) = a (R, depth) times b (depth, 8 N), or with `shrink` (R), c * shrink + that. Every sum
 * runs along depth, whatever R and N are. */
AVX2 INLINE void tile(const int R, const int N, long depth, const float *a, long a_row, const float *b,
                      long b_row, float *c, long c_row, const float *shrink) {
    __m256 sum[6][8];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) sum[r][n] = _mm256_setzero_ps();
    for (long k = 0; k < depth; k++, b += b_row) {
        __m256 row[8];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) row[n] = _mm256_loadu_ps(b + 8 * n);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m256 one = _mm256_broadcast_ss(a + r * a_row + k);
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) sum[r][n] = _mm256_fmadd_ps(one, row[n], sum[r][n]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            float *at = c + r * c_row + 8 * n;
            __m256 v = sum[r][n];
            if (shrink) v = _mm256_fmadd_ps(_mm256_loadu_ps(at), _mm256_broadcast_ss(shrink + r), v);
            _mm256_storeu_ps(at, v);
        }
}

#define STRIPS(R, N)                             \
    for (; left >= N; left -= N, b += 8 * N, c += 8 * N) \
        tile(R, N, depth, a, a_row, b, b_row, c, c_row, shrink);

/* tile for up to 6 rows and any number of columns, in eights. */
AVX2 static void strip(long rows, long left, long depth, const float *a, long a_row, const float *b,
                       long b_row, float *c, long c_row, const float *shrink) {
    switch (rows) {
    case 1: STRIPS(1, 8) STRIPS(1, 4) STRIPS(1, 1) break;
    case 2: STRIPS(2, 4) STRIPS(2, 1) break;
    case 3: STRIPS(3, 4) STRIPS(3, 1) break;
    case 4: STRIPS(4, 2) STRIPS(4, 1) break;
    case 5: STRIPS(5, 2) STRIPS(5, 1) break;
    default: STRIPS(6, 2) STRIPS(6, 1)
    }
}

AVX2 static void product(long rows, long eights, long depth, const float *a, long a_row, const float *b,
                         long b_row, float *c, long c_row, const float *shrink) {
    for (long row = 0; row < rows; row += 6)
        strip(rows - row < 6 ? rows - row : 6, eights, depth, a + row * a_row, a_row, b, b_row,
              c + row * c_row, c_row, shrink ? shrink + row : NULL);
}

/* Turn the leading components of a head, pair by pair, and scale it. */
AVX2 static void turn(const float *x, const float *turns, long turned, long size, float scale, float *out) {
    const __m256 by = _mm256_set1_ps(scale);
    long at = 0;
    for (; at + 8 <= turned; at += 8) {
        const __m256 v = _mm256_loadu_ps(x + at), t = _mm256_loadu_ps(turns + at);
        const __m256 crossed = _mm256_mul_ps(_mm256_permute_ps(v, 0xB1), _mm256_movehdup_ps(t));
        const __m256 both = _mm256_fmaddsub_ps(v, _mm256_moveldup_ps(t), crossed);
        _mm256_storeu_ps(out + at, _mm256_mul_ps(both, by));
    }
    for (; at < turned; at += 2) {
        out[at] = (x[at] * turns[at] - x[at + 1] * turns[at + 1]) * scale;
        out[at + 1] = (x[at + 1] * turns[at] + x[at] * turns[at + 1]) * scale;
    }
    for (; at + 8 <= size; at += 8) _mm256_storeu_ps(out + at, _mm256_mul_ps(_mm256_loadu_ps(x + at), by));
    for (; at < size; at++) out[at] = x[at] * scale;
}

AVX2 INLINE void transpose8(const float *const row[8], long at, float *out) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(row[i] + at);
    for (int i = 0; i < 4; i++) {
        b[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xEE);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(out + i * KEYS, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * KEYS, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}

/* Lay keys (n, size) out as (size, KEYS); places up to the next multiple of 8 repeat the last key. */
AVX2 static void lay_out(const float *keys, long n, long size, float *out) {
    for (long first = 0; first < n; first += 8) {
        const float *row[8];
        for (long i = 0; i < 8; i++) row[i] = keys + (first + i < n ? first + i : n - 1) * size;
        long at = 0;
        for (; at + 8 <= size; at += 8) transpose8(row, at, out + at * KEYS + first);
        for (; at < size; at++)
            for (long i = 0; i < 8; i++) out[at * KEYS + first + i] = row[i][at];
    }
}

/* Make weights of a query's scores of which it sees n; set what its sums so far shrink by. */
AVX2 static void weigh(float *scores, long n, long keys, float *most, float *total, float *shrink) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 nothing = _mm256_set1_ps(-INFINITY);
    __m256 high = nothing, sum = _mm256_setzero_ps();
    for (long at = 0; at < n; at += 8) {
        const __m256i seen = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n - at)), lanes);
        high = _mm256_max_ps(
            high, _mm256_blendv_ps(nothing, _mm256_loadu_ps(scores + at), _mm256_castsi256_ps(seen)));
    }
    const float before = *most, now = greatest(high);
    *most = now > before ? now : before;
    const __m256 top = _mm256_set1_ps(*most);
    for (long at = 0; at < keys; at += 8) {
        const __m256i seen = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n - at)), lanes);
        const __m256 each = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + at), top));
        const __m256 kept = _mm256_and_ps(each, _mm256_castsi256_ps(seen));
        _mm256_storeu_ps(scores + at, kept);
        sum = _mm256_add_ps(sum, kept);
    }
    *shrink = _mm256_cvtss_f32(exp8(_mm256_set1_ps(before - *most)));
    *total = *total * *shrink + across(sum);
}

/* The place of token `at` of a head of the cache: keys 0 to G - 1, values G to 2G - 1. */
static float *place(const Attention *a, long row, long head, long at) {
    return a->held + ((row * 2 * a->shared + head) * a->room + at) * a->size;
}

static const float *turns_of(const Attention *a, long row, long token) {
    return a->turns ? a->turns + (row * a->tokens + token) * a->turned : NULL;
}

static void store(const Attention *a, long row, long head, long first, long end) {
    const long width = a->heads + 2 * a->shared, turned = a->turns ? a->turned : 0;
    for (long token = first; token < end; token++) {
        const float *key = a->qkv + ((row * a->tokens + token) * width + a->heads + head) * a->size;
        const long at = a->starts[row] + token;
        turn(key, turns_of(a, row, token), turned, a->size, 1.0f, place(a, row, head, at));
        memcpy(place(a, row, a->shared + head, at), key + a->shared * a->size,
               (size_t)a->size * sizeof(float));
    }
}

/* Queries of a run of tokens: those of a token stand together. */
static void take_queries(const Attention *a, long row, long head, long first, long end, float *out) {
    const long width = a->heads + 2 * a->shared, group = a->heads / a->shared;
    const long turned = a->turns ? a->turned : 0;
    const float scale = 1.0f / sqrtf((float)a->size);
    for (long token = first; token < end; token++)
        for (long each = 0; each < group; each++, out += a->size)
            turn(a->qkv + ((row * a->tokens + token) * width + head * group + each) * a->size,
                 turns_of(a, row, token), turned, a->size, scale, out);
}

/* Values of n keys with rows of a multiple of 8 numbers. */
static const float *padded(const Attention *a, const Scratch *s, const float *values, long n) {
    if (s->width == a->size) return values;
    for (long at = 0; at < n; at++)
        memcpy(s->values + at * s->width, values + at * a->size, (size_t)a->size * sizeof(float));
    return s->values;
}

/* Let the queries of a run see its row's keys of one head from `at` on, `n` of them. */
AVX2 static void see_keys(const Attention *a, const Scratch *s, long row, long head, long first, long end,
                          long at, long n) {
    const long group = a->heads / a->shared, start = a->starts[row];
    const long blind = at > start + first ? at - start - first : 0; /* tokens before all of these keys */
    const long from = blind * group, rows = (end - first) * group - from;
    lay_out(place(a, row, head, at), n, a->size, s->keys);
    product(rows, (n + 7) / 8, a->size, s->queries + from * a->size, a->size, s->keys, KEYS,
            s->weights + from * KEYS, KEYS, NULL);
    for (long query = from; query < from + rows; query++) {
        const long sees = start + first + query / group + 1 - at;
        weigh(s->weights + query * KEYS, sees < n ? sees : n, n, s->most + query, s->total + query,
              s->shrink + query);
    }
    product(rows, s->width / 8, n, s->weights + from * KEYS, KEYS,
            padded(a, s, place(a, row, a->shared + head, at), n), s->width, s->sums + from * s->width,
            s->width, s->shrink + from);
}

AVX2 static void see(const Attention *a, const Scratch *s, long row, long head, long first, long end) {
    const long group = a->heads / a->shared, queries = (end - first) * group;
    const long keys = a->starts[row] + end;
    take_queries(a, row, head, first, end, s->queries);
    memset(s->sums, 0, (size_t)(queries * s->width) * sizeof(float));
    for (long query = 0; query < queries; query++) s->most[query] = -INFINITY, s->total[query] = 0;
    for (long at = 0; at < keys; at += KEYS)
        see_keys(a, s, row, head, first, end, at, keys - at < KEYS ? keys - at : KEYS);
    for (long query = 0; query < queries; query++) {
        const long token = row * a->tokens + first + query / group;
        float *out = a->out + (token * a->heads + head * group + query % group) * a->size;
        const float *sums = s->sums + query * s->width, share = 1.0f / s->total[query];
        for (long d = 0; d < a->size; d++) out[d] = sums[d] * share;
    }
}

/* Memory that a thread keeps from piece to piece, until it ends. */
typedef struct {
    size_t size;
    float numbers[];
} Room;

static pthread_key_t kept;
static int has_key;

static void make_key(void) { has_key = !pthread_key_create(&kept, free); }

static float *room_for(size_t numbers) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_key);
    if (!has_key) return NULL;
    Room *room = pthread_getspecific(kept);
    if (room && room->size >= numbers) return room->numbers;
    free(room);
    room = malloc(sizeof(Room) + numbers * sizeof(float));
    if (pthread_setspecific(kept, room)) { /* has no place for it; the one before is no more */
        free(room);
        return NULL;
    }
    if (!room) return NULL;
    room->size = numbers;
    return room->numbers;
}

static int prepare(const Attention *a, Scratch *s) {
    const long queries = a->run * (a->heads / a->shared);
    s->width = (a->size + 7) / 8 * 8;
    const long sizes[] = {queries * a->size, a->size * KEYS, s->width == a->size ? 0 : KEYS * s->width,
                          queries * KEYS, queries * s->width, queries, queries, queries};
    float **parts[] = {&s->queries, &s->keys, &s->values, &s->weights, &s->sums, &s->most, &s->total,
                       &s->shrink};
    long all = 0;
    for (int part = 0; part < 8; part++) all += (sizes[part] + 15) / 16 * 16;
    float *at = room_for((size_t)all);
    if (!at) return 0;
    for (int part = 0; part < 8; part++) *parts[part] = at, at += (sizes[part] + 15) / 16 * 16;
    if (s->width != a->size) memset(s->values, 0, (size_t)(KEYS * s->width) * sizeof(float));
    return 1;
}

/* Pieces lie by run, row and head; the last runs, which see most, are taken first. */
static void do_piece(void *work, long piece) {
    Attention *a = work;
    const long head = piece % a->shared, row = piece / a->shared % a->rows;
    const long first = piece / a->shared / a->rows * a->run;
    const long end = first + a->run < a->tokens ? first + a->run : a->tokens;
    Scratch s;
    if (a->task != SEE) store(a, row, head, first, end);
    if (a->task == STORE) return;
    if (prepare(a, &s))
        see(a, &s, row, head, first, end);
    else
        atomic_store(&a->failed, 1);
}

int attend_all(Attention *a, int threads) {
    const long most = QUERIES / (a->heads / a->shared);
    a->run = most < 1 ? 1 : most < a->tokens ? most : a->tokens;
    a->runs = (a->tokens + a->run - 1) / a->run;
    const long pieces = a->rows * a->shared * a->runs;
    a->task = a->runs == 1 ? BOTH : STORE;
    share_out(do_piece, a, pieces, threads);
    if (a->runs > 1) {
        a->task = SEE;
        share_out(do_piece, a, pieces, threads);
    }
    return !atomic_load(&a->failed);
}

int attention_fits(const Attention *a) {
    int fine = a->rows > 0 && a->tokens > 0 && a->heads > 0 && a->shared > 0 && a->size > 0 &&
               a->heads % a->shared == 0 && a->turned >= 0 && a->turned % 2 == 0 && a->turned <= a->size;
    for (long row = 0; fine && row < a->rows; row++)
        fine = a->starts[row] >= 0 && a->starts[row] + a->tokens <= a->room;
    if (!fine) PyErr_SetString(PyExc_ValueError, "the new tokens do not fit the cache, or the heads each other");
    return fine;
}
#endif

/* attend(qkv, turns, held, starts, out, rows, tokens, heads, shared, size, turned, room, threads): addresses
 * and sizes as in Attention; turns may be 0. */
PyObject *attend(PyObject *self, PyObject *args) {
#ifdef HAVE_KERNELS
    unsigned long long qkv, turns, held, starts, out;
    int threads, done;
    Attention a = {.failed = 0};
    if (!PyArg_ParseTuple(args, "KKKKKllllllli", &qkv, &turns, &held, &starts, &out, &a.rows, &a.tokens,
                          &a.heads, &a.shared, &a.size, &a.turned, &a.room, &threads))
        return NULL;
    a.qkv = (const float *)(uintptr_t)qkv, a.turns = (const float *)(uintptr_t)turns;
    a.held = (float *)(uintptr_t)held, a.out = (float *)(uintptr_t)out;
    a.starts = (const int64_t *)(uintptr_t)starts;
    if (!attention_fits(&a)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    done = attend_all(&a, bounded(threads));
    Py_END_ALLOW_THREADS
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
#else
    return PyErr_Format(PyExc_NotImplementedError, "no kernel for this processor");
#endif
}
