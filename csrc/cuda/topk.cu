// Launches the kernel of topk_kernel.h, behind a C interface.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace pcm {
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
}  // namespace pcm

#include "cuda/topk_kernel.h"

namespace {

template <class T>
int launch(const pcm::TopkLaunch& a, int64_t batches, cudaStream_t stream) {
  const int bytes = pcm::topk_shared(a.D);
  cudaError_t error =
      cudaFuncSetAttribute(pcm::topk_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const dim3 grid((a.T + pcm::kRows - 1) / pcm::kRows, a.H, static_cast<unsigned>(batches));
  pcm::topk_kernel<T><<<grid, pcm::kThreads, bytes, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) const char* pcm_cuda_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

// Returns a cudaError_t. dtype: 0 float32, 1 bfloat16, 2 float16. Strides in elements; the last dims are contiguous,
// p and i are [B][H][T][K]. Nothing is synchronised.
__attribute__((visibility("default"))) int pcm_cuda_topk(
    const void* q, const void* k, const float* lse, const int32_t* starts, float* p, int32_t* i, int32_t dtype,
    int64_t B, int64_t H, int64_t Hkv, int64_t T, int64_t S, int64_t D, int64_t q_batch, int64_t q_head, int64_t q_row,
    int64_t k_batch, int64_t k_head, int64_t k_row, int64_t lse_batch, int64_t lse_head, int64_t lse_row, int32_t topk,
    double scale, int64_t window, double softcap, void* stream) {
  pcm::TopkLaunch a;
  a.q = q, a.k = k, a.lse = lse, a.starts = starts, a.p = p, a.i = i;
  a.q_batch = q_batch, a.q_head = q_head, a.q_row = q_row;
  a.k_batch = k_batch, a.k_head = k_head, a.k_row = k_row;
  a.lse_batch = lse_batch, a.lse_head = lse_head, a.lse_row = lse_row;
  a.H = static_cast<int32_t>(H), a.group = static_cast<int32_t>(H / Hkv);
  a.T = static_cast<int32_t>(T), a.S = static_cast<int32_t>(S), a.D = static_cast<int32_t>(D), a.topk = topk;
  a.window = static_cast<int32_t>(window < S ? window : 0);  // a window of S or more hides nothing
  // As on the host: the maximum is taken before scaling, so the sign of the scale goes into q.
  a.sign = scale > 0 ? 1.f : scale < 0 ? -1.f : 0.f;
  a.scale = scale == 0 ? 1.f : static_cast<float>(scale < 0 ? -scale : scale);
  a.softcap = static_cast<float>(softcap);
  a.unit = softcap > 0 ? 1.f : a.scale;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (dtype == 0) return launch<float>(a, B, on);
  if (dtype == 1) return launch<__nv_bfloat16>(a, B, on);
  return launch<__half>(a, B, on);
}

}  // extern "C"
