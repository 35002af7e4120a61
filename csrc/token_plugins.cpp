// TokenGather, TokenScatter, TokenScatterValid, TokenPartition and TokenIndex as TensorRT plugins (IPluginV3: core, build, runtime).
//
// Compiled against the headers of the user's TensorRT or TensorRT for RTX, linked with no library of either: all that
// is called is virtual or inline. What a plugin does when it runs is in token_enqueue.cpp.
#include <NvInferRuntime.h>

#include <cstring>
#include <new>

#include "token_enqueue.h"

namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IExprBuilder;
using nvinfer1::IPluginV3;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr char const* kNamespace = "dovit";
constexpr char const* kVersion = "1";
constexpr int32_t kMostTensors = 4;

// Rows (N, C) of the type of the tokens; int64 vectors and scalars; the int32 scalar that TensorRT requires for a size.
enum class Role { kTokens, kIntegers, kSize };
// What the shapes of the outputs are.
enum class Shapes { kGather, kScatter, kPartition, kIndex };

// A plugin as data: its name and what each tensor is, inputs first.
struct Kind {
    char const* name;
    Shapes shapes;
    int32_t inputs;
    int32_t outputs;
    Role roles[kMostTensors + 1];
};

constexpr Kind kKinds[] = {
    {"TokenGather", Shapes::kGather, 2, 1, {Role::kTokens, Role::kIntegers, Role::kTokens}},
    {"TokenScatter", Shapes::kScatter, 3, 1, {Role::kTokens, Role::kIntegers, Role::kTokens, Role::kTokens}},
    {"TokenScatterValid",
     Shapes::kScatter,
     4,
     1,
     {Role::kTokens, Role::kIntegers, Role::kTokens, Role::kIntegers, Role::kTokens}},
    {"TokenPartition", Shapes::kPartition, 1, 2, {Role::kIntegers, Role::kIntegers, Role::kIntegers}},
    {"TokenIndex", Shapes::kIndex, 1, 2, {Role::kIntegers, Role::kIntegers, Role::kSize}},
};
constexpr int32_t kKindCount = sizeof(kKinds) / sizeof(kKinds[0]);

int32_t element_bytes(DataType type) {
    switch (type) {
        case DataType::kHALF:
        case DataType::kBF16:
            return 2;
        case DataType::kFLOAT:
        case DataType::kINT32:
            return 4;
        case DataType::kINT64:
            return 8;
        default:
            return 0;
    }
}

// The tensor as token_enqueue.h defines it; a rank that no plugin has becomes -1, which is refused there.
dovit_tensor tensor_from(PluginTensorDesc const& desc, void const* data) {
    dovit_tensor tensor{};
    tensor.data = const_cast<void*>(data);
    tensor.rank = desc.dims.nbDims > 2 ? -1 : desc.dims.nbDims;
    for (int32_t axis = 0; axis < tensor.rank; ++axis) tensor.dims[axis] = desc.dims.d[axis];
    tensor.element_bytes = element_bytes(desc.type);
    return tensor;
}

class TokenPlugin final : public IPluginV3,
                          public nvinfer1::IPluginV3OneCore,
                          public nvinfer1::IPluginV3OneBuild,
                          public nvinfer1::IPluginV3OneRuntime {
public:
    explicit TokenPlugin(Kind const& kind) : kind_(kind) {}

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE:
                return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD:
                return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME:
                return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    IPluginV3* clone() noexcept override { return new (std::nothrow) TokenPlugin(kind_); }

    char const* getPluginName() const noexcept override { return kind_.name; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t getNbOutputs() const noexcept override { return kind_.outputs; }

    int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t inputs, DynamicPluginTensorDesc const*,
                            int32_t outputs) noexcept override {
        return inputs == kind_.inputs && outputs == kind_.outputs ? 0 : 1;
    }

    int32_t getOutputDataTypes(DataType* types, int32_t outputs, DataType const* input_types,
                               int32_t inputs) const noexcept override {
        if (inputs != kind_.inputs || outputs != kind_.outputs) return 1;
        for (int32_t i = 0; i < outputs; ++i) {
            const Role role = kind_.roles[inputs + i];
            types[i] = role == Role::kTokens   ? input_types[0]
                       : role == Role::kSize ? DataType::kINT32
                                             : DataType::kINT64;
        }
        return 0;
    }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t input_count, DimsExprs const*, int32_t, DimsExprs* outputs,
                            int32_t output_count, IExprBuilder& expressions) noexcept override {
        if (input_count != kind_.inputs || output_count != kind_.outputs) return 1;
        outputs[0] = inputs[0];
        switch (kind_.shapes) {
            case Shapes::kGather:
                if (inputs[0].nbDims != 2 || inputs[1].nbDims != 1) return 1;
                outputs[0].d[0] = inputs[1].d[0];
                return 0;
            case Shapes::kScatter:
                return inputs[0].nbDims == 2 && inputs[1].nbDims == 1 ? 0 : 1;
            case Shapes::kPartition:
                outputs[1].nbDims = 0;
                return inputs[0].nbDims == 1 ? 0 : 1;
            case Shapes::kIndex:
                break;
        }
        if (inputs[0].nbDims != 1) return 1;
        // Only the device knows the count. Tuned for half of the tokens, with room for all of them.
        auto const& total = *inputs[0].d[0];
        auto const* half = expressions.operation(nvinfer1::DimensionOperation::kCEIL_DIV, total,
                                                 *expressions.constant(2));
        outputs[0].d[0] = expressions.declareSizeTensor(1, *half, total);
        outputs[1].nbDims = 0;
        return 0;
    }

    bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t inputs,
                                   int32_t outputs) noexcept override {
        if (inputs != kind_.inputs || outputs != kind_.outputs) return false;
        PluginTensorDesc const& tensor = tensors[position].desc;
        if (tensor.format != TensorFormat::kLINEAR) return false;
        switch (kind_.roles[position]) {
            case Role::kTokens:
                return position == 0 ? tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF ||
                                           tensor.type == DataType::kBF16
                                     : tensor.type == tensors[0].desc.type;
            case Role::kSize:
                return tensor.type == DataType::kINT32;
            default:
                return tensor.type == DataType::kINT64;
        }
    }

    int32_t onShapeChange(PluginTensorDesc const*, int32_t inputs, PluginTensorDesc const*,
                          int32_t outputs) noexcept override {
        return inputs == kind_.inputs && outputs == kind_.outputs ? 0 : 1;
    }

    int32_t enqueue(PluginTensorDesc const* input_descs, PluginTensorDesc const* output_descs,
                    void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept override {
        dovit_tensor in[kMostTensors], out[kMostTensors];
        for (int32_t i = 0; i < kind_.inputs; ++i) in[i] = tensor_from(input_descs[i], inputs[i]);
        for (int32_t i = 0; i < kind_.outputs; ++i) out[i] = tensor_from(output_descs[i], outputs[i]);
        return dovit_enqueue(kind_.name, in, kind_.inputs, out, kind_.outputs, stream);
    }

    IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
    PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &no_fields_; }

