// Just enough of CUDA for g++ to run the token kernels: every thread of a block is a fiber, and a fiber hands over at
// each barrier and shuffle. All threads of a block must meet at the same one, so a diverging barrier is an error here.
#ifndef DOVIT_TESTS_CUDA_ON_HOST_H
#define DOVIT_TESTS_CUDA_ON_HOST_H

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {

constexpr std::size_t kStack = 64 * 1024;

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(kStack);
    const char* waits_at = nullptr;
    bool done = false;
};

inline std::vector<Fiber>& fibers() {
    static std::vector<Fiber> all;
    return all;
}
inline ucontext_t scheduler;
inline std::vector<int> slots;
inline unsigned current;
inline std::function<void()> body;

inline void meet(const char* barrier) {
    Fiber& fiber = fibers()[current];
    fiber.waits_at = barrier;
    swapcontext(&fiber.context, &scheduler);
}

inline void enter() {
    body();
    fibers()[current].done = true;
}

// Runs the block until every thread has returned; between two rounds all of them stand at one barrier.
inline void run_block(unsigned threads) {
    if (fibers().size() < threads) fibers() = std::vector<Fiber>(threads);
    slots.assign(threads, 0);
    for (unsigned thread = 0; thread < threads; ++thread) {
        Fiber& fiber = fibers()[thread];
        fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, enter, 0);
    }
    for (unsigned left = threads; left > 0;) {
        const char* barrier = nullptr;
        unsigned waiting = 0;
        for (unsigned thread = 0; thread < threads; ++thread) {
            Fiber& fiber = fibers()[thread];
            if (fiber.done) continue;
            current = thread;
            threadIdx = dim3{thread % blockDim.x, thread / blockDim.x, 1};
            swapcontext(&scheduler, &fiber.context);
            if (fiber.done) {
                --left;
                continue;
            }
            if (waiting++ == 0) barrier = fiber.waits_at;
            if (barrier != fiber.waits_at) {
                std::fprintf(stderr, "threads of one block wait at different barriers\n");
                std::abort();
            }
        }
        if (waiting != 0 && waiting != left) {
            std::fprintf(stderr, "a thread returned while others wait at a barrier\n");
            std::abort();
        }
    }
}

// The kernel call `kernel` over `blocks` blocks of `block` threads. Blocks run from the last to the first: CUDA promises
// no order, and a kernel that relied on one would fail here.
inline void launch(unsigned blocks, dim3 block, std::function<void()> kernel) {
    blockDim = block;
    gridDim = dim3{blocks, 1, 1};
    body = std::move(kernel);
    for (unsigned number = blocks; number-- > 0;) {
        blockIdx = dim3{number, 0, 0};
        run_block(block.x * block.y);
    }
}

// `kernel<<<blocks, block, shared, stream>>>` as a function of the kernel's arguments; done at once, on no stream.
template <typename... Parameters>
auto kernel_call(void (*kernel)(Parameters...), unsigned blocks, dim3 block, unsigned, void*) {
    return [=](Parameters... arguments) { launch(blocks, block, [=] { kernel(arguments...); }); };
}
template <typename... Parameters>
auto kernel_call(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, unsigned shared, void* stream) {
    return kernel_call(kernel, blocks, dim3{threads, 1, 1}, shared, stream);
}

inline int exchanged(int value, unsigned partner) {
    slots[current] = value;
    meet("shuffle: written");
    const int other = slots[partner];
    meet("shuffle: read");
    return other;
}

}  // namespace host

// Threads of a block lie in rows of blockDim.x; a warp is 32 in that order. A thread resumed after `meet` has the
// threadIdx that the scheduler set for it.
inline void __syncthreads() { host::meet("__syncthreads"); }

inline int __shfl_xor_sync(unsigned, int value, int lanes) { return host::exchanged(value, host::current ^ lanes); }

inline int __shfl_up_sync(unsigned, int value, int lanes) {
    const unsigned lane = host::current % 32;
    return host::exchanged(value, lane >= static_cast<unsigned>(lanes) ? host::current - lanes : host::current);
}

#endif
