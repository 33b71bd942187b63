/* Attention over the slot cache; see _attention.c. */
#ifndef GLMKIT_ATTENTION_H
#define GLMKIT_ATTENTION_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *attend(PyObject *self, PyObject *args);

#endif
