/* Multiply a few vectors by an int4 or int8 matrix.
 *
 * What stands before and after the matrix in a GLM block goes along, because for one token a call
 * costs as much as its arithmetic: an RMS norm of the vectors, and then a gated unit or a sum.
 *
 * The vectors are rounded to 16 bits in groups of 32, each with its own scale, so that the inner
 * loop is integer arithmetic: 16 products an instruction. With 8 bits it would be faster by little,
 * and a small model's answers suffer. Where single precision is wanted, what the rounding leaves is
 * rounded once more and multiplied as well, at twice the arithmetic. Built as an optional extension;
 * without it glmkit uses torch's operators.
 *
 * The matrix is packed once when a model is loaded. Eight rows make a block, so that one register
 * holds eight running sums and nothing is summed across; a block is a stream of groups of 32 columns:
 *
 *   int4: 4 x 32 bytes of weights, 8 scales, 8 minima (half precision): 160 bytes
 *   int8: 16 x 16 bytes of weights, 8 scales: 272 bytes
 *
 * In the j-th 32 bytes of an int4 group, 16-bit lane l holds columns 8j + 2t + l % 2 of row l / 2 in
 * its nibbles t = 0..3. In the t-th 16 bytes of an int8 group, byte l is column 2t + l % 2 of row l / 2.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_attention.h"
#include "_threads.h"

enum { GROUP = 32, BLOCK = 8, MOST_COLUMNS = 1 << 20 };
enum { PIECE = 8 };          /* blocks that a thread takes at a time */
enum { WRITE, ADD, GATE };   /* an output o becomes y = o, y += o, or y = silu(first half) * second half */
enum { NIBBLES = 160, BYTES = 272 }; /* a packed group of int4, of int8 */

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAVE_KERNELS 1
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define REST (1.0f / 65534) /* rounding leaves half a step at most: 32767 of these */

typedef struct {
    const uint8_t *packed;
    const int16_t *x;         /* (M, K), rounded */
    const int16_t *rest;      /* (M, K), what x lacks, in units of step * REST; or NULL */
    const float *step, *sum;  /* (M, K / 32): scale and sum of each rounded group */
    float *y;                 /* (M, N); (M, N / 2) for GATE */
    long m, n, groups, group; /* group: bytes of a packed group */
    int then;                 /* WRITE, ADD or GATE */
    long blocks;              /* of y */
} Product;

AVX2 static inline float total(__m256 v) {
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

AVX2 static inline __m256 half8(const uint8_t *at) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at));
}

AVX2 static inline __m256i pair(const int32_t *x, __m256i weights) {
    return _mm256_madd_epi16(weights, _mm256_set1_epi32(*x));
}

/* 8 rows x 32 columns of int4 times one rounded group of a vector, as integers. */
AVX2 static inline __m256i times_nibbles(const uint8_t *w, const int32_t *x) {
    const __m256i low = _mm256_set1_epi16(15);
    __m256i even = _mm256_setzero_si256(), odd = even;
    for (int j = 0; j < 4; j++, x += 4) {
        const __m256i four = _mm256_loadu_si256((const __m256i *)(w + 32 * j));
        even = _mm256_add_epi32(even, pair(x, _mm256_and_si256(four, low)));
        odd = _mm256_add_epi32(odd, pair(x + 1, _mm256_and_si256(_mm256_srli_epi16(four, 4), low)));
        even = _mm256_add_epi32(even, pair(x + 2, _mm256_and_si256(_mm256_srli_epi16(four, 8), low)));
        odd = _mm256_add_epi32(odd, pair(x + 3, _mm256_srli_epi16(four, 12)));
    }
    return _mm256_add_epi32(even, odd);
}

/* The same for int8. */
AVX2 static inline __m256i times_bytes(const uint8_t *w, const int32_t *x) {
    __m256i sum = _mm256_setzero_si256();
    for (int t = 0; t < 16; t++)
        sum = _mm256_add_epi32(
            sum, pair(x + t, _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + 16 * t)))));
    return sum;
}

