// Turns a count of tokens into the number of the smallest bucket that holds them, and sets a switch of a CUDA graph.
//
// This file includes nothing: NVRTC compiles it as it stands, and tests run it on the host.

// NVRTC knows the types and not the function.
extern "C" __device__ __cudart_builtin__ void CUDARTAPI cudaGraphSetConditional(cudaGraphConditionalHandle handle,
                                                                                unsigned int value);

// One thread. `sizes` (buckets,) ascend. A count beyond the last one gets the last: no number is set that no body has,
// because then none would run, and what the last frame left would pass for the result. `chosen` () is for the report.
extern "C" __global__ void dovit_select_bucket(const long long* count, const long long* sizes, unsigned int buckets,
                                               cudaGraphConditionalHandle handle, int* chosen) {
    unsigned int bucket = 0;
    while (bucket + 1 < buckets && sizes[bucket] < *count) ++bucket;
    *chosen = static_cast<int>(bucket);
    cudaGraphSetConditional(handle, bucket);
}
