// The torch-free face of the C++ core: what was built, what this processor offers.
#include <pybind11/pybind11.h>

#include "core/cpu.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.doc() = "The torch-free C++ core of pycotmech.";
  m.def("isa", [] { return pcm::isa_name(pcm::isa()); },
        "Instruction set in use: portable, avx2, avx512, avx512_bf16 or amx.");
  m.def("build", [] {
    py::dict d;
#if defined(__VERSION__)
    d["compiler"] = __VERSION__;
#endif
    d["cplusplus"] = static_cast<long>(__cplusplus);
#if defined(__OPTIMIZE__)
    d["optimized"] = true;
#else
    d["optimized"] = false;
#endif
    return d;
  }, "How the core was built: compiler, language version, whether optimised.");
}
