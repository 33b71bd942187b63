/* The greatest score of each row; see _best.c. */
#ifndef GLMKIT_BEST_H
#define GLMKIT_BEST_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *best(PyObject *self, PyObject *args);

#endif
