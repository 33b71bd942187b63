/* A whole stack of GLM blocks in one call: norm, projection, attention, and the gated unit, layer by
 * layer, through the functions that do each of them alone. For one token the calls from outside would
 * take almost as long as the arithmetic.
 */
#include "_blocks.h"

#include "_attention.h"
#include "_kernels.h"
#include "_threads.h"

#ifdef HAVE_KERNELS
#include <stdlib.h>

/* A matrix and what goes before and after it: addresses and numbers, as Python writes them. */
typedef struct {
    int64_t norm, packed, bits, width, bias; /* norm and bias may be 0 */
} Step;

typedef struct {
    Step qkv, dense, up, down;
} Layer;

typedef struct {
    const Layer *layers;
    const int64_t *held; /* of each layer, as in Attention */
    long count, hidden, inner;
    float eps;
    int threads;
} Stack;

static void add_bias(float *y, const float *bias, long rows, long width) {
    for (long row = 0; row < rows; row++, y += width)
        for (long at = 0; at < width; at++) y[at] += bias[at];
}

/* y = what step makes of x (rows, from), (rows, to). */
static int take(const Stack *s, const Step *step, const float *x, long rows, long from, float *y, long to,
                int then) {
    Product p = {.packed = (const uint8_t *)(uintptr_t)step->packed, .x = x,
                 .norm = (const float *)(uintptr_t)step->norm, .eps = s->eps, .y = y, .m = rows,
                 .groups = from / GROUP, .bits = (int)step->bits, .width = (int)step->width,
                 .then = then, .blocks = to / BLOCK};
    if (!multiply_all(&p, s->threads)) return 0;
    if (step->bias) add_bias(y, (const float *)(uintptr_t)step->bias, rows, to);
    return 1;
}

static int run_layer(const Stack *s, const Layer *layer, Attention *a, float *x, float *qkv, float *mixed,
                     float *wide) {
    const long rows = a->rows * a->tokens, all = (a->heads + 2 * a->shared) * a->size;
    return take(s, &layer->qkv, x, rows, s->hidden, qkv, all, WRITE) && attend_all(a, s->threads) &&
           take(s, &layer->dense, mixed, rows, a->heads * a->size, x, s->hidden, ADD) &&
           take(s, &layer->up, x, rows, s->hidden, wide, s->inner, GATE) &&
           take(s, &layer->down, wide, rows, s->inner, x, s->hidden, ADD);
}

/* Set an error and return 0 if a step is none that `multiply` would do. */
static int step_fits(const Step *step, long n, long k, int then, int normed) {
    if (!product_fits(1, n, k, (int)step->bits, (int)step->width, then)) return 0;
    if (step->packed && !step->norm == !normed && (then == WRITE || !step->bias)) return 1;
    PyErr_SetString(PyExc_ValueError, "a step of a block has not what it needs, or too much");
    return 0;
}

static int layers_fit(const Stack *s, const Attention *a) {
    const long mixed = a->heads * a->size, all = mixed + 2 * a->shared * a->size;
    int fine = 1;
    for (const Layer *layer = s->layers; fine && layer < s->layers + s->count; layer++)
        fine = step_fits(&layer->qkv, all, s->hidden, WRITE, 1) &&
               step_fits(&layer->dense, s->hidden, mixed, ADD, 0) &&
               step_fits(&layer->up, 2 * s->inner, s->hidden, GATE, 1) &&
               step_fits(&layer->down, s->hidden, s->inner, ADD, 0);
    return fine;
}

static int run_all(const Stack *s, Attention *a, float *x) {
    const long rows = a->rows * a->tokens, mixed = a->heads * a->size;
    const long all = mixed + 2 * a->shared * a->size;
    float *room = malloc((size_t)(rows * (all + mixed + s->inner)) * sizeof(float));
    int done = room != NULL;
    if (done) a->qkv = room, a->out = room + rows * all;
    for (long at = 0; done && at < s->count; at++) {
        a->held = (float *)(uintptr_t)s->held[at];
        done = run_layer(s, s->layers + at, a, x, room, a->out, a->out + rows * mixed);
    }
    free(room);
    return done;
}
#endif

/* run(x, layers, held, turns, starts, count, hidden, inner, rows, tokens, heads, shared, size, turned, room,
 * eps, threads): addresses and sizes as above and in Attention; x (rows, tokens, hidden) is changed in place. */
PyObject *run(PyObject *self, PyObject *args) {
#ifdef HAVE_KERNELS
    unsigned long long x, layers, held, turns, starts;
    int done;
    Stack s;
    Attention a = {.failed = 0};
    if (!PyArg_ParseTuple(args, "KKKKKllllllllllfi", &x, &layers, &held, &turns, &starts, &s.count,
                          &s.hidden, &s.inner, &a.rows, &a.tokens, &a.heads, &a.shared, &a.size,
                          &a.turned, &a.room, &s.eps, &s.threads))
        return NULL;
    s.layers = (const Layer *)(uintptr_t)layers, s.held = (const int64_t *)(uintptr_t)held;
    a.turns = (const float *)(uintptr_t)turns, a.starts = (const int64_t *)(uintptr_t)starts;
    s.threads = bounded(s.threads);
    if (!attention_fits(&a) || !layers_fit(&s, &a)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    done = run_all(&s, &a, (float *)(uintptr_t)x);
    Py_END_ALLOW_THREADS
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
#else
    return PyErr_Format(PyExc_NotImplementedError, "no kernel for this processor");
#endif
}
