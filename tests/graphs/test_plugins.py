"""The plugin form computes what the portable graphs compute, and its functions what the NumPy reference computes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovit_deploy.graphs.forms import engine_passes
from dovit_deploy.graphs.passes import applied
from dovit_deploy.graphs.plugins import (
    DOMAIN,
    GATHER,
    INDEX,
    PARTITION,
    SCATTER,
    SCATTER_VALID,
    VERSION,
    plugin_call,
    plugin_calls,
    plugin_form,
    token_functions,
)
from tests.engines.plugins.reference import compacted, gathered, scattered
from tests.tiny import tiny_pixels, tiny_spec

HALF, FULL, INT64, INT32 = (
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.INT64,
    onnx.TensorProto.INT32,
)
QUICK = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def graph(nodes, inputs, outputs, initializers=(), functions=()):
    """A model; inputs and outputs are (name, type, shape)."""
    make = onnx.helper
    domains = [make.make_opsetid("", 20), make.make_opsetid(DOMAIN, 1)]
    values = [[make.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
    body = make.make_graph(list(nodes), "g", *values, initializer=list(initializers))
    return make.make_model(body, opset_imports=domains, functions=list(functions), ir_version=10)


def session(model, folder=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def called(name, inputs, outputs):
    """A session of one call of the function `name`."""
    call = plugin_call(
        name, [ir.Value(name=value[0]) for value in inputs], [ir.Value(name=value[0]) for value in outputs]
    )
    functions = [ir.to_proto(function) for function in token_functions().values()]
    return session(graph([ir.to_proto(call)], inputs, outputs, functions=functions))


@pytest.fixture(scope="module", params=[np.float16, np.float32], ids=["fp16", "fp32"])
def rows_functions(request):
    kind = HALF if request.param is np.float16 else FULL
    tokens, index, values = ("tokens", kind, ["n", "c"]), ("index", INT64, ["k"]), ("values", kind, ["k", "c"])
    gather = called(GATHER, [tokens, index], [values])
    output = ("output", kind, ["n", "c"])
    scatter = called(SCATTER, [tokens, index, values], [output])
    scatter_valid = called(SCATTER_VALID, [tokens, index, values, ("valid", INT64, [])], [output])
    return request.param, gather, scatter, scatter_valid


@QUICK
@given(
    total=st.integers(0, 40), share=st.sampled_from([0.0, 0.4, 1.0]), width=st.integers(1, 20), seed=st.integers(0, 9)
)
def test_row_functions_are_the_reference(rows_functions, total, share, width, seed):
    dtype, gather, scatter, scatter_valid = rows_functions
    draw = np.random.default_rng(seed)
    tokens = draw.standard_normal((total, width)).astype(dtype)
    index = draw.permutation(total)[: round(share * total)].astype(np.int64)
    values = draw.standard_normal((len(index), width)).astype(dtype)
    (taken,) = gather.run(None, {"tokens": tokens, "index": index})
    (output,) = scatter.run(None, {"tokens": tokens, "index": index, "values": values})
    np.testing.assert_array_equal(taken, gathered(tokens, index))
    np.testing.assert_array_equal(output, scattered(tokens, index, values))
    np.testing.assert_array_equal(scattered(tokens, index, taken), tokens)
    given = {"tokens": tokens, "index": index, "values": values}
    for valid in {0, len(index) // 2, len(index)}:
        (front,) = scatter_valid.run(None, {**given, "valid": np.asarray(valid, np.int64)})
        np.testing.assert_array_equal(front, scattered(tokens, index, values, valid))


@pytest.fixture(scope="module")
def mask_functions():
    keep, order = ("keep", INT64, ["n"]), ("order", INT64, ["n"])
    partition = called(PARTITION, [keep], [order, ("count", INT64, [])])
    return partition, called(INDEX, [keep], [("index", INT64, ["k"]), ("size", INT32, [])])


@QUICK
@given(total=st.integers(1, 300), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]), seed=st.integers(0, 9))
def test_mask_functions_are_the_reference(mask_functions, total, share, seed):
    partition, index = mask_functions
    keep = (np.random.default_rng(seed).random(total) < share).astype(np.int64)
    expected, expected_count = compacted(keep)
    order, count = partition.run(None, {"keep": keep})
    front, size = index.run(None, {"keep": keep})
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(front, expected[:expected_count])
    assert count == size == expected_count
    assert (order.dtype, count.dtype, front.dtype, size.dtype) == (np.int64, np.int64, np.int64, np.int32)


@QUICK
@given(keep=st.lists(st.booleans(), max_size=60))
def test_the_reference_orders_stably(keep):
    order, count = compacted(np.array(keep, bool))
    assert sorted(order) == list(range(len(keep))) and count == sum(keep)
    assert list(order[:count]) == [position for position, kept in enumerate(keep) if kept]
    assert list(order[count:]) == [position for position, kept in enumerate(keep) if not kept]


CALLS = {
    ("tiny", "stage0"): {PARTITION: 1},
    ("tiny", "stage1"): {GATHER: 2, SCATTER: 1, PARTITION: 1},
    ("tiny", "stage2"): {GATHER: 1, SCATTER: 1},
    ("tiny", "merged"): {GATHER: 3, SCATTER: 2, INDEX: 2},
    ("tiny", "dense"): {},
    ("setr", "stage0"): {PARTITION: 1},
    ("setr", "stage1"): {GATHER: 1, SCATTER: 1},
    ("setr", "merged"): {GATHER: 1, SCATTER: 1, INDEX: 1},
}


@pytest.fixture
def folders(tiny_bundle_path, setr_bundle_path):
    return {"tiny": tiny_bundle_path, "setr": setr_bundle_path}


def in_plugin_form(model):
    """What the pass and the removal of unused nodes behind it make of a model, as `onnx` has it."""
    *_, unused_nodes, _ = engine_passes(precision="fp32", plugins=True)
    return ir.to_proto(applied(model, [plugin_form, unused_nodes]).model)


def forms(folder, name):
    portable = ir.load(folder / f"{name}.onnx")
    return ir.to_proto(portable), in_plugin_form(portable)


@pytest.mark.parametrize(("bundle", "name"), CALLS)
def test_the_calls_of_each_graph(folders, bundle, name):
    given = ir.load(folders[bundle] / f"{name}.onnx")
    portable = ir.to_proto(given)
    plugins = in_plugin_form(given)
    assert portable == ir.to_proto(given), "the argument is left alone"
    assert plugin_form(ir.from_proto(portable)).modified == bool(CALLS[bundle, name])
    assert plugin_calls(ir.from_proto(plugins)) == Counter(CALLS[bundle, name])
    assert {function.name for function in plugins.functions} == set(CALLS[bundle, name])
    # Not one byte of weights is read or copied: every initializer, external ones too, is as it was.
    before, changed = (
        {tensor.name: tensor for tensor in model.graph.initializer}
        for model in (portable, ir.to_proto(applied(given, [plugin_form]).model))
    )
    assert changed == before
    assert all(tensor == before[tensor.name] for tensor in plugins.graph.initializer)
    assert list(plugins.graph.input) == list(portable.graph.input)
    assert list(plugins.graph.output) == list(portable.graph.output)
    again = in_plugin_form(given)
    assert again.SerializeToString(deterministic=True) == plugins.SerializeToString(deterministic=True)
    for node in plugins.graph.node:
        if node.domain == DOMAIN:
            attributes = {attribute.name: attribute.s.decode() for attribute in node.attribute}
            assert (
                attributes
                == {"plugin_namespace": "dovit", "plugin_version": "1"}
                == {
                    "plugin_namespace": DOMAIN,
                    "plugin_version": VERSION,
                }
            )


@pytest.mark.parametrize("bundle", ["tiny", "setr"])
def test_stages_are_bit_equal_in_onnx_runtime(folders, bundle):
    """From the gate's own index, and from replayed ones down to the extra token alone."""
    folder, draw = folders[bundle], np.random.default_rng(2)
    stages = [name for owner, name in CALLS if owner == bundle and name.startswith("stage")]
    pairs = {name: [session(form, folder) for form in forms(folder, name)] for name in stages}
    first = {"pixels": tiny_pixels(tiny_spec().size, seed=4).numpy(), **gate_inputs(pairs["stage0"][0])}
    outputs = compared(pairs["stage0"], first)
    total = len(outputs["order"])
    for name in stages[1:]:
        count = int(outputs["count"])
        assert 1 < count < total, "the gate decides something"
        tokens = outputs["tokens" if name == "stage1" else "tokens_out"]
        own = outputs["order"][:count]
        some = np.sort(draw.choice(np.arange(1, total), 5, replace=False))
        for index in (np.arange(total), np.array([0]), np.concatenate([[0], some]), own):
            inputs = {"tokens": tokens, "index": index.astype(np.int64), **gate_inputs(pairs[name][0])}
            outputs = compared(pairs[name], inputs)


