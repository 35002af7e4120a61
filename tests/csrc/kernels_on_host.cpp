// The token kernels run by g++, with the grid that the launchers use, behind the same C functions but for the stream.
#include <cstdint>
#include <cstring>

#include "cuda_on_host.h"

#include "token_kernels.cuh"
#include "token_shapes.h"

namespace {

template <typename Unit>
using Gather = void (*)(const Unit*, const long long*, const long long*, Unit*, int*, long long, long long, long long);

template <typename Unit>
void gather(Gather<Unit> kernel, const void* tokens, const long long* index, const long long* count, void* values,
            int* size, long long total, long long kept, long long row_bytes) {
    const long long units = row_bytes / static_cast<long long>(sizeof(Unit));
    const dovit::RowGrid grid = dovit::row_grid(units, kept);
    host::launch(grid.blocks, dim3{grid.width, grid.rows, 1}, [=] {
        kernel(static_cast<const Unit*>(tokens), index, count, static_cast<Unit*>(values), size, total, kept,
               units);
    });
}

template <typename Unit>
void scatter(void (*kernel)(const long long*, const Unit*, Unit*, long long, long long, long long),
             const long long* index, const void* values, void* output, long long total, long long kept,
             long long row_bytes) {
    const long long units = row_bytes / static_cast<long long>(sizeof(Unit));
    const dovit::RowGrid grid = dovit::row_grid(units, kept);
    host::launch(grid.blocks, dim3{grid.width, grid.rows, 1}, [=] {
        kernel(index, static_cast<const Unit*>(values), static_cast<Unit*>(output), total, kept, units);
    });
}

}  // namespace

extern "C" {

int host_unit(const void* first, const void* second, long long row_bytes) {
    return dovit::unit_bytes(first, second, row_bytes);
}

void host_grid(long long units, long long rows, unsigned* shape) {
    const dovit::RowGrid grid = dovit::row_grid(units, rows);
    shape[0] = grid.width, shape[1] = grid.rows, shape[2] = grid.blocks;
}

void host_gather(const void* tokens, const long long* index, const long long* count, void* values, int* size,
                 long long total, long long kept, long long row_bytes) {
    if (kept == 0 || row_bytes == 0) return;
    switch (dovit::unit_bytes(tokens, values, row_bytes)) {
        case 16: return gather(dovit_gather_rows_16, tokens, index, count, values, size, total, kept, row_bytes);
        case 4: return gather(dovit_gather_rows_4, tokens, index, count, values, size, total, kept, row_bytes);
        case 2: return gather(dovit_gather_rows_2, tokens, index, count, values, size, total, kept, row_bytes);
        default: return gather(dovit_gather_rows_1, tokens, index, count, values, size, total, kept, row_bytes);
    }
}

void host_scatter(const void* tokens, const long long* index, const void* values, void* output, long long total,
                  long long kept, long long row_bytes) {
    if (output != tokens) std::memcpy(output, tokens, total * row_bytes);
    if (kept == 0 || row_bytes == 0) return;
    switch (dovit::unit_bytes(values, output, row_bytes)) {
        case 16: return scatter(dovit_scatter_rows_16, index, values, output, total, kept, row_bytes);
        case 4: return scatter(dovit_scatter_rows_4, index, values, output, total, kept, row_bytes);
        case 2: return scatter(dovit_scatter_rows_2, index, values, output, total, kept, row_bytes);
        default: return scatter(dovit_scatter_rows_1, index, values, output, total, kept, row_bytes);
    }
}

void host_compact(const void* keep, long long mask_bytes, long long* order, long long* count, long long total) {
    const unsigned blocks = dovit::compact_blocks(total, dovit::kCompactTile);
    host::launch(blocks, dim3{dovit::kCompactThreads, 1, 1}, [=] {
        if (mask_bytes == 1) {
            dovit_compact_1(static_cast<const unsigned char*>(keep), order, count, total);
        } else {
            dovit_compact_8(static_cast<const long long*>(keep), order, count, total);
        }
    });
}
}
