/* Attention over the slot cache; see _attention.c. */
#ifndef GLMKIT_ATTENTION_H
#define GLMKIT_ATTENTION_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_kernels.h"

PyObject *attend(PyObject *self, PyObject *args);

#ifdef HAVE_KERNELS
#include <stdatomic.h>

typedef struct {
    const float *qkv;         /* (B, T, H + 2G, D) */
    const float *turns;       /* (B, T, turned / 2) complex; or NULL */
    float *held;              /* (B, 2G, C, D): slots, keys first */
    float *out;               /* (B, T, H, D) */
    const int64_t *starts;    /* (B): what each slot holds already */
    long rows, tokens, heads, shared, size, turned, room; /* B, T, H, G, D, turned components, C */
    long run, runs;           /* tokens of a piece; pieces of a row and a head */
    int task;
    atomic_int failed;
} Attention;

/* Set an error and return 0 if the sizes do not fit each other. */
int attention_fits(const Attention *a);

/* Let the new tokens see; 0 where memory ran out. */
int attend_all(Attention *a, int threads);
#endif
#endif
