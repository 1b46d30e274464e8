// Compiles the rest of a source file for one instruction set, whatever the command line says.
//
// Rules for a file that uses these: include every header first; use nothing from std:: (an inline function of the
// standard library that is compiled here for AVX-512 could become the copy that the linker keeps for the whole
// program); keep everything in an anonymous namespace except the tables it exports.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define PCM_X86 1
#else
#define PCM_X86 0
#endif

#define PCM_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define PCM_TARGET_BEGIN(features) \
  PCM_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define PCM_TARGET_END PCM_PRAGMA(clang attribute pop)
#else
// Templates are instantiated at the end of the file and take the options that hold there: so nothing is popped.
// GCC's AVX-512 intrinsics take "undefined" registers as unused operands and warn about themselves.
#define PCM_TARGET_BEGIN(features)                     \
  PCM_PRAGMA(GCC target(features))                     \
  PCM_PRAGMA(GCC diagnostic ignored "-Wuninitialized") \
  PCM_PRAGMA(GCC diagnostic ignored "-Wmaybe-uninitialized")
#define PCM_TARGET_END
#endif

#define PCM_AVX2 "avx,avx2,fma,f16c"
#define PCM_AVX512 "avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#define PCM_AVX512_BF16 PCM_AVX512 ",avx512bf16"
#define PCM_AMX PCM_AVX512_BF16 ",amx-tile,amx-bf16"

#if defined(__GNUC__)
#define PCM_INLINE inline __attribute__((always_inline))
#else
#define PCM_INLINE inline
#endif
