// Runs the plugins' own enqueue on the GPU without TensorRT, against loops on the host: harness LIBRARY [LARGEST]
//
// LARGEST leaves out more tokens than that, for machines that are slow.
// LIBRARY is build/libdovit_plugins.so (through IPluginV3OneRuntime::enqueue) or build/libdovit_kernels.so (the same
// work without TensorRT's interface). Exit code 0: all equal; 1: something differs; 2: it could not run, and why.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "token_enqueue.h"

namespace {

using Enqueue = decltype(&dovit_enqueue);
using Compact = cudaError_t (*)(const void*, int64_t, int64_t*, int64_t*, int64_t, cudaStream_t);

void check(cudaError_t code, const char* what) {
    if (code == cudaSuccess) return;
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
    std::exit(2);
}

// Device memory that holds a copy of host values and copies them back.
template <typename T>
class OnDevice {
public:
    explicit OnDevice(const std::vector<T>& host) : count_(host.size()) {
        check(cudaMalloc(&data_, std::max<std::size_t>(count_, 1) * sizeof(T)), "cudaMalloc");
        if (count_ > 0) check(cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "copy in");
    }
    ~OnDevice() { cudaFree(data_); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    T* data() const { return static_cast<T*>(data_); }
    std::vector<T> read() const {
        std::vector<T> host(count_);
        check(cudaDeviceSynchronize(), "running a kernel");
        if (count_ > 0) check(cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "copy out");
        return host;
    }

private:
    std::size_t count_;
    void* data_ = nullptr;
};

template <typename T>
dovit_tensor tensor(const OnDevice<T>& memory, std::vector<int64_t> dims) {
    dovit_tensor result{};
    result.data = memory.data();
    result.rank = static_cast<int32_t>(dims.size());
    std::copy(dims.begin(), dims.end(), result.dims);
    result.element_bytes = sizeof(T);
    return result;
}

// Gather and scatter of `kept` of `total` rows of `width` elements of the size of T.
template <typename T>
bool rows_agree(Enqueue enqueue, int64_t total, int64_t kept, int64_t width, std::mt19937& draw) {
    std::vector<T> tokens(total * width), changed(kept * width);
    for (auto& value : tokens) value = static_cast<T>(draw());
    for (auto& value : changed) value = static_cast<T>(draw());
    std::vector<int64_t> order(total);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), draw);
    const std::vector<int64_t> index(order.begin(), order.begin() + kept);

    const int64_t valid = kept / 2;
    std::vector<T> gathered(kept * width), scattered = tokens, front = tokens;
    for (int64_t k = 0; k < kept; ++k) {
        std::copy_n(&tokens[index[k] * width], width, &gathered[k * width]);
        std::copy_n(&changed[k * width], width, &scattered[index[k] * width]);
        if (k < valid) std::copy_n(&changed[k * width], width, &front[index[k] * width]);
    }

    const OnDevice<T> d_tokens(tokens), d_changed(changed), d_gathered(std::vector<T>(kept * width)),
        d_scattered(std::vector<T>(total * width)), d_front(std::vector<T>(total * width));
    const OnDevice<int64_t> d_index(index), d_valid(std::vector<int64_t>{valid});
    const dovit_tensor all = tensor(d_tokens, {total, width}), some = tensor(d_index, {kept});

    const dovit_tensor gather_in[] = {all, some}, gather_out[] = {tensor(d_gathered, {kept, width})};
    check(enqueue("TokenGather", gather_in, 2, gather_out, 1, nullptr), "TokenGather");
    const dovit_tensor scatter_in[] = {all, some, tensor(d_changed, {kept, width})};
    const dovit_tensor scatter_out[] = {tensor(d_scattered, {total, width})};
    check(enqueue("TokenScatter", scatter_in, 3, scatter_out, 1, nullptr), "TokenScatter");
    const dovit_tensor front_in[] = {all, some, scatter_in[2], tensor(d_valid, {})};
    const dovit_tensor front_out[] = {tensor(d_front, {total, width})};
    check(enqueue("TokenScatterValid", front_in, 4, front_out, 1, nullptr), "TokenScatterValid");
    return d_gathered.read() == gathered && d_scattered.read() == scattered && d_front.read() == front;
}

