/* Multiply a few vectors by an int4 or int8 matrix, straight from its form on disk.
 *
 * The vectors are rounded to 16 bits in groups of 32, each with its own scale, so that the inner
 * loop is integer arithmetic: 16 products an instruction. With 8 bits it would be faster by little,
 * and a small model's answers suffer. Built as an optional extension;
 * without it glmkit uses torch's operators. OpenMP is the one that torch has loaded already, so
 * both share one set of threads.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

enum { GROUP = 32, MOST_GROUPS = 8192 };

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAVE_KERNELS 1
#define AVX2 __attribute__((target("avx2,fma,f16c")))

typedef struct {
    const uint8_t *weight;         /* (N, K / 2) nibbles or (N, K) signed bytes */
    const uint16_t *scale, *least; /* half precision (N, groups); least is NULL for int8 */
    const int16_t *x;              /* (M, K), rounded */
    const float *step, *sum;       /* (M, groups): scale and sum of each rounded group */
    float *y;                      /* (M, N) */
    long m, n, groups;
} Product;

AVX2 static inline float total(__m256 v) {
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

AVX2 static void widen(const uint16_t *half, float *out, long count) {
    long at = 0;
    for (; at + 8 <= count; at += 8)
        _mm256_storeu_ps(out + at, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(half + at))));
    for (; at < count; at++) out[at] = _cvtsh_ss(half[at]);
}

/* Fill products[g] = a[g] * b[g]. */
AVX2 static void scale_all(const float *a, const float *b, float *products, long count) {
    for (long at = 0; at < count; at++) products[at] = a[at] * b[at];
}

AVX2 static float dot(const float *a, const float *b, long count) {
    __m256 sum = _mm256_setzero_ps();
    long at = 0;
    for (; at + 8 <= count; at += 8)
        sum = _mm256_fmadd_ps(_mm256_loadu_ps(a + at), _mm256_loadu_ps(b + at), sum);
    float out = total(sum);
    for (; at < count; at++) out += a[at] * b[at];
    return out;
}

/* Add scale * (32 weights . 32 numbers) to the running sums. */
AVX2 static inline __m256 add_group(__m256i first, __m256i second, const int16_t *x, float scale,
                                    __m256 sum) {
    const __m256i *numbers = (const __m256i *)x;
    __m256i pairs = _mm256_add_epi32(_mm256_madd_epi16(first, _mm256_loadu_si256(numbers)),
                                     _mm256_madd_epi16(second, _mm256_loadu_si256(numbers + 1)));
    return _mm256_fmadd_ps(_mm256_set1_ps(scale), _mm256_cvtepi32_ps(pairs), sum);
}

AVX2 static inline __m256 group4(const uint8_t *w, const int16_t *x, float scale, __m256 sum) {
    const __m128i both = _mm_loadu_si128((const __m128i *)w), low = _mm_set1_epi8(15);
    __m256i first = _mm256_cvtepu8_epi16(_mm_and_si128(both, low));
    __m256i second = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(both, 4), low));
    return add_group(first, second, x, scale, sum);
}

AVX2 static inline __m256 group8(const uint8_t *w, const int16_t *x, float scale, __m256 sum) {
    __m256i first = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
    __m256i second = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + 16)));
    return add_group(first, second, x, scale, sum);
}

/* One output row for all vectors. */
AVX2 static void output_row(const Product *p, long row) {
    float scale[MOST_GROUPS], least[MOST_GROUPS], both[MOST_GROUPS];
    const long groups = p->groups, bytes = p->least ? GROUP / 2 : GROUP;
    const uint8_t *weight = p->weight + row * groups * bytes;
    widen(p->scale + row * groups, scale, groups);
    if (p->least) widen(p->least + row * groups, least, groups);
    for (long m = 0; m < p->m; m++) {
        const int16_t *x = p->x + m * groups * GROUP;
        __m256 even = _mm256_setzero_ps(), odd = even;
        long g = 0;
        scale_all(scale, p->step + m * groups, both, groups);
        if (p->least) {
            for (; g + 2 <= groups; g += 2) {
                even = group4(weight + g * bytes, x + g * GROUP, both[g], even);
                odd = group4(weight + (g + 1) * bytes, x + (g + 1) * GROUP, both[g + 1], odd);
            }
            if (g < groups) even = group4(weight + g * bytes, x + g * GROUP, both[g], even);
        } else {
            for (; g + 2 <= groups; g += 2) {
                even = group8(weight + g * bytes, x + g * GROUP, both[g], even);
                odd = group8(weight + (g + 1) * bytes, x + (g + 1) * GROUP, both[g + 1], odd);
            }
            if (g < groups) even = group8(weight + g * bytes, x + g * GROUP, both[g], even);
        }
        float out = total(_mm256_add_ps(even, odd));
        if (p->least) out += dot(least, p->sum + m * groups, groups);
        p->y[m * p->n + row] = out;
    }
}