/* One block of 8 rows times vector m. */
AVX2 static inline __m256 times_block(const Product *p, long block, long m) {
    const uint8_t *w = p->packed + block * p->groups * p->group;
    const int32_t *x = (const int32_t *)(p->x + m * p->groups * GROUP);
    const float *step = p->step + m * p->groups, *sum = p->sum + m * p->groups;
    __m256 out = _mm256_setzero_ps(), least = out;
    if (p->group == NIBBLES)
        for (long g = 0; g < p->groups; g++, w += NIBBLES, x += GROUP / 2) {
            const __m256 whole = _mm256_cvtepi32_ps(times_nibbles(w, x));
            const __m256 scale = _mm256_mul_ps(half8(w + 128), _mm256_set1_ps(step[g]));
            out = _mm256_fmadd_ps(whole, scale, out);
            least = _mm256_fmadd_ps(half8(w + 144), _mm256_set1_ps(sum[g]), least);
        }
    else
        for (long g = 0; g < p->groups; g++, w += BYTES, x += GROUP / 2) {
            const __m256 whole = _mm256_cvtepi32_ps(times_bytes(w, x));
            const __m256 scale = _mm256_mul_ps(half8(w + 256), _mm256_set1_ps(step[g]));
            out = _mm256_fmadd_ps(whole, scale, out);
        }
    return _mm256_add_ps(out, least);
}

/* The same in single precision, of int4 (`four` is 1) or int8. */
AVX2 static inline __m256 times_fine(const Product *p, long block, long m, const int four) {
    const uint8_t *w = p->packed + block * p->groups * p->group;
    const int32_t *x = (const int32_t *)(p->x + m * p->groups * GROUP);
    const int32_t *rest = (const int32_t *)(p->rest + m * p->groups * GROUP);
    const float *step = p->step + m * p->groups, *sum = p->sum + m * p->groups;
    const __m256 unit = _mm256_set1_ps(REST);
    __m256 out = _mm256_setzero_ps();
    for (long g = 0; g < p->groups; g++, w += p->group, x += GROUP / 2, rest += GROUP / 2) {
        const __m256i most = four ? times_nibbles(w, x) : times_bytes(w, x);
        const __m256i over = four ? times_nibbles(w, rest) : times_bytes(w, rest);
        const __m256 whole = _mm256_fmadd_ps(_mm256_cvtepi32_ps(over), unit, _mm256_cvtepi32_ps(most));
        const __m256 scale = _mm256_mul_ps(half8(w + (four ? 128 : 256)), _mm256_set1_ps(step[g]));
        /* The two parts of int4 nearly cancel out, so they are added up before anything else. */
        const __m256 least = four ? _mm256_mul_ps(half8(w + 144), _mm256_set1_ps(sum[g]))
                                  : _mm256_setzero_ps();
        out = _mm256_add_ps(out, _mm256_fmadd_ps(whole, scale, least));
    }
    return out;
}

/* It stands apart because a branch in the loops of times_block costs a fifth of their speed. */
AVX2 __attribute__((noinline)) static __m256 times_block_fine(const Product *p, long block, long m) {
    return p->group == NIBBLES ? times_fine(p, block, m, 1) : times_fine(p, block, m, 0);
}

AVX2 static inline __m256 block_times(const Product *p, long block, long m) {
    return p->rest ? times_block_fine(p, block, m) : times_block(p, block, m);
}

/* Eight outputs for all vectors. */
AVX2 static void output_block(const Product *p, long block) {
    const long width = p->blocks * BLOCK;
    for (long m = 0; m < p->m; m++) {
        float *y = p->y + m * width + block * BLOCK;
        __m256 out = block_times(p, p->then == GATE ? block + p->blocks : block, m);
        if (p->then == ADD) out = _mm256_add_ps(out, _mm256_loadu_ps(y));
        if (p->then == GATE) {
            float gate[BLOCK];
            _mm256_storeu_ps(gate, block_times(p, block, m));
            for (int at = 0; at < BLOCK; at++) gate[at] /= 1.0f + expf(-gate[at]);
            out = _mm256_mul_ps(out, _mm256_loadu_ps(gate));
        }
        _mm256_storeu_ps(y, out);
    }
}

/* Scale each vector (k) to unit mean square, then by `weight`: the norm that a GLM block begins with. */
AVX2 static void norm_all(const float *x, long m, long k, const float *weight, float eps, float *out) {
    for (; m > 0; m--, x += k, out += k) {
        __m256 square = _mm256_setzero_ps();
        for (long at = 0; at < k; at += 8) {
            const __m256 v = _mm256_loadu_ps(x + at);
            square = _mm256_fmadd_ps(v, v, square);
        }
        const __m256 scale = _mm256_set1_ps(1.0f / sqrtf(total(square) / (float)k + eps));
        for (long at = 0; at < k; at += 8) {
            const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + at), scale);
            _mm256_storeu_ps(out + at, _mm256_mul_ps(v, _mm256_loadu_ps(weight + at)));
        }
    }
}

