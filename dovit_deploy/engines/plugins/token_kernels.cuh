// The device code of token passing: rows gathered, rows put back, the stable order of a keep mask.
//
// Tokens are (N, C) row-major of any element type; a kernel only copies, so a row is a number of equal units: 16 bytes
// where row length and pointers allow it, else 4, 2 or 1. The suffix of a kernel's name is its unit in bytes. An index
// outside [0, N) never touches other memory: gathering gives zeros, putting back skips the row. Nothing here depends on
// the order in which blocks run, and there are no atomics, so the same input gives the same bytes.
//
// This file includes nothing: NVRTC compiles it as it stands, and tests/csrc run it on the host.
#ifndef DOVIT_TOKEN_KERNELS_CUH
#define DOVIT_TOKEN_KERNELS_CUH

namespace dovit {

constexpr int kCompactThreads = 1024;
constexpr int kWarp = 32;
constexpr int kCompactWarps = kCompactThreads / kWarp;
constexpr int kItemsPerThread = 4;
constexpr int kCompactTile = kCompactThreads * kItemsPerThread;

// Each row of threads (threadIdx.y) copies one token; threadIdx.x runs along it.
template <typename Unit>
__device__ void gather_rows(const Unit* tokens, const long long* index, Unit* values, long long total, long long kept,
                            long long units) {
    const long long entry = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (entry >= kept) return;
    const long long row = index[entry];
    const bool inside = row >= 0 && row < total;
    const Unit* source = tokens + (inside ? row : 0) * units;
    Unit* target = values + entry * units;
#pragma unroll 4
    for (long long unit = threadIdx.x; unit < units; unit += blockDim.x) target[unit] = inside ? source[unit] : Unit{};
}

// `index` holds every row at most once: a row named twice would get either value. Where `valid` is given, only the first
// `*valid` entries of it are rows to put back; the others are padding, whose rows keep what stands there.
template <typename Unit>
__device__ void scatter_rows(const long long* index, const Unit* values, Unit* tokens, const long long* valid,
                             long long total, long long kept, long long units) {
    const long long entry = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (entry >= kept || (valid != nullptr && entry >= *valid)) return;
    const long long row = index[entry];
    if (row < 0 || row >= total) return;
    const Unit* source = values + entry * units;
    Unit* target = tokens + row * units;
#pragma unroll 4
    for (long long unit = threadIdx.x; unit < units; unit += blockDim.x) target[unit] = source[unit];
}

// The sum over the block, known to every thread. Every thread calls it; `partial` has kCompactWarps entries.
__device__ inline int block_sum(int value, int* partial) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
    __syncthreads();
    int sum = 0;
    for (int warp = 0; warp < kCompactWarps; ++warp) sum += partial[warp];
    return sum;
}

// The sum over the threads before this one.
__device__ inline int block_exclusive_sum(int value, int* partial) {
    const int lane = threadIdx.x % kWarp;
    int inclusive = value;
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const int before = __shfl_up_sync(0xffffffffu, inclusive, distance);
        if (lane >= distance) inclusive += before;
    }
    __syncthreads();
    if (lane == kWarp - 1) partial[threadIdx.x / kWarp] = inclusive;
    __syncthreads();
    int sum = inclusive - value;
    for (int warp = 0; warp < static_cast<int>(threadIdx.x) / kWarp; ++warp) sum += partial[warp];
    return sum;
}

// Stable order of a mask: kept positions first, then the rest, each in raster order. With `size` instead of `count`
// only the kept positions are written: TensorRT wants an output's size as an int.
//
// A block places one tile of kCompactTile positions. It counts what is kept before its tile, and in all, by itself:
// the mask is small (64 KiB of bytes for 65536 tokens) and stays in the L2 cache, so reading it again is cheaper than
// a second launch, and no block waits for another.
template <typename Mask>
__device__ void compact(const Mask* keep, long long* order, long long* count, int* size, long long total) {
    __shared__ int partial[kCompactWarps];
    const long long start = static_cast<long long>(blockIdx.x) * kCompactTile;
    int before = 0, from = 0;
    for (long long i = threadIdx.x; i < start; i += kCompactThreads) before += keep[i] != 0;
    for (long long i = start + threadIdx.x; i < total; i += kCompactThreads) from += keep[i] != 0;
    const long long kept_before = block_sum(before, partial);
    const long long kept_in_all = kept_before + block_sum(from, partial);

    const long long first = start + static_cast<long long>(threadIdx.x) * kItemsPerThread;
    bool mine[kItemsPerThread];
    int own = 0;
    for (int item = 0; item < kItemsPerThread; ++item) {
        mine[item] = first + item < total && keep[first + item] != 0;
        own += mine[item];
    }
    long long kept = kept_before + block_exclusive_sum(own, partial);
    for (int item = 0; item < kItemsPerThread; ++item) {
        const long long position = first + item;
        if (position >= total) break;
        // Of the positions before this one, `kept` are kept and the others are not.
        if (mine[item] || size == nullptr) order[mine[item] ? kept : kept_in_all + position - kept] = position;
        kept += mine[item];
    }
    if (blockIdx.x != 0 || threadIdx.x != 0) return;
    if (count != nullptr) *count = kept_in_all;
    if (size != nullptr) *size = static_cast<int>(kept_in_all);
}

}  // namespace dovit

#define DOVIT_ROW_KERNELS(bytes, Unit)                                                                               \
    extern "C" __global__ void dovit_gather_rows_##bytes(const Unit* tokens, const long long* index,                 \
                                                         Unit* values, long long total, long long kept,              \
                                                         long long units) {                                          \
        dovit::gather_rows(tokens, index, values, total, kept, units);                                               \
    }                                                                                                                \
    extern "C" __global__ void dovit_scatter_rows_##bytes(const long long* index, const Unit* values, Unit* tokens,  \
                                                          const long long* valid, long long total, long long kept,   \
                                                          long long units) {                                         \
        dovit::scatter_rows(index, values, tokens, valid, total, kept, units);                                       \
    }

DOVIT_ROW_KERNELS(16, uint4)
DOVIT_ROW_KERNELS(4, unsigned int)
DOVIT_ROW_KERNELS(2, unsigned short)
DOVIT_ROW_KERNELS(1, unsigned char)

extern "C" __global__ void __launch_bounds__(dovit::kCompactThreads)
    dovit_compact_1(const unsigned char* keep, long long* order, long long* count, int* size, long long total) {
    dovit::compact(keep, order, count, size, total);
}

extern "C" __global__ void __launch_bounds__(dovit::kCompactThreads)
    dovit_compact_8(const long long* keep, long long* order, long long* count, int* size, long long total) {
    dovit::compact(keep, order, count, size, total);
}

#endif
