// The torch-free face of the C++ core: what was built, what this processor offers.
// In Python's limited API, so that one build serves every Python from 3.11 on.
#include <Python.h>

#include "core/cpu.h"

#if defined(__VERSION__)
#define PCM_COMPILER __VERSION__
#else
#define PCM_COMPILER "unknown"
#endif

#if defined(__OPTIMIZE__)
#define PCM_OPTIMIZED Py_True
#else
#define PCM_OPTIMIZED Py_False
#endif

namespace {

PyObject* isa(PyObject*, PyObject*) { return PyUnicode_FromString(pcm::isa_name(pcm::isa())); }

PyObject* build(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:l,s:O}", "compiler", PCM_COMPILER, "cplusplus", static_cast<long>(__cplusplus), "optimized",
                       PCM_OPTIMIZED);
}

PyMethodDef functions[] = {
    {"isa", isa, METH_NOARGS, "Instruction set in use: portable, avx2, avx512, avx512_bf16 or amx."},
    {"build", build, METH_NOARGS, "How the core was built: compiler, language version, whether optimised."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_core", "The torch-free C++ core of pycotmech.", -1, functions, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__core(void) { return PyModule_Create(&module); }
