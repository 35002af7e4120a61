/* Launchers of the token kernels, callable from C, with nothing of TensorRT.
 *
 * Every pointer but the stream is device memory. A launcher only enqueues work on `stream`: it neither waits nor
 * allocates, so it may be captured into a CUDA graph. It returns what the launch returned (0 is cudaSuccess).
 * `row_bytes` is C times the size of an element; indices are int64.
 */
#ifndef DOVIT_TOKEN_KERNELS_H
#define DOVIT_TOKEN_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* values (kept, C) = rows `index` (kept,) of tokens (total, C). */
cudaError_t dovit_gather(const void* tokens, const int64_t* index, void* values, int64_t total, int64_t kept,
                         int64_t row_bytes, cudaStream_t stream);

/* output (total, C) = tokens with rows `index` (kept,), each named once, replaced by values (kept, C).
 * `output` may be `tokens` itself: then only the rows are written. `valid` () int64, or NULL: only the first so many
 * entries of `index` are replaced, the others are padding. */
cudaError_t dovit_scatter(const void* tokens, const int64_t* index, const void* values, const int64_t* valid,
                          void* output, int64_t total, int64_t kept, int64_t row_bytes, cudaStream_t stream);

/* order (total,) int64: positions where `keep` (total,) is not 0, then the others, each in raster order;
 * count () int64: how many are kept. An entry of `keep` has `mask_bytes` bytes: 1 (bool) or 8 (int64). */
cudaError_t dovit_compact(const void* keep, int64_t mask_bytes, int64_t* order, int64_t* count, int64_t total,
                          cudaStream_t stream);

/* Only the kept positions: index (count,) int64, for which there is room for `total`;
 * size () int32: their number. */
cudaError_t dovit_compact_index(const void* keep, int64_t mask_bytes, int64_t* index, int32_t* size, int64_t total,
                                cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
