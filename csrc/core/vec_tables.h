// The tables that the files of one instruction set export to the dispatch in vec.cpp.
#pragma once

#include "core/rows.h"
#include "core/vec.h"

namespace pcm {

extern const VecOps kVecAvx2, kVecAvx512, kVecAvx512Bf16;
extern const RowOps kRowsAvx2, kRowsAvx512, kRowsAvx512Bf16;

}  // namespace pcm
