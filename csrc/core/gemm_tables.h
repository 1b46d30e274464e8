// The tables that the files of one instruction set export to the dispatch in gemm.cpp.
#pragma once

#include "core/gemm.h"

namespace pcm {

extern const TileGemm<float> kGemmAvx2, kGemmAvx512;
extern const TileGemm<bf16> kGemmBf16Avx512, kGemmBf16Amx;

}  // namespace pcm
