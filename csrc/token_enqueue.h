/* What the plugins do when they are run, with nothing of TensorRT: shapes checked, a launcher called.
 *
 * token_plugins.cpp calls this from IPluginV3OneRuntime::enqueue, and a harness may call it where there is no TensorRT.
 */
#ifndef DOVIT_TOKEN_ENQUEUE_H
#define DOVIT_TOKEN_ENQUEUE_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A tensor in device memory, row-major. */
typedef struct {
    void* data;
    int64_t dims[2];
    int32_t rank;          /* 0 to 2 */
    int32_t element_bytes; /* 2 (fp16, bf16), 4 (fp32, int32) or 8 (int64) */
} dovit_tensor;

/* Runs the plugin called `name` on `stream`; cudaErrorInvalidValue where name, ranks, types or sizes are not these:
 *   TokenGather     tokens (N, C), index (K,) int64                -> values (K, C)
 *   TokenScatter    tokens (N, C), index (K,) int64, values (K, C) -> tokens (N, C)
 *   TokenScatterValid  as TokenScatter, and valid () int64: only the first so many entries of index count
 *   TokenPartition  keep (N,) int64                                -> order (N,) int64, count () int64
 *   TokenIndex      keep (N,) int64                                -> index (up to N,) int64, size () int32 */
cudaError_t dovit_enqueue(const char* name, const dovit_tensor* inputs, int32_t input_count,
                          const dovit_tensor* outputs, int32_t output_count, cudaStream_t stream);

/* The same through the IPluginV3 that TensorRT would call; only in the plugin library. */
cudaError_t dovit_plugin_enqueue(const char* name, const dovit_tensor* inputs, int32_t input_count,
                                 const dovit_tensor* outputs, int32_t output_count, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
