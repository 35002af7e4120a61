"""The builder's log, read: excerpts of what TensorRT for RTX 1.7.1 prints, and TensorRT 10's form of the table."""

from __future__ import annotations

from dovit_deploy.engines.tensorrt.layers import layers_from_table, summary_of_log

RTX = """Layers:
Name: __mye8675_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0
Name: TokenGather.index_select_myl0_7, LayerType: custom_layer, Inputs: [ { Name: tokens, Dimensions: [81,64] }]
Name: node_linear_2+node_linear_1+node_linear_myl0_7, LayerType: gemm, Inputs: [ { Name: mha_in, Dimensions: [-1,192]
Name: _gemm_mha_v2_myl0_12, LayerType: kgen, Inputs: [ { Name: val_1.1_myl0, Dimensions: [3,-1,64]
Name: __myl_FcAddAdd_myl0_13, LayerType: runtime_fusion, Inputs: []
Name: count_DeviceToShapeHostCopy, LayerType: kgen, Inputs: []

I/O Tensors:
 Name: tokens, IOMode: Input, DataType: Half, Dimensions: [691,192], Location: Device, IsShapeInferenceIO: false
 Name: size, IOMode: Input, DataType: Int64, Dimensions: [1], Location: Host, IsShapeInferenceIO: true
"""

TENSORRT = """Engine Layer Information:
Layer(PluginV3): TokenScatter.out, Tactic: 0x0000000000000000, tokens (Half[81,64]) -> out (Half[81,64])
Layer(Myelin): {ForeignNode[a...b]}, Tactic: 0x0000000000000000, out (Half[81,64]) -> logits (Float[1,5])
"""


def test_the_table_of_rtx() -> None:
    messages = ["Parsing", "Total Activation Memory: 100 bytes", RTX, "Total Activation Memory: 8402944 bytes"]
    summary = summary_of_log(messages, attention=2)
    assert (summary.layers, summary.plugin_layers) == (6, 1)
    assert (summary.fused_attention, summary.attention) == (1, 2)
    assert summary.host_syncs == 2
    assert summary.activation_bytes == 8402944


def test_of_several_profiles_the_worst_counts() -> None:
    table = """Layers:
Name: TokenGather.a_myl0_1, LayerType: custom_layer, Inputs: [ { Name: index, Dimensions: [8]
Name: _gemm_mha_v2_myl0_2, LayerType: kgen, Inputs: [ { Name: q, Dimensions: [8]
Name: TokenGather.a [profile 1]_myl1_1, LayerType: custom_layer, Inputs: [ { Name: index [profile 1], Dimensions: [16]
Name: __myl_Move_myl1_2, LayerType: kgen, Inputs: []
Name: __myl_Softmax_myl1_3, LayerType: kgen, Inputs: [ { Name: q [profile 1], Dimensions: [16]
"""
    assert [layer.profile for layer in layers_from_table(table)] == [0, 0, 1, 1, 1]
    summary = summary_of_log([table], attention=1)
    assert (summary.layers, summary.fused_attention, summary.plugin_layers) == (3, 0, 1)


def test_the_table_of_tensorrt_10() -> None:
    layers = layers_from_table(TENSORRT)
    assert [(layer.name, layer.kind) for layer in layers] == [
        ("TokenScatter.out", "PluginV3"),
        ("{ForeignNode[a...b]}", "Myelin"),
    ]
    assert summary_of_log([TENSORRT], attention=0).plugin_layers == 1


def test_a_log_without_a_table() -> None:
    summary = summary_of_log(["nothing"], attention=1)
    assert (summary.layers, summary.fused_attention, summary.activation_bytes) == (0, 0, None)
