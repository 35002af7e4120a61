// The plugins' work without TensorRT. Every size is checked, since a kernel given a wrong one writes anywhere.
#include "token_enqueue.h"

#include <cstring>

#include "token_kernels.h"

namespace {

bool is_rows(const dovit_tensor& tensor, int64_t rows, const dovit_tensor& like) {
    return tensor.rank == 2 && tensor.dims[0] == rows && tensor.dims[1] == like.dims[1] &&
           tensor.element_bytes == like.element_bytes;
}

bool is_tokens(const dovit_tensor& tensor) {
    return tensor.rank == 2 && tensor.dims[0] >= 0 && tensor.dims[1] >= 0 &&
           (tensor.element_bytes == 2 || tensor.element_bytes == 4);
}

bool is_index(const dovit_tensor& tensor) {
    return tensor.rank == 1 && tensor.dims[0] >= 0 && tensor.element_bytes == 8;
}

bool is_scalar(const dovit_tensor& tensor, int32_t element_bytes) {
    return tensor.rank == 0 && tensor.element_bytes == element_bytes;
}

int64_t row_bytes(const dovit_tensor& tokens) { return tokens.dims[1] * tokens.element_bytes; }

int64_t* integers(const dovit_tensor& tensor) { return static_cast<int64_t*>(tensor.data); }

cudaError_t gather(const dovit_tensor* in, const dovit_tensor* out, cudaStream_t stream) {
    const dovit_tensor &tokens = in[0], &index = in[1], &values = out[0];
    if (!is_tokens(tokens) || !is_index(index) || !is_rows(values, index.dims[0], tokens)) return cudaErrorInvalidValue;
    return dovit_gather(tokens.data, integers(index), values.data, tokens.dims[0], index.dims[0], row_bytes(tokens),
                        stream);
}

// `padded`: a fourth input says how many entries of the index are none of padding.
cudaError_t scatter(const dovit_tensor* in, const dovit_tensor* out, bool padded, cudaStream_t stream) {
    const dovit_tensor &tokens = in[0], &index = in[1], &values = in[2], &output = out[0];
    if (!is_tokens(tokens) || !is_index(index) || !is_rows(values, index.dims[0], tokens) ||
        !is_rows(output, tokens.dims[0], tokens) || (padded && !is_scalar(in[3], 8))) {
        return cudaErrorInvalidValue;
    }
    return dovit_scatter(tokens.data, integers(index), values.data, padded ? integers(in[3]) : nullptr, output.data,
                         tokens.dims[0], index.dims[0], row_bytes(tokens), stream);
}

cudaError_t partition(const dovit_tensor* in, const dovit_tensor* out, cudaStream_t stream) {
    const dovit_tensor &keep = in[0], &order = out[0], &count = out[1];
    if (!is_index(keep) || !is_index(order) || order.dims[0] != keep.dims[0] || !is_scalar(count, 8)) {
        return cudaErrorInvalidValue;
    }
    return dovit_compact(keep.data, 8, integers(order), integers(count), keep.dims[0], stream);
}

cudaError_t index(const dovit_tensor* in, const dovit_tensor* out, cudaStream_t stream) {
    const dovit_tensor &keep = in[0], &index = out[0], &size = out[1];
    // TensorRT does not say how many there will be (-1): the buffer has room for the bound that the plugin declared.
    if (!is_index(keep) || index.rank != 1 || index.element_bytes != 8 || !is_scalar(size, 4)) {
        return cudaErrorInvalidValue;
    }
    return dovit_compact_index(keep.data, 8, integers(index), static_cast<int32_t*>(size.data), keep.dims[0], stream);
}

}  // namespace

cudaError_t dovit_enqueue(const char* name, const dovit_tensor* inputs, int32_t input_count,
                          const dovit_tensor* outputs, int32_t output_count, cudaStream_t stream) {
    const auto is = [&](const char* plugin, int32_t inputs_of, int32_t outputs_of) {
        return std::strcmp(name, plugin) == 0 && input_count == inputs_of && output_count == outputs_of;
    };
    if (is("TokenGather", 2, 1)) return gather(inputs, outputs, stream);
    if (is("TokenScatter", 3, 1)) return scatter(inputs, outputs, false, stream);
    if (is("TokenScatterValid", 4, 1)) return scatter(inputs, outputs, true, stream);
    if (is("TokenPartition", 1, 2)) return partition(inputs, outputs, stream);
    if (is("TokenIndex", 1, 2)) return index(inputs, outputs, stream);
    return cudaErrorInvalidValue;
}
