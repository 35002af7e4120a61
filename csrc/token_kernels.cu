// Launchers: the widest unit that fits, the shape of the grid, and nothing launched where there is nothing to do.
#include "token_kernels.h"

#include "token_kernels.cuh"
#include "token_shapes.h"

namespace {

template <typename Unit>
using Gather = void (*)(const Unit*, const long long*, Unit*, long long, long long, long long);
template <typename Unit>
using Scatter = void (*)(const long long*, const Unit*, Unit*, const long long*, long long, long long, long long);

struct Rows {
    int64_t total, kept, row_bytes;
};

template <typename Unit>
cudaError_t launch_gather(Gather<Unit> kernel, const void* tokens, const int64_t* index, void* values, const Rows& rows,
                          cudaStream_t stream) {
    const long long units = rows.row_bytes / static_cast<int64_t>(sizeof(Unit));
    const dovit::RowGrid grid = dovit::row_grid(units, rows.kept);
    kernel<<<grid.blocks, dim3(grid.width, grid.rows), 0, stream>>>(
        static_cast<const Unit*>(tokens), reinterpret_cast<const long long*>(index), static_cast<Unit*>(values),
        rows.total, rows.kept, units);
    return cudaGetLastError();
}

template <typename Unit>
cudaError_t launch_scatter(Scatter<Unit> kernel, const int64_t* index, const void* values, const int64_t* valid,
                           void* output, const Rows& rows, cudaStream_t stream) {
    const long long units = rows.row_bytes / static_cast<int64_t>(sizeof(Unit));
    const dovit::RowGrid grid = dovit::row_grid(units, rows.kept);
    kernel<<<grid.blocks, dim3(grid.width, grid.rows), 0, stream>>>(
        reinterpret_cast<const long long*>(index), static_cast<const Unit*>(values), static_cast<Unit*>(output),
        reinterpret_cast<const long long*>(valid), rows.total, rows.kept, units);
    return cudaGetLastError();
}

cudaError_t compact(const void* keep, int64_t mask_bytes, int64_t* order, int64_t* count, int32_t* size, int64_t total,
                    cudaStream_t stream) {
    if (total < 0 || (mask_bytes != 1 && mask_bytes != 8)) return cudaErrorInvalidValue;
    // With no tokens one block still writes the count.
    const unsigned blocks = dovit::compact_blocks(total, dovit::kCompactTile);
    auto* target = reinterpret_cast<long long*>(order);
    auto* kept = reinterpret_cast<long long*>(count);
    if (mask_bytes == 1) {
        dovit_compact_1<<<blocks, dovit::kCompactThreads, 0, stream>>>(static_cast<const unsigned char*>(keep), target,
                                                                       kept, size, total);
    } else {
        dovit_compact_8<<<blocks, dovit::kCompactThreads, 0, stream>>>(static_cast<const long long*>(keep), target,
                                                                       kept, size, total);
    }
    return cudaGetLastError();
}

}  // namespace

cudaError_t dovit_gather(const void* tokens, const int64_t* index, void* values, int64_t total, int64_t kept,
                         int64_t row_bytes, cudaStream_t stream) {
    if (total < 0 || kept < 0 || row_bytes < 0) return cudaErrorInvalidValue;
    if (kept == 0 || row_bytes == 0) return cudaSuccess;
    const Rows rows{total, kept, row_bytes};
    switch (dovit::unit_bytes(tokens, values, row_bytes)) {
        case 16:
            return launch_gather(dovit_gather_rows_16, tokens, index, values, rows, stream);
        case 4:
            return launch_gather(dovit_gather_rows_4, tokens, index, values, rows, stream);
        case 2:
            return launch_gather(dovit_gather_rows_2, tokens, index, values, rows, stream);
        default:
            return launch_gather(dovit_gather_rows_1, tokens, index, values, rows, stream);
    }
}

cudaError_t dovit_scatter(const void* tokens, const int64_t* index, const void* values, const int64_t* valid,
                          void* output, int64_t total, int64_t kept, int64_t row_bytes, cudaStream_t stream) {
    if (total < 0 || kept < 0 || row_bytes < 0) return cudaErrorInvalidValue;
    if (total == 0 || row_bytes == 0) return cudaSuccess;
    if (output != tokens) {
        const cudaError_t copied = cudaMemcpyAsync(output, tokens, total * row_bytes, cudaMemcpyDeviceToDevice, stream);
        if (copied != cudaSuccess) return copied;
    }
    if (kept == 0) return cudaSuccess;
    const Rows rows{total, kept, row_bytes};
    switch (dovit::unit_bytes(values, output, row_bytes)) {
        case 16:
            return launch_scatter(dovit_scatter_rows_16, index, values, valid, output, rows, stream);
        case 4:
            return launch_scatter(dovit_scatter_rows_4, index, values, valid, output, rows, stream);
        case 2:
            return launch_scatter(dovit_scatter_rows_2, index, values, valid, output, rows, stream);
        default:
            return launch_scatter(dovit_scatter_rows_1, index, values, valid, output, rows, stream);
    }
}

cudaError_t dovit_compact(const void* keep, int64_t mask_bytes, int64_t* order, int64_t* count, int64_t total,
                          cudaStream_t stream) {
    return compact(keep, mask_bytes, order, count, nullptr, total, stream);
}

cudaError_t dovit_compact_index(const void* keep, int64_t mask_bytes, int64_t* index, int32_t* size, int64_t total,
                                cudaStream_t stream) {
    return compact(keep, mask_bytes, index, nullptr, size, total, stream);
}
