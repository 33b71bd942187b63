/* The layers of a BERT encoder over 4-bit weights, for x86-64 processors with AVX2.
 *
 * One call works on one thread; the caller runs several on different texts. Texts lie one after
 * the other without padding. Activations are quantised per token to 8 bits (offset 128), weights
 * stay as they are in the file: integers -8..7, one scale for 32 of them. A block's products fit
 * 16 bits (8 steps of at most 2 * 255 * 8), so they are widened once per block, not once per step.
 *
 * Letters: T tokens, D hidden, F inner, N outputs and K inputs of a matrix.
 * Packed weights: [N / 8][K / 4][8][4] signed bytes; scales: [N / 8][K / 32][8]; the correction of
 * output n is 128 * sum over its blocks of scale * sum of integers, which undoes the offset.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#define GLMKIT_ENCODER_ABI 1

typedef struct {
    const int8_t *weight;
    const float *scale;
    const float *correction;
    const float *bias;
} matrix;

typedef struct {
    const float *weight;
    const float *bias;
} norm;

typedef struct {
    matrix qkv, attention_output, intermediate, output;
    norm attention_norm, output_norm;
} layer;

EXPORT int glmkit_encoder_abi(void) { return GLMKIT_ENCODER_ABI; }

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#define HEAD 32
#define LANES 8
#define BLOCK 32
#define FAST __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline, target("avx2,fma")))

EXPORT int glmkit_encoder_supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

/* ---- small vector functions ---- */

/* e^x for x <= 88: 2^n * 2^f, the fraction by a polynomial (relative error about 2e-7). */
INLINE __m256 exp8(__m256 x) {
    x = _mm256_max_ps(x, _mm256_set1_ps(-87.0f));
    __m256 scaled = _mm256_mul_ps(x, _mm256_set1_ps(1.44269504f));
    __m256 whole = _mm256_round_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 f = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0.693359375f), x);
    f = _mm256_fnmadd_ps(whole, _mm256_set1_ps(-2.12194440e-4f), f);
    __m256 p = _mm256_set1_ps(1.0f / 720);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}

/* x/2 * (1 + erf(x / sqrt 2)), erf by an odd polynomial on -4..4, 1 beyond: absolute error below
 * 2e-4, a small part of one step of the 8 bits that follow. */
INLINE __m256 gelu8(__m256 x) {
    __m256 z = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(4.0f)), _mm256_set1_ps(-4.0f));
    __m256 half = _mm256_mul_ps(x, _mm256_set1_ps(0.5f));
    __m256 t = _mm256_fmadd_ps(_mm256_mul_ps(z, z), _mm256_set1_ps(0.125f), _mm256_set1_ps(-1.0f));
    __m256 p = _mm256_set1_ps(0.00270579592f);
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-0.00773008354f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.0125406999f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-0.0234742314f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.0448655412f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-0.0741135553f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.111916274f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-0.168629125f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.351920664f));
    return _mm256_fmadd_ps(_mm256_mul_ps(p, z), half, half);
}

INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

INLINE float max8(__m256 v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* ---- linear ---- */

/* Quantise one row of K values to bytes 1..255 around 128; return the scale. */
INLINE float quantize_row(const float *x, int K, uint8_t *out) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 top = _mm256_setzero_ps();
    for (int k = 0; k < K; k += LANES)
        top = _mm256_max_ps(top, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + k)));
    float largest = max8(top);
    __m256 inverse = _mm256_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i offset = _mm256_set1_epi8((char)128);
    for (int k = 0; k < K; k += BLOCK) {
        __m256i part[4];
        for (int i = 0; i < 4; i++)
            part[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + k + i * LANES), inverse));
        __m256i low = _mm256_packs_epi32(part[0], part[1]);
        __m256i high = _mm256_packs_epi32(part[2], part[3]);
        __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
        _mm256_storeu_si256((__m256i *)(out + k), _mm256_xor_si256(bytes, offset));
    }
    return largest / 127.0f;
}

FAST static void quantize(const float *x, int T, int K, uint8_t *out, float *scale) {
    for (int t = 0; t < T; t++)
        scale[t] = quantize_row(x + (size_t)t * K, K, out + (size_t)t * K);
}

INLINE __m256i broadcast4(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}

