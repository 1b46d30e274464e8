#include "core/cpu.h"

#include <cstdlib>
#include <cstring>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pcm {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx"};

Isa detect() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  bool amx = false;
#if defined(__linux__)
  // AMX-BF16 is bit 22 of EDX in leaf 7; the kernel must also grant the tile state to this process.
  unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
  __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  amx = bf16 && (edx >> 22 & 1) && (edx >> 24 & 1) && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#endif
  return amx ? Isa::amx : bf16 ? Isa::avx512_bf16 : avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::portable;
#else
  return Isa::portable;
#endif
}

Isa choose() {
  const Isa best = detect();
  if (const char* wanted = std::getenv("PYCOTMECH_ISA"))
    for (int i = 0; i <= static_cast<int>(best); i++)
      if (std::strcmp(wanted, kNames[i]) == 0) return static_cast<Isa>(i);
  return best;
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name(Isa i) { return kNames[static_cast<int>(i)]; }

}  // namespace pcm
