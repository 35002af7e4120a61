/* A stand-in for the CUDA runtime whose GPU is the CPU: memory is host memory, and work is done at once.
 *
 * It has what csrc/ and the harness call, so that they run where there is neither a GPU nor CUDA. What is allocated holds
 * no zeros, and a write past its end ends the process when it is freed. `cudaGetLastError` is that of a launch before it.
 */
#ifndef DOVIT_TESTS_CUDA_RUNTIME_API_H
#define DOVIT_TESTS_CUDA_RUNTIME_API_H

#include <stddef.h>

typedef enum { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 } cudaError_t;
typedef enum { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 } cudaMemcpyKind;
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t cudaMalloc(void** address, size_t bytes);
cudaError_t cudaFree(void* address);
cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaGetLastError(void);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaGetDeviceCount(int* count);
const char* cudaGetErrorString(cudaError_t code);

#ifdef __cplusplus
}
#endif

#endif