/* M tokens (1..3) by 16 outputs. */
INLINE void tile(int M, const matrix *m, int n, int K, const uint8_t *a, const float *a_scale,
                 float *y, int N) {
    const int8_t *w0 = m->weight + (size_t)n * K, *w1 = w0 + (size_t)LANES * K;
    const float *s0 = m->scale + (size_t)n * (K / BLOCK), *s1 = s0 + LANES * (K / BLOCK);
    const uint8_t *rows[3] = {a, a + K, a + 2 * (size_t)K};
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 total[3][2];
    for (int i = 0; i < M; i++) total[i][0] = total[i][1] = _mm256_setzero_ps();
    for (int left = K / BLOCK; left; left--) {
        __m256i sum[3][2];
        for (int i = 0; i < M; i++) sum[i][0] = sum[i][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int step = 0; step < BLOCK / 4; step++) {
            __m256i v0 = _mm256_loadu_si256((const __m256i *)w0 + step);
            __m256i v1 = _mm256_loadu_si256((const __m256i *)w1 + step);
            for (int i = 0; i < M; i++) {
                __m256i four = broadcast4(rows[i] + step * 4);
                sum[i][0] = _mm256_add_epi16(sum[i][0], _mm256_maddubs_epi16(four, v0));
                sum[i][1] = _mm256_add_epi16(sum[i][1], _mm256_maddubs_epi16(four, v1));
                /* keeps the compiler from rearranging the sums into a tree that spills */
                __asm__("" : "+x"(sum[i][0]), "+x"(sum[i][1]));
            }
        }
        __m256 d0 = _mm256_loadu_ps(s0), d1 = _mm256_loadu_ps(s1);
        for (int i = 0; i < M; i++) {
            __m256 f0 = _mm256_cvtepi32_ps(_mm256_madd_epi16(sum[i][0], ones));
            __m256 f1 = _mm256_cvtepi32_ps(_mm256_madd_epi16(sum[i][1], ones));
            total[i][0] = _mm256_fmadd_ps(f0, d0, total[i][0]);
            total[i][1] = _mm256_fmadd_ps(f1, d1, total[i][1]);
            rows[i] += BLOCK;
        }
        w0 += LANES * BLOCK, w1 += LANES * BLOCK, s0 += LANES, s1 += LANES;
    }
    for (int i = 0; i < M; i++)
        for (int h = 0; h < 2; h++) {
            int at = n + h * LANES;
            __m256 v = _mm256_sub_ps(total[i][h], _mm256_loadu_ps(m->correction + at));
            v = _mm256_fmadd_ps(v, _mm256_set1_ps(a_scale[i]), _mm256_loadu_ps(m->bias + at));
            _mm256_storeu_ps(y + (size_t)i * N + at, v);
        }
}

/* y (T, N) = a (T, K) times the matrix, plus bias.
 * While one group of 16 outputs is worked out, the weights of the next are fetched bit by bit:
 * all layers together do not stay in the cache from one call to the next. */
FAST static void linear(const matrix *m, int N, int K, const uint8_t *a, const float *scale, int T,
                        float *y) {
    const size_t group = (size_t)2 * LANES * K;
    const int lines = (int)(group / 64) * 3 / (T > 3 ? T - 3 : 1) + 1;
    for (int n = 0; n < N; n += 2 * LANES) {
        const int8_t *next = m->weight + (size_t)n * K + group;
        const int8_t *end = n + 2 * LANES < N ? next + group : next;
        int t = 0;
        for (; t + 3 <= T; t += 3) {
            for (int i = 0; i < lines && next < end; i++, next += 64)
                _mm_prefetch((const char *)next, _MM_HINT_T0);
            tile(3, m, n, K, a + (size_t)t * K, scale + t, y + (size_t)t * N, N);
        }
        for (; t < T; t++) tile(1, m, n, K, a + (size_t)t * K, scale + t, y + (size_t)t * N, N);
    }
}

FAST static void gelu(float *x, size_t count) {
    for (size_t i = 0; i < count; i += LANES) _mm256_storeu_ps(x + i, gelu8(_mm256_loadu_ps(x + i)));
}

/* ---- norm ---- */

