"""Equal tables of whole numbers become one: the exporter writes one for every gather that reads it.

Window attention gathers queries, keys and values by one table, and all blocks of a stage by the same.
"""

from __future__ import annotations

import onnx_ir as ir


def with_shared_tables(model: ir.Model) -> ir.Model:
    """`model` changed in place.

    Ensures that no two initializers of integers or booleans have the same shape and contents.
    """
    kept: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype.is_floating_point():
            continue
        first = kept.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if first is value:
            continue
        ir.convenience.replace_all_uses_with(value, first)
        del model.graph.initializers[name]
    return model
