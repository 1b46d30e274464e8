// CPU kernels over residual rows, bound to the ops declared in pycotmech/ops.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "core/cpu.h"

// (bindings follow with the kernels)