/* x = norm(x + y), row by row. */
FAST static void add_norm(float *x, const float *y, const norm *w, int T, int D, float eps) {
    for (int t = 0; t < T; t++, x += D, y += D) {
        __m256 total = _mm256_setzero_ps(), squares = _mm256_setzero_ps();
        for (int i = 0; i < D; i += LANES) {
            __m256 v = _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i));
            _mm256_storeu_ps(x + i, v);
            total = _mm256_add_ps(total, v);
        }
        __m256 mean = _mm256_set1_ps(sum8(total) / (float)D);
        for (int i = 0; i < D; i += LANES) {
            __m256 v = _mm256_sub_ps(_mm256_loadu_ps(x + i), mean);
            squares = _mm256_fmadd_ps(v, v, squares);
        }
        __m256 inverse = _mm256_set1_ps(1.0f / sqrtf(sum8(squares) / (float)D + eps));
        for (int i = 0; i < D; i += LANES) {
            __m256 v = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), mean), inverse);
            v = _mm256_fmadd_ps(v, _mm256_loadu_ps(w->weight + i), _mm256_loadu_ps(w->bias + i));
            _mm256_storeu_ps(x + i, v);
        }
    }
}

/* ---- attention ---- */

#define ROWS 6

/* scores (ROWS, S) of ROWS queries with all keys; keys (HEAD, S) transposed, S a multiple of 16. */
INLINE void score(const float *const q[ROWS], const float *keys, int S, float *scores) {
    for (int s = 0; s < S; s += 2 * LANES) {
        __m256 sum[ROWS][2];
        for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
        for (int e = 0; e < HEAD; e++) {
            __m256 k0 = _mm256_loadu_ps(keys + (size_t)e * S + s);
            __m256 k1 = _mm256_loadu_ps(keys + (size_t)e * S + s + LANES);
            for (int r = 0; r < ROWS; r++) {
                __m256 v = _mm256_broadcast_ss(q[r] + e);
                sum[r][0] = _mm256_fmadd_ps(v, k0, sum[r][0]);
                sum[r][1] = _mm256_fmadd_ps(v, k1, sum[r][1]);
            }
        }
        for (int r = 0; r < ROWS; r++) {
            _mm256_storeu_ps(scores + (size_t)r * S + s, sum[r][0]);
            _mm256_storeu_ps(scores + (size_t)r * S + s + LANES, sum[r][1]);
        }
    }
}

/* Turn one row of L scores (room for S) into weights times their sum; return 1 / sum. */
INLINE float soften(float *row, int L, int S, float scale) {
    for (int s = L; s < S; s++) row[s] = -1e30f;
    __m256 top = _mm256_set1_ps(-1e30f), total = _mm256_setzero_ps();
    for (int s = 0; s < S; s += LANES) top = _mm256_max_ps(top, _mm256_loadu_ps(row + s));
    __m256 largest = _mm256_set1_ps(max8(top)), factor = _mm256_set1_ps(scale);
    for (int s = 0; s < S; s += LANES) {
        __m256 v = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(row + s), largest), factor);
        v = exp8(v);
        _mm256_storeu_ps(row + s, v);
        total = _mm256_add_ps(total, v);
    }
    return 1.0f / sum8(total);
}