/* Round vectors to -32767..32767 in groups of 32. NaN and infinity poison their whole group. */
AVX2 static void round_groups(const float *x, long groups, int16_t *q, float *step, float *sum) {
    for (long g = 0; g < groups; g++, x += GROUP, q += GROUP) {
        float most = 0, finite = 0;
        int whole = 0;
        for (int k = 0; k < GROUP; k++) {
            float size = fabsf(x[k]);
            most = size > most ? size : most;
            finite += x[k] * 0.0f;
        }
        const float inverse = most > 0 && finite == 0 ? 32767.0f / most : 0.0f;
        for (int k = 0; k < GROUP; k++) {
            q[k] = inverse > 0 ? (int16_t)_mm_cvtss_si32(_mm_set_ss(x[k] * inverse)) : 0;
            whole += q[k];
        }
        step[g] = finite == 0 ? most / 32767.0f : NAN;
        sum[g] = (float)whole * step[g];
    }
}

static int multiply_all(Product *p, const float *x, int threads) {
    const long places = p->m * p->groups;
    int16_t *q = malloc((size_t)places * GROUP * sizeof(int16_t));
    float *numbers = malloc((size_t)places * 2 * sizeof(float));
    if (q && numbers) {
        round_groups(x, places, q, numbers, numbers + places);
        p->x = q, p->step = numbers, p->sum = numbers + places;
        /* Small pieces, taken as they come: a thread that the system paused delays nobody. */
#pragma omp parallel for schedule(dynamic, 64) num_threads(threads)
        for (long row = 0; row < p->n; row++) output_row(p, row);
    }
    const int done = q && numbers;
    free(q);
    free(numbers);
    return done;
}
#endif

static PyObject *supported(PyObject *self, PyObject *none) {
#ifdef HAVE_KERNELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) Py_RETURN_TRUE;
#endif
    Py_RETURN_FALSE;
}

/* multiply(x, y, weight, scale, least, m, n, k, threads): addresses of contiguous float32 x (m, k)
 * and y (m, n), of the matrix (n, k) and of its scales; least is 0 for int8. */
static PyObject *multiply(PyObject *self, PyObject *args) {
#ifdef HAVE_KERNELS
    unsigned long long x, y, weight, scale, least;
    long m, n, k;
    int threads, done;
    if (!PyArg_ParseTuple(args, "KKKKKllli", &x, &y, &weight, &scale, &least, &m, &n, &k, &threads))
        return NULL;
    if (m < 1 || n < 1 || k < GROUP || k % GROUP || k / GROUP > MOST_GROUPS || threads < 1)
        return PyErr_Format(PyExc_ValueError, "cannot multiply %ld x %ld by %ld x %ld", m, k, n, k);
    Product p = {(const uint8_t *)(uintptr_t)weight, (const uint16_t *)(uintptr_t)scale,
                 (const uint16_t *)(uintptr_t)least, NULL, NULL, NULL, (float *)(uintptr_t)y, m, n,
                 k / GROUP};
    Py_BEGIN_ALLOW_THREADS
    done = multiply_all(&p, (const float *)(uintptr_t)x, threads);
    Py_END_ALLOW_THREADS
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
#else
    return PyErr_Format(PyExc_NotImplementedError, "no kernel for this processor");
#endif
}

static PyMethodDef methods[] = {
    {"supported", supported, METH_NOARGS, "Tell whether this processor has what the kernels need."},
    {"multiply", multiply, METH_VARARGS, "Multiply vectors by a quantised matrix."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
