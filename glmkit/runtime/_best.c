/* The place of the greatest score of each row, and whether the row is made of numbers. */
#include "_best.h"

#include "_kernels.h"
#include "_threads.h"

#ifdef HAVE_KERNELS
#include <math.h>

typedef struct {
    const float *scores; /* (rows, width) */
    long width;
    int64_t *found; /* (rows): -1 where a score is NaN, or the greatest infinite */
} Search;

AVX2 static void search_row(void *search, long row) {
    const Search *s = search;
    const float *x = s->scores + row * s->width;
    __m256 high = _mm256_set1_ps(-INFINITY), strange = _mm256_setzero_ps();
    long at = 0;
    for (; at + 8 <= s->width; at += 8) {
        const __m256 v = _mm256_loadu_ps(x + at);
        high = _mm256_max_ps(high, v);
        strange = _mm256_or_ps(strange, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    }
    float lanes[8], most = -INFINITY;
    int sound = !_mm256_movemask_ps(strange);
    _mm256_storeu_ps(lanes, high);
    for (int lane = 0; lane < 8; lane++) most = lanes[lane] > most ? lanes[lane] : most;
    for (; at < s->width; at++) {
        sound = sound && !isnan(x[at]);
        most = x[at] > most ? x[at] : most;
    }
    s->found[row] = -1;
    if (!sound || isinf(most)) return;
    for (at = 0; x[at] != most; at++) continue;
    s->found[row] = at;
}
#endif

/* best(scores, rows, width, found, threads): addresses of scores (rows, width) and of room for places. */
PyObject *best(PyObject *self, PyObject *args) {
#ifdef HAVE_KERNELS
    unsigned long long scores, found;
    long rows;
    int threads;
    Search s;
    if (!PyArg_ParseTuple(args, "KllKi", &scores, &rows, &s.width, &found, &threads)) return NULL;
    s.scores = (const float *)(uintptr_t)scores, s.found = (int64_t *)(uintptr_t)found;
    Py_BEGIN_ALLOW_THREADS
    share_out(search_row, &s, rows, bounded(threads));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
#else
    return PyErr_Format(PyExc_NotImplementedError, "no kernel for this processor");
#endif
}