// The two plugins on a mask of int64, and the launcher on a mask of bytes.
bool compaction_agrees(Enqueue enqueue, Compact compact, int64_t total, double share, std::mt19937& draw) {
    std::vector<int64_t> keep(total), expected, rest;
    std::vector<uint8_t> bytes(total);
    for (int64_t i = 0; i < total; ++i) {
        keep[i] = bytes[i] = std::bernoulli_distribution(share)(draw);
        (keep[i] ? expected : rest).push_back(i);
    }
    const std::vector<int64_t> index = expected;
    const int64_t kept = static_cast<int64_t>(index.size());
    expected.insert(expected.end(), rest.begin(), rest.end());

    const OnDevice<int64_t> d_keep(keep), d_order(std::vector<int64_t>(total, -1)), d_count(std::vector<int64_t>{-1}),
        d_index(std::vector<int64_t>(total, -1)), d_again(std::vector<int64_t>(total, -1));
    const OnDevice<uint8_t> d_bytes(bytes);
    const OnDevice<int32_t> d_size(std::vector<int32_t>{-1});
    const dovit_tensor in[] = {tensor(d_keep, {total})};
    const dovit_tensor order[] = {tensor(d_order, {total}), tensor(d_count, {})};
    check(enqueue("TokenPartition", in, 1, order, 2, nullptr), "TokenPartition");
    const dovit_tensor front[] = {tensor(d_index, {total}), tensor(d_size, {})};
    check(enqueue("TokenIndex", in, 1, front, 2, nullptr), "TokenIndex");
    const bool plugins = d_order.read() == expected && d_count.read()[0] == kept && d_size.read()[0] == kept;
    check(compact(d_bytes.data(), 1, d_again.data(), d_count.data(), total, nullptr), "compact");

    std::vector<int64_t> written = d_index.read();
    // Nothing may have been written behind the kept positions.
    std::vector<int64_t> only = index;
    only.resize(total, -1);
    return plugins && written == only && d_again.read() == expected && d_count.read()[0] == kept;
}

}  // namespace

int main(int argc, char** argv) {
    const bool asked = argc == 2 || argc == 3;
    void* library = asked ? dlopen(argv[1], RTLD_NOW) : nullptr;
    if (library == nullptr) {
        std::fprintf(stderr, "usage: harness LIBRARY [LARGEST]%s%s\n", asked ? ": " : "", asked ? dlerror() : "");
        return 2;
    }
    const int64_t largest = argc == 3 ? std::atoll(argv[2]) : INT64_MAX;
    auto* through_plugin = reinterpret_cast<Enqueue>(dlsym(library, "dovit_plugin_enqueue"));
    auto* enqueue = through_plugin ? through_plugin : reinterpret_cast<Enqueue>(dlsym(library, "dovit_enqueue"));
    auto* compact = reinterpret_cast<Compact>(dlsym(library, "dovit_compact"));
    if (enqueue == nullptr || compact == nullptr) {
        std::fprintf(stderr, "%s is not a library of dovit's kernels\n", argv[1]);
        return 2;
    }
    int devices = 0;
    check(cudaGetDeviceCount(&devices), "no GPU");

    std::mt19937 draw(7);
    int cases = 0, wrong = 0;
    const auto say = [&](bool agrees, const char* what, int64_t total, int64_t kept, int64_t width) {
        ++cases;
        if (agrees) return;
        ++wrong;
        std::printf("differs: %s total %lld kept %lld width %lld\n", what, static_cast<long long>(total),
                    static_cast<long long>(kept), static_cast<long long>(width));
    };
    for (const int64_t total : {1, 21, 1025, 4097}) {
        if (total > largest) continue;
        for (const int64_t kept : {int64_t{0}, int64_t{1}, total / 2, total}) {
            for (const int64_t width : {1, 7, 16, 192, 384, 768, 1024}) {
                say(rows_agree<uint16_t>(enqueue, total, kept, width, draw), "16-bit rows", total, kept, width);
                say(rows_agree<uint32_t>(enqueue, total, kept, width, draw), "32-bit rows", total, kept, width);
            }
        }
    }
    for (const int64_t total : {0, 1, 33, 1025, 4096, 4097, 16385, 65536, 100003}) {
        if (total > largest) continue;
        for (const double share : {0.0, 0.3, 1.0}) {
            say(compaction_agrees(enqueue, compact, total, share, draw), "compaction", total, -1, -1);
        }
    }
    std::printf("%d of %d cases equal, through %s\n", cases - wrong, cases,
                through_plugin ? "IPluginV3OneRuntime::enqueue" : "dovit_enqueue (no TensorRT interface)");
    return wrong == 0 ? 0 : 1;
}
