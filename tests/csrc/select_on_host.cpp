// The selecting kernel of benchmarks/gpu compiled by g++, for the stand-in driver: it sets the value of a conditional there.
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __cudart_builtin__
#define CUDARTAPI
using cudaGraphConditionalHandle = unsigned long long;

#include "select_bucket.cuh"

extern "C" {

void host_driver_set_conditional(std::uint64_t handle, unsigned value);
int host_driver_register(const char* name, void (*call)(void**), const std::size_t* sizes, int count);

void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned int value) {
    host_driver_set_conditional(handle, value);
}

// Parameters as the driver passes them: their addresses, in order.
static void select_bucket(void** a) {
    dovit_select_bucket(*static_cast<const long long**>(a[0]), *static_cast<const long long**>(a[1]),
                        *static_cast<unsigned*>(a[2]), *static_cast<cudaGraphConditionalHandle*>(a[3]),
                        *static_cast<int**>(a[4]));
}

int host_register_select(void) {
    const std::size_t sizes[] = {8, 8, 4, 8, 8};
    return host_driver_register("dovit_select_bucket", select_bucket, sizes, 5);
}
}
