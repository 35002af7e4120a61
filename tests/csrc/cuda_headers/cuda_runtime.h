// What the CUDA runtime has for C++ beyond its functions; memory is typeless here.
#ifndef DOVIT_TESTS_CUDA_RUNTIME_H
#define DOVIT_TESTS_CUDA_RUNTIME_H

#include "cuda_runtime_api.h"

template <typename T>
cudaError_t cudaMalloc(T** address, size_t bytes) {
    return cudaMalloc(reinterpret_cast<void**>(address), bytes);
}

#endif
