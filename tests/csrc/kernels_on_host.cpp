// The token kernels compiled by g++: run with the blocks and grid that a launcher would pass to the CUDA driver.
#include <cstdint>
#include <cstring>

#include "cuda_on_host.h"

#include "token_kernels.cuh"
#include "token_shapes.h"

namespace {

template <typename T>
T argument(void** arguments, int number) {
    return *static_cast<T*>(arguments[number]);
}

template <typename Unit>
void gather(void (*kernel)(const Unit*, const long long*, Unit*, long long, long long, long long), void** a) {
    kernel(argument<const Unit*>(a, 0), argument<const long long*>(a, 1), argument<Unit*>(a, 2),
           argument<long long>(a, 3), argument<long long>(a, 4), argument<long long>(a, 5));
}

template <typename Unit>
void scatter(void (*kernel)(const long long*, const Unit*, Unit*, const long long*, long long, long long, long long),
             void** a) {
    kernel(argument<const long long*>(a, 0), argument<const Unit*>(a, 1), argument<Unit*>(a, 2),
           argument<const long long*>(a, 3), argument<long long>(a, 4), argument<long long>(a, 5),
           argument<long long>(a, 6));
}

template <typename Mask>
void compact(void (*kernel)(const Mask*, long long*, long long*, int*, long long), void** a) {
    kernel(argument<const Mask*>(a, 0), argument<long long*>(a, 1), argument<long long*>(a, 2), argument<int*>(a, 3),
           argument<long long>(a, 4));
}

void call(const char* name, void** a) {
    const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
    if (is("dovit_gather_rows_16")) return gather(dovit_gather_rows_16, a);
    if (is("dovit_gather_rows_4")) return gather(dovit_gather_rows_4, a);
    if (is("dovit_gather_rows_2")) return gather(dovit_gather_rows_2, a);
    if (is("dovit_gather_rows_1")) return gather(dovit_gather_rows_1, a);
    if (is("dovit_scatter_rows_16")) return scatter(dovit_scatter_rows_16, a);
    if (is("dovit_scatter_rows_4")) return scatter(dovit_scatter_rows_4, a);
    if (is("dovit_scatter_rows_2")) return scatter(dovit_scatter_rows_2, a);
    if (is("dovit_scatter_rows_1")) return scatter(dovit_scatter_rows_1, a);
    if (is("dovit_compact_1")) return compact(dovit_compact_1, a);
    if (is("dovit_compact_8")) return compact(dovit_compact_8, a);
    std::fprintf(stderr, "no kernel is called %s\n", name);
    std::abort();
}

}  // namespace

extern "C" {

// As cuLaunchKernel: `arguments` are addresses of the kernel's arguments, in order.
void host_launch(const char* name, unsigned blocks, unsigned width, unsigned height, void** arguments) {
    host::launch(blocks, dim3{width, height, 1}, [=] { call(name, arguments); });
}

int host_unit(std::uintptr_t first, std::uintptr_t second, long long row_bytes) {
    return dovit::unit_bytes(reinterpret_cast<void*>(first), reinterpret_cast<void*>(second), row_bytes);
}

void host_grid(long long units, long long rows, unsigned* shape) {
    const dovit::RowGrid grid = dovit::row_grid(units, rows);
    shape[0] = grid.blocks, shape[1] = grid.width, shape[2] = grid.rows;
}

unsigned host_compact_blocks(long long total) { return dovit::compact_blocks(total, dovit::kCompactTile); }
}