AVX2 static inline void store16(int16_t *q, __m256i a, __m256i b) {
    _mm256_storeu_si256((__m256i *)q, _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8));
}

/* What rounding v * by to q leaves, in units of REST. */
AVX2 static inline __m256i left(__m256 v, __m256 by, __m256i q) {
    const __m256 rest = _mm256_fmsub_ps(v, by, _mm256_cvtepi32_ps(q));
    return _mm256_cvtps_epi32(_mm256_mul_ps(rest, _mm256_set1_ps(1.0f / REST)));
}

/* Round one group to -32767..32767, and if `rest` is given, also what that leaves; NaN and infinity
 * poison it. */
AVX2 static void round_group(const float *x, int16_t *q, int16_t *rest, float *step, float *sum) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_setzero_ps(), poison = most;
    __m256i whole = _mm256_setzero_si256(), over = whole;
    for (int at = 0; at < GROUP; at += 8) {
        const __m256 v = _mm256_loadu_ps(x + at);
        most = _mm256_max_ps(most, _mm256_andnot_ps(sign, v));
        poison = _mm256_fmadd_ps(v, _mm256_setzero_ps(), poison);
    }
    float sizes[8], largest = 0;
    _mm256_storeu_ps(sizes, most);
    for (int at = 0; at < 8; at++) largest = sizes[at] > largest ? sizes[at] : largest;
    const int finite = total(poison) == 0;
    const __m256 inverse = _mm256_set1_ps(finite && largest > 0 ? 32767.0f / largest : 0.0f);
    for (int at = 0; at < GROUP; at += 16) {
        const __m256 u = _mm256_loadu_ps(x + at), v = _mm256_loadu_ps(x + at + 8);
        const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(u, inverse));
        const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse));
        whole = _mm256_add_epi32(whole, _mm256_add_epi32(a, b));
        store16(q + at, a, b);
        if (rest) {
            const __m256i c = left(u, inverse, a), d = left(v, inverse, b);
            over = _mm256_add_epi32(over, _mm256_add_epi32(c, d));
            store16(rest + at, c, d);
        }
    }
    *step = finite ? largest / 32767.0f : NAN;
    const __m256 all = _mm256_cvtepi32_ps(whole);
    *sum = finite ? total(_mm256_fmadd_ps(_mm256_cvtepi32_ps(over), _mm256_set1_ps(REST), all)) * *step
                  : NAN;
}

static long pieces_of(const Product *p) { return (p->blocks + PIECE - 1) / PIECE; }

static void do_piece(void *work, long piece) {
    const Product *p = work;
    const long end = (piece + 1) * PIECE < p->blocks ? (piece + 1) * PIECE : p->blocks;
    for (long block = piece * PIECE; block < end; block++) output_block(p, block);
}

static int multiply_all(Product *p, const float *x, const float *norm, float eps, int threads,
                        int fine) {
    const long places = p->m * p->groups;
    int16_t *q = malloc((size_t)places * GROUP * sizeof(int16_t) * (fine ? 2 : 1));
    float *numbers = malloc((size_t)places * 2 * sizeof(float));
    float *normed = norm ? malloc((size_t)places * GROUP * sizeof(float)) : NULL;
    const int done = q && numbers && (normed || !norm);
    if (done) {
        if (norm) norm_all(x, p->m, p->groups * GROUP, norm, eps, normed);
        if (norm) x = normed;
        p->rest = fine ? q + places * GROUP : NULL;
        p->x = q, p->step = numbers, p->sum = numbers + places;
        for (long at = 0; at < places; at++)
            round_group(x + at * GROUP, q + at * GROUP, fine ? q + (places + at) * GROUP : NULL,
                        numbers + at, numbers + places + at);
        share_out(do_piece, p, pieces_of(p), threads);
    }
    free(q);
    free(numbers);
    free(normed);
    return done;
}

/* Pack one group of 8 rows; see the top of the file. Rows lie `row_bytes` apart. On disk, byte b of an
 * int4 group holds column b in its low half and column b + 16 in its high half. */
