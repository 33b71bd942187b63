/* A whole stack of blocks in one call; see _blocks.c. */
#ifndef GLMKIT_BLOCKS_H
#define GLMKIT_BLOCKS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *run(PyObject *self, PyObject *args);

#endif
