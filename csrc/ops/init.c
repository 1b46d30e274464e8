/* The kernels register themselves with PyTorch when the library is loaded; the module object itself is empty. */
#include <Python.h>

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", NULL, -1, NULL};

PyMODINIT_FUNC PyInit__C(void) { return PyModule_Create(&module); }