static void pack_nibbles(const uint8_t *rows, long row_bytes, uint8_t *out) {
    memset(out, 0, 128);
    for (int row = 0; row < BLOCK; row++)
        for (int k = 0; k < GROUP; k++) {
            const uint8_t both = rows[row * row_bytes + k % 16], value = k < 16 ? both & 15 : both >> 4;
            const int lane = 2 * row + k % 2, nibble = k % 8 / 2;
            out[k / 8 * 32 + 2 * lane + nibble / 2] |= (uint8_t)(value << (nibble % 2 * 4));
        }
}

static void pack_bytes(const uint8_t *rows, long row_bytes, uint8_t *out) {
    for (int row = 0; row < BLOCK; row++)
        for (int k = 0; k < GROUP; k++) out[k / 2 * 16 + 2 * row + k % 2] = rows[row * row_bytes + k];
}

static void pack_all(const uint8_t *weight, const uint16_t *scale, const uint16_t *least, long n,
                     long groups, uint8_t *out) {
    const long bytes = least ? GROUP / 2 : GROUP, head = least ? 128 : 256;
    for (long block = 0; block < n / BLOCK; block++)
        for (long g = 0; g < groups; g++, out += least ? NIBBLES : BYTES) {
            const long first = block * BLOCK * groups + g;
            (least ? pack_nibbles : pack_bytes)(weight + first * bytes, groups * bytes, out);
            for (int row = 0; row < BLOCK; row++) {
                memcpy(out + head + 2 * row, scale + first + row * groups, 2);
                if (least) memcpy(out + head + 16 + 2 * row, least + first + row * groups, 2);
            }
        }
}

/* Write two columns of rows 0-3 (or 4-7), in v: row 0, row 0, row 1, ...; rows of `out` are k apart. */
AVX2 static inline void two_columns(float *out, long k, __m256 v) {
    const __m128 a = _mm256_castps256_ps128(v), b = _mm256_extractf128_ps(v, 1);
    _mm_storel_pi((__m64 *)out, a);
    _mm_storeh_pi((__m64 *)(out + k), a);
    _mm_storel_pi((__m64 *)(out + 2 * k), b);
    _mm_storeh_pi((__m64 *)(out + 3 * k), b);
}

AVX2 static inline __m256 twice(__m256 v, int second) {
    const __m256i low = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    const __m256i places = second ? _mm256_add_epi32(low, _mm256_set1_epi32(4)) : low;
    return _mm256_permutevar8x32_ps(v, places);
}

/* One group of 8 rows as ordinary numbers. */
AVX2 static void expand_nibbles(const uint8_t *w, float *out, long k) {
    const __m256 scale = half8(w + 128), least = half8(w + 144);
    const __m256 scale0 = twice(scale, 0), scale1 = twice(scale, 1);
    const __m256 least0 = twice(least, 0), least1 = twice(least, 1);
    for (int at = 0; at < GROUP; at += 2) {
        const __m256i four = _mm256_loadu_si256((const __m256i *)(w + at / 8 * 32));
        const __m256i one = _mm256_and_si256(
            _mm256_srl_epi16(four, _mm_cvtsi32_si128(at % 8 * 2)), _mm256_set1_epi16(15));
        const __m256 a = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(one)));
        const __m256 b = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(one, 1)));
        two_columns(out + at, k, _mm256_fmadd_ps(a, scale0, least0));
        two_columns(out + at + 4 * k, k, _mm256_fmadd_ps(b, scale1, least1));
    }
}

AVX2 static void expand_bytes(const uint8_t *w, float *out, long k) {
    const __m256 scale = half8(w + 256);
    const __m256 scale0 = twice(scale, 0), scale1 = twice(scale, 1);
    for (int at = 0; at < GROUP; at += 2) {
        const __m128i both = _mm_loadu_si128((const __m128i *)(w + at * 8));
        const __m256 a = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(both));
        const __m256 b = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(both, 8)));
        two_columns(out + at, k, _mm256_mul_ps(a, scale0));
        two_columns(out + at + 4 * k, k, _mm256_mul_ps(b, scale1));
    }
}

static void expand_all(const uint8_t *packed, int bits, long n, long k, float *out) {
    for (long row = 0; row < n; row += BLOCK)
        for (long at = 0; at < k; at += GROUP, packed += bits == 4 ? NIBBLES : BYTES)
            (bits == 4 ? expand_nibbles : expand_bytes)(packed, out + row * k + at, k);
}
#endif

