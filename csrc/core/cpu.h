// What this processor can do, found once at run time. Torch-free.
#pragma once

namespace pcm {

enum class Isa { portable, avx2, avx512, avx512_bf16, amx };

// The best instruction set that this processor and operating system offer. The environment variable PYCOTMECH_ISA
// ("portable", "avx2", "avx512", "avx512_bf16", "amx") lowers it, for tests and comparisons; it never raises it.
Isa isa();

const char* isa_name(Isa);

}  // namespace pcm