PADDED_CALLS = {
    ("tiny", "stage1"): {GATHER: 2, SCATTER_VALID: 1, PARTITION: 1},
    ("tiny", "stage2"): {GATHER: 1, SCATTER_VALID: 1},
    ("setr", "stage1"): {GATHER: 1, SCATTER_VALID: 1},
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("bundle", "name"), PADDED_CALLS)
def test_under_padding_rows_are_put_back_in_one_call(folders, bundle, name, precision):
    """No gather and no choice in front of it any more, and byte for byte what they gave, whatever number is valid."""
    given, folder = ir.load(folders[bundle] / f"{name}.onnx"), folders[bundle]
    with_calls, without = (
        ir.to_proto(applied(given, engine_passes(precision=precision, plugins=plugins)).model)
        for plugins in (True, False)
    )
    assert plugin_calls(ir.from_proto(with_calls)) == Counter(PADDED_CALLS[bundle, name])
    if precision == "fp16":
        return
    pair = [session(form, folder) for form in (without, with_calls)]
    total, width = next(value.shape for value in pair[0].get_inputs() if value.name == "tokens")
    draw = np.random.default_rng(5)
    index = draw.permutation(np.arange(1, total))[: total // 2]
    inputs = {
        "tokens": draw.standard_normal((total, width)).astype(np.float32),
        "index": np.concatenate([[0], np.sort(index)]).astype(np.int64),
        **gate_inputs(pair[0]),
    }
    for valid in (1, len(index) // 2, len(index) + 1):
        compared(pair, {**inputs, "valid": np.asarray(valid, np.int64)})


def test_a_choice_of_other_rows_stays_in_front_of_the_scatter():
    """Only what stood in the very rows that are written may be left out."""
    nodes = [
        onnx.helper.make_node("Shape", ["index"], ["shape"]),
        onnx.helper.make_node("Squeeze", ["shape"], ["length"]),
        onnx.helper.make_node("Range", ["zero", "length", "one"], ["entries"]),
        onnx.helper.make_node("Less", ["entries", "valid"], ["runs"]),
        onnx.helper.make_node("Unsqueeze", ["runs", "last"], ["mask"]),
        onnx.helper.make_node("Unsqueeze", ["index", "last"], ["targets"]),
        onnx.helper.make_node("GatherND", ["others", "targets"], ["before"]),
        onnx.helper.make_node("Where", ["mask", "values", "before"], ["kept"]),
        onnx.helper.make_node("ScatterND", ["tokens", "targets", "kept"], ["out"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(value, name)
        for name, value in (("zero", np.asarray(0)), ("one", np.asarray(1)), ("last", np.asarray([1])))
    ]
    inputs = [TOKENS, INDEXED, ("others", FULL, [6, 4]), ("values", FULL, ["k", 4]), ("valid", INT64, [])]
    model = ir.from_proto(graph(nodes, inputs, [("out", FULL, None)], constants))
    plugin_form(model)
    assert plugin_calls(model) == Counter({GATHER: 1, SCATTER: 1})
    nodes[6].input[0] = "tokens"
    changed = in_plugin_form(ir.from_proto(graph(nodes, inputs, [("out", FULL, None)], constants)))
    assert plugin_calls(ir.from_proto(changed)) == Counter({SCATTER_VALID: 1})


@pytest.mark.parametrize("bundle", ["tiny", "setr"])
@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.0])
def test_merged_is_bit_equal_in_onnx_runtime(folders, bundle, threshold):
    pair = [session(form, folders[bundle]) for form in forms(folders[bundle], "merged")]
    inputs = {"pixels": tiny_pixels(tiny_spec().size, seed=4).numpy(), **gate_inputs(pair[0], threshold)}
    compared(pair, inputs)


def gate_inputs(of, threshold=0.7):
    shapes = {value.name: value.shape for value in of.get_inputs()}
    values = {"thresholds": threshold, "floor": 0.0}
    return {name: np.full(shapes[name], value, np.float32) for name, value in values.items() if name in shapes}


def compared(pair, inputs):
    """What both sessions give, byte for byte."""
    names = [value.name for value in pair[0].get_outputs()]
    ours, theirs = (dict(zip(names, one.run(names, inputs), strict=True)) for one in pair)
    for name in names:
        assert ours[name].dtype == theirs[name].dtype and ours[name].shape == theirs[name].shape
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    return ours


TOKENS, INDEXED = ("tokens", FULL, [6, 4]), ("index", INT64, ["k"])


@pytest.mark.parametrize(
    ("nodes", "inputs", "initializers"),
    [
        pytest.param(
            [onnx.helper.make_node("Gather", ["tokens", "fixed"], ["out"], axis=0)],
            [TOKENS],
            [onnx.numpy_helper.from_array(np.arange(3), "fixed")],
            id="rows at constant positions",
        ),
        pytest.param(
            [onnx.helper.make_node("Gather", ["tokens", "index"], ["out"], axis=1)], [TOKENS, INDEXED], [], id="columns"
        ),
        pytest.param(
            [onnx.helper.make_node("Gather", ["vector", "index"], ["out"])],
            [("vector", FULL, [6]), INDEXED],
            [],
            id="entries of a vector",
        ),
        pytest.param(
            [
                onnx.helper.make_node("Unsqueeze", ["index", "last"], ["targets"]),
                onnx.helper.make_node("ScatterND", ["tokens", "targets", "values"], ["out"], reduction="add"),
            ],
            [TOKENS, INDEXED, ("values", FULL, ["k", 4])],
            [onnx.numpy_helper.from_array(np.array([1]), "last")],
            id="a scatter that adds",
        ),
        pytest.param(
            [onnx.helper.make_node("GatherND", ["tokens", "pairs"], ["out"])],
            [TOKENS, ("pairs", INT64, ["k", 2])],
            [],
            id="single entries",
        ),
    ],
)
def test_other_operators_stay(nodes, inputs, initializers):
    model = ir.from_proto(graph(nodes, inputs, [("out", FULL, None)], initializers))
    before = ir.to_proto(model)
    assert not plugin_form(model).modified
    assert not plugin_calls(model)
    assert list(ir.to_proto(model).graph.node) == list(before.graph.node)


def test_gather_nd_of_rows_is_a_gather():
    nodes = [
        onnx.helper.make_node("Unsqueeze", ["index", "last"], ["targets"]),
        onnx.helper.make_node("GatherND", ["tokens", "targets"], ["out"]),
    ]
    last = onnx.numpy_helper.from_array(np.array([1]), "last")
    changed = in_plugin_form(ir.from_proto(graph(nodes, [TOKENS, INDEXED], [("out", FULL, ["k", 4])], [last])))
    assert [node.op_type for node in changed.graph.node] == [GATHER], "and the reshaped index is gone"
    tokens, index = np.arange(24, dtype=np.float32).reshape(6, 4), np.array([5, 0])
    (out,) = session(changed).run(None, {"tokens": tokens, "index": index})
    np.testing.assert_array_equal(out, tokens[index])