static PyObject *supported(PyObject *self, PyObject *none) {
#ifdef HAVE_KERNELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) Py_RETURN_TRUE;
#endif
    Py_RETURN_FALSE;
}

#ifdef HAVE_KERNELS
static int fits(long n, long k) {
    if (n >= BLOCK && n % BLOCK == 0 && k >= GROUP && k % GROUP == 0 && k <= MOST_COLUMNS) return 1;
    PyErr_Format(PyExc_ValueError, "no kernel for a matrix of %ld x %ld", n, k);
    return 0;
}
#endif

/* pack(weight, scale, least, n, k, out): addresses of the matrix (n, k) as it lies on disk, of its
 * half-precision scales and minima (n, k / 32), and of room for n / 8 * k / 32 packed groups; least is
 * 0 for int8. */
static PyObject *pack(PyObject *self, PyObject *args) {
#ifdef HAVE_KERNELS
    unsigned long long weight, scale, least, out;
    long n, k;
    if (!PyArg_ParseTuple(args, "KKKllK", &weight, &scale, &least, &n, &k, &out) || !fits(n, k))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    pack_all((const uint8_t *)(uintptr_t)weight, (const uint16_t *)(uintptr_t)scale,
             (const uint16_t *)(uintptr_t)least, n, k / GROUP, (uint8_t *)(uintptr_t)out);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
#else
    return PyErr_Format(PyExc_NotImplementedError, "no kernel for this processor");
#endif
}

/* expand(packed, bits, n, k, out): addresses of a packed matrix (n, k) and of room for it in float32.
 * Any run of whole blocks is such a matrix. */
static PyObject *expand(PyObject *self, PyObject *args) {
#ifdef HAVE_KERNELS
    unsigned long long packed, out;
    long n, k;
    int bits;
    if (!PyArg_ParseTuple(args, "KillK", &packed, &bits, &n, &k, &out) || !fits(n, k)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    expand_all((const uint8_t *)(uintptr_t)packed, bits, n, k, (float *)(uintptr_t)out);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
#else
    return PyErr_Format(PyExc_NotImplementedError, "no kernel for this processor");
#endif
}

/* multiply(x, y, packed, bits, m, n, k, threads, norm, eps, then, fine): addresses of contiguous float32 x
 * (m, k) and y (m, n) and of the packed matrix (n, k) of 4 or 8 bits; norm is the address of the norm's
 * weight (k) or 0; then is 0 to write, 1 to add to y, 2 to gate, when y is (m, n / 2); fine is 1 for single precision. */
static PyObject *multiply(PyObject *self, PyObject *args) {
#ifdef HAVE_KERNELS
    unsigned long long x, y, packed, norm;
    long m, n, k;
    float eps;
    int bits, threads, then, done, fine = 0;
    if (!PyArg_ParseTuple(args, "KKKillliKfi|i", &x, &y, &packed, &bits, &m, &n, &k, &threads, &norm,
                          &eps, &then, &fine) ||
        !fits(n, k))
        return NULL;
    if (m < 1 || threads < 1 || then < WRITE || then > GATE || (then == GATE && n % (2 * BLOCK)))
        return PyErr_Format(PyExc_ValueError, "cannot multiply %ld vectors this way", m);
    Product p = {.packed = (const uint8_t *)(uintptr_t)packed, .y = (float *)(uintptr_t)y, .m = m,
                 .n = n, .groups = k / GROUP, .group = bits == 4 ? NIBBLES : BYTES, .then = then,
                 .blocks = (then == GATE ? n / 2 : n) / BLOCK};
    Py_BEGIN_ALLOW_THREADS
    done = multiply_all(&p, (const float *)(uintptr_t)x, (const float *)(uintptr_t)norm, eps, threads, fine);
    Py_END_ALLOW_THREADS
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
#else
    return PyErr_Format(PyExc_NotImplementedError, "no kernel for this processor");
#endif
}

static PyMethodDef methods[] = {
    {"supported", supported, METH_NOARGS, "Tell whether this processor has what the kernels need."},
    {"pack", pack, METH_VARARGS, "Lay a quantised matrix out for multiply."},
    {"expand", expand, METH_VARARGS, "Write a packed matrix as ordinary numbers."},
    {"attend", attend, METH_VARARGS, "Let new tokens see what the cache holds of their rows."},
    {"multiply", multiply, METH_VARARGS, "Multiply vectors by a packed matrix."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