private:
    Kind const& kind_;
    PluginFieldCollection no_fields_{};
};

class TokenPluginCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    explicit TokenPluginCreator(Kind const& kind) : kind_(kind) {}

    IPluginV3* createPlugin(char const*, PluginFieldCollection const*, nvinfer1::TensorRTPhase) noexcept override {
        return new (std::nothrow) TokenPlugin(kind_);
    }
    PluginFieldCollection const* getFieldNames() noexcept override { return &no_fields_; }
    char const* getPluginName() const noexcept override { return kind_.name; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    Kind const& kind_;
    PluginFieldCollection no_fields_{};
};

DataType type_from(int32_t bytes) {
    return bytes == 2 ? DataType::kHALF : bytes == 8 ? DataType::kINT64 : DataType::kFLOAT;
}

PluginTensorDesc desc_from(dovit_tensor const& tensor) {
    PluginTensorDesc desc{};
    desc.dims.nbDims = tensor.rank;
    for (int32_t axis = 0; axis < tensor.rank && axis < 2; ++axis) desc.dims.d[axis] = tensor.dims[axis];
    desc.type = type_from(tensor.element_bytes);
    desc.format = TensorFormat::kLINEAR;
    desc.scale = 1.0F;
    return desc;
}

nvinfer1::ILoggerFinder* logger_finder = nullptr;

}  // namespace

#define DOVIT_EXPORT extern "C" __attribute__((visibility("default")))

// TensorRT looks these two functions up by name in a plugin library.
DOVIT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static TokenPluginCreator gather{kKinds[0]}, scatter{kKinds[1]}, scatter_valid{kKinds[2]}, partition{kKinds[3]},
        index{kKinds[4]};
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&gather, &scatter, &scatter_valid, &partition, &index};
    static_assert(sizeof(creators) / sizeof(creators[0]) == kKindCount, "a kind without a creator");
    count = kKindCount;
    return creators;
}

// The plugins report through return values and log nothing; TensorRT requires the function to exist.
DOVIT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { logger_finder = finder; }

// For a harness without TensorRT: creates the plugin as TensorRT would, and calls its own enqueue.
DOVIT_EXPORT cudaError_t dovit_plugin_enqueue(char const* name, dovit_tensor const* inputs, int32_t input_count,
                                              dovit_tensor const* outputs, int32_t output_count, cudaStream_t stream) {
    int32_t count = 0;
    auto* const* creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i) {
        auto* creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        if (std::strcmp(creator->getPluginName(), name) != 0) continue;
        if (input_count != kKinds[i].inputs || output_count != kKinds[i].outputs) return cudaErrorInvalidValue;
        PluginTensorDesc in[kMostTensors], out[kMostTensors];
        void const* from[kMostTensors];
        void* to[kMostTensors];
        for (int32_t j = 0; j < input_count; ++j) in[j] = desc_from(inputs[j]), from[j] = inputs[j].data;
        for (int32_t j = 0; j < output_count; ++j) out[j] = desc_from(outputs[j]), to[j] = outputs[j].data;
        IPluginV3* plugin = creator->createPlugin(name, nullptr, nvinfer1::TensorRTPhase::kRUNTIME);
        if (plugin == nullptr) return cudaErrorMemoryAllocation;
        auto* runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(
            plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
        const int32_t code = runtime->enqueue(in, out, from, to, nullptr, stream);
        delete plugin;
        return static_cast<cudaError_t>(code);
    }
    return cudaErrorInvalidValue;
}