/* Mix the values (L, HEAD) by R (1 or 3) rows of weights (stride S) into out (stride D). */
INLINE void mix(int R, const float *weights, int L, int S, const float *inverse, const float *values,
                float *out, int D) {
    __m256 sum[3][HEAD / LANES];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < HEAD / LANES; i++) sum[r][i] = _mm256_setzero_ps();
    for (int s = 0; s < L; s++) {
        __m256 p[3];
        for (int r = 0; r < R; r++) p[r] = _mm256_broadcast_ss(weights + (size_t)r * S + s);
        for (int i = 0; i < HEAD / LANES; i++) {
            __m256 v = _mm256_loadu_ps(values + (size_t)s * HEAD + i * LANES);
            for (int r = 0; r < R; r++) sum[r][i] = _mm256_fmadd_ps(p[r], v, sum[r][i]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < HEAD / LANES; i++) {
            __m256 v = _mm256_mul_ps(sum[r][i], _mm256_set1_ps(inverse[r]));
            _mm256_storeu_ps(out + (size_t)r * D + i * LANES, v);
        }
}

/* Lay one head's keys (HEAD, S) and values (L, HEAD) side by side in memory. */
INLINE void gather(const float *qkv, int L, int D, int S, float *keys, float *values) {
    for (int s = 0; s < L; s++) {
        const float *k = qkv + (size_t)s * 3 * D + D, *v = k + D;
        for (int e = 0; e < HEAD; e++) keys[(size_t)e * S + s] = k[e];
        memcpy(values + (size_t)s * HEAD, v, HEAD * sizeof(float));
    }
    for (int e = 0; e < HEAD; e++)
        for (int s = L; s < S; s++) keys[(size_t)e * S + s] = 0.0f;
}

/* One text of L tokens: qkv (L, 3 D) to out (L, D). */
FAST static void attend(const float *qkv, int L, int D, float *out, float *keys, float *values,
                        float *scores) {
    const int W = 3 * D, S = (L + 2 * LANES - 1) / (2 * LANES) * (2 * LANES);
    const float scale = 1.0f / sqrtf((float)HEAD);
    for (int h = 0; h < D; h += HEAD) {
        gather(qkv + h, L, D, S, keys, values);
        for (int t = 0; t < L; t += ROWS) {
            const float *q[ROWS];
            float inverse[ROWS], *to = out + (size_t)t * D + h;
            int rows = L - t < ROWS ? L - t : ROWS, r = 0;
            for (int i = 0; i < ROWS; i++) /* rows past the end repeat the last one */
                q[i] = qkv + (size_t)(t + (i < rows ? i : rows - 1)) * W + h;
            score(q, keys, S, scores);
            for (int i = 0; i < rows; i++)
                inverse[i] = soften(scores + (size_t)i * S, L, S, scale);
            for (; r + 3 <= rows; r += 3)
                mix(3, scores + (size_t)r * S, L, S, inverse + r, values, to + (size_t)r * D, D);
            for (; r < rows; r++)
                mix(1, scores + (size_t)r * S, L, S, inverse + r, values, to + (size_t)r * D, D);
        }
    }
}

/* ---- the stack ---- */

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Cut the next piece off an arena; pieces begin at cache lines. */
static void *cut(char **arena, size_t bytes) {
    char *piece = *arena;
    *arena += (bytes + 63) / 64 * 64;
    return piece;
}

/* Run x (T, D) through the layers in place.
 * ends (texts,) rises to T: where each text ends. heads * 32 must be D; D and F divide by 32.
 * Returns 0, or 1 if memory is short. */
EXPORT FAST int glmkit_encoder_run(const layer *layers, int count, int D, int F, float eps, float *x,
                                   const int32_t *ends, int texts) {
    size_t T = texts ? (size_t)ends[texts - 1] : 0, longest = 0;
    for (int i = 0, start = 0; i < texts; start = ends[i++])
        longest = larger(longest, (size_t)(ends[i] - start));
    size_t room = (longest + 15) / 16 * 16 * sizeof(float);
    size_t wide = larger((size_t)F, 3 * (size_t)D), row = (wide + (size_t)D + 1) * sizeof(float);
    void *memory = malloc(T * (row + wide) + room * (2 * HEAD + ROWS) + 8 * 64);
    if (!memory) return 1;
    char *arena = (char *)(((uintptr_t)memory + 63) / 64 * 64);
    float *big = cut(&arena, T * wide * sizeof(float));
    float *small = cut(&arena, T * (size_t)D * sizeof(float));
    float *scale = cut(&arena, T * sizeof(float));
    uint8_t *bytes = cut(&arena, T * wide);
    float *keys = cut(&arena, HEAD * room), *values = cut(&arena, HEAD * room);
    float *scores = cut(&arena, ROWS * room);
    for (int l = 0; l < count; l++) {
        const layer *w = layers + l;
        quantize(x, (int)T, D, bytes, scale);
        linear(&w->qkv, 3 * D, D, bytes, scale, (int)T, big);
        for (int i = 0, start = 0; i < texts; start = ends[i++])
            attend(big + (size_t)start * 3 * D, ends[i] - start, D, small + (size_t)start * D, keys,
                   values, scores);
        quantize(small, (int)T, D, bytes, scale);
        linear(&w->attention_output, D, D, bytes, scale, (int)T, small);
        add_norm(x, small, &w->attention_norm, (int)T, D, eps);
        quantize(x, (int)T, D, bytes, scale);
        linear(&w->intermediate, F, D, bytes, scale, (int)T, big);
        gelu(big, T * (size_t)F);
        quantize(big, (int)T, F, bytes, scale);
        linear(&w->output, D, F, bytes, scale, (int)T, small);
        add_norm(x, small, &w->output_norm, (int)T, D, eps);
    }
    free(memory);
    return 0;
}

#else

EXPORT int glmkit_encoder_supported(void) { return 0; }

EXPORT int glmkit_encoder_run(const layer *layers, int count, int D, int F, float eps, float *x,
                              const int32_t *ends, int texts) {
    (void)layers, (void)count, (void)D, (void)F, (void)eps, (void)x, (void)ends, (void)texts;
    return 2;
}

#endif
