// How a copy of rows is cut up: the unit that a thread moves, and the shape of blocks and grid. Plain C++, so that it
// is tested on the host; dovit_deploy/engines/plugins/kernels.py has the same in Python.
#ifndef DOVIT_TOKEN_SHAPES_H
#define DOVIT_TOKEN_SHAPES_H

#include <cstdint>
#include <initializer_list>

namespace dovit {

constexpr unsigned kRowThreads = 256;

struct RowGrid {
    unsigned width;   // threads along a row
    unsigned rows;    // rows a block
    unsigned blocks;
};

// The largest of 16, 4, 2 and 1 bytes that divides a row and both addresses.
inline int unit_bytes(const void* first, const void* second, std::int64_t row_bytes) {
    const std::uint64_t bits = reinterpret_cast<std::uintptr_t>(first) | reinterpret_cast<std::uintptr_t>(second) |
                               static_cast<std::uint64_t>(row_bytes);
    for (const int unit : {16, 4, 2}) {
        if (bits % static_cast<std::uint64_t>(unit) == 0) return unit;
    }
    return 1;
}

// The widest of 128, 64, ... threads along a row that leaves the fewest of them idle.
inline RowGrid row_grid(long long units, long long rows) {
    unsigned best = 1;
    long long least = units;
    for (unsigned width = 2; width <= 128; width *= 2) {
        const long long used = (units + width - 1) / width * width;
        // Idle threads up to an eighth are cheaper than a narrow row.
        if (used - units <= units / 8 || used <= least) {
            best = width;
            least = used;
        }
    }
    const unsigned rows_a_block = kRowThreads / best;
    return {best, rows_a_block, static_cast<unsigned>((rows + rows_a_block - 1) / rows_a_block)};
}

inline unsigned compact_blocks(long long total, long long tile) {
    return total == 0 ? 1u : static_cast<unsigned>((total + tile - 1) / tile);
}

}  // namespace dovit

#endif
