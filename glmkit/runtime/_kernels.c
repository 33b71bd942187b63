/* Multiply vectors by an int4 or int8 matrix.
 *
 * What stands before and after the matrix in a GLM block goes along, because for one token a call
 * costs as much as its arithmetic: an RMS norm of the vectors, and then a gated unit or a sum.
 *
 * The vectors are rounded in groups of 32, each with its own scale, so that the inner loop is integer
 * arithmetic: to 8 bits (beside int4), 16 or 32 (see _round.c). With 8 bits an instruction does 32
 * products, with 16 half as many; 32 are single precision, and a quarter. A vector's results do not
 * depend on the others, on how many they are, or on the threads. Built as an optional extension;
 * without it glmkit uses torch's operators.
 *
 * The matrix is packed once when a model is loaded. Eight rows make a block, so that one register
 * holds eight running sums and nothing is summed across; a block is a stream of groups of 32 columns:
 *
 *   int4: 4 x 32 bytes of weights, 8 scales, 8 minima (half precision): 160 bytes
 *   int8: 16 x 16 bytes of weights, 8 scales: 272 bytes
 *
 * In the j-th 32 bytes of an int4 group, byte l is row l / 4, with column 8j + l % 4 in its low half
 * and column 8j + 4 + l % 4 in its high half. In the t-th 16 bytes of an int8 group, byte l is column
 * 2t + l % 2 of row l / 2. This file is the door for Python, _product.c the arithmetic.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "_attention.h"
#include "_best.h"
#include "_blocks.h"
#include "_kernels.h"
#include "_threads.h"

#ifdef HAVE_KERNELS
#include <cpuid.h>
#endif

enum { MOST_COLUMNS = 1 << 20 };

static PyObject *supported(PyObject *self, PyObject *none) {
#ifdef HAVE_KERNELS
    unsigned a, b, c = 0, d;
    __builtin_cpu_init();
    /* not every compiler can be asked for half precision by name */
    const int halves = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    if (halves && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) Py_RETURN_TRUE;
#endif
    Py_RETURN_FALSE;
}

#ifdef HAVE_KERNELS
int matrix_fits(long n, long k) {
    if (n >= BLOCK && n % BLOCK == 0 && k >= GROUP && k % GROUP == 0 && k <= MOST_COLUMNS) return 1;
    PyErr_Format(PyExc_ValueError, "no kernel for a matrix of %ld x %ld", n, k);
    return 0;
}

int product_fits(long m, long n, long k, int bits, int width, int then) {
    if (!matrix_fits(n, k)) return 0;
    const int known = (bits == 4 && width == 8) || ((bits == 4 || bits == 8) && (width == 16 || width == 32));
    if (m < 1 || then < WRITE || then > GATE || (then == GATE && n % (2 * BLOCK)))
        PyErr_Format(PyExc_ValueError, "cannot multiply %ld vectors this way", m);
    else if (!known)
        PyErr_Format(PyExc_ValueError, "no kernel for %d bits by %d bits", bits, width);
    else
        return 1;
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
    if (!PyArg_ParseTuple(args, "KKKllK", &weight, &scale, &least, &n, &k, &out) || !matrix_fits(n, k))
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
    if (!PyArg_ParseTuple(args, "KillK", &packed, &bits, &n, &k, &out) || !matrix_fits(n, k)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    expand_all((const uint8_t *)(uintptr_t)packed, bits, n, k, (float *)(uintptr_t)out);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
#else
    return PyErr_Format(PyExc_NotImplementedError, "no kernel for this processor");
#endif
}

/* multiply(x, y, packed, bits, m, n, k, threads, norm, eps, then, width, team): addresses of contiguous
 * float32 x (m, k) and y (m, n) and of the packed matrix (n, k) of 4 or 8 bits; norm is the address of
 * the norm's weight (k) or 0; then is 0 to write, 1 to add to y, 2 to gate, when y is (m, n / 2);
 * x is rounded to 8 (not beside 8 bits), 16 or 32 bits; team is the address of the GOMP_parallel whose
 * threads do it, or 0 for our own. */
static PyObject *multiply(PyObject *self, PyObject *args) {
#ifdef HAVE_KERNELS
    unsigned long long x, y, packed, norm, team;
    long m, n, k;
    float eps;
    int bits, threads, then, width, done;
    if (!PyArg_ParseTuple(args, "KKKillliKfiiK", &x, &y, &packed, &bits, &m, &n, &k, &threads, &norm,
                          &eps, &then, &width, &team) ||
        !product_fits(m, n, k, bits, width, then))
        return NULL;
    Product p = {.packed = (const uint8_t *)(uintptr_t)packed, .x = (const float *)(uintptr_t)x,
                 .norm = (const float *)(uintptr_t)norm, .eps = eps, .y = (float *)(uintptr_t)y,
                 .m = m, .groups = k / GROUP, .bits = bits, .width = width, .then = then,
                 .blocks = (then == GATE ? n / 2 : n) / BLOCK, .team = (Team)(uintptr_t)team};
    Py_BEGIN_ALLOW_THREADS
    done = multiply_all(&p, bounded(threads));
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
    {"best", best, METH_VARARGS, "Find the greatest score of each row."},
    {"run", run, METH_VARARGS, "Send vectors through a stack of blocks."},
    {"multiply", multiply, METH_VARARGS, "Multiply vectors by a packed matrix."},
    {"attend", attend, METH_VARARGS, "Let new tokens see what the cache holds of their rows."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, methods, NULL, NULL, NULL, NULL};

/* FORM counts the changes of the functions' arguments and of how a matrix is packed. */
PyMODINIT_FUNC PyInit__kernels(void) {
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddIntConstant(made, "FORM", 5)) Py_CLEAR(made);
    return made;
}
