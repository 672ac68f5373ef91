"""The timestep's embedding by table, for OpenVINO in bf16.

In bf16 OpenVINO rounds the timestep and its product with each frequency to eight bits before it takes sine and cosine:
of 865 nothing but 864 is left, and the angle is off by whole radians. Timesteps are whole numbers below a thousand, so
the embedding is computed for all of them in float32 beforehand; in the graph one is picked.
"""

from typing import Any

import numpy as np

INPUT = "timestep"
_MATRIX_PRODUCT = "MatMul"


def tabulate_timestep(core: Any, model: Any, timesteps: int) -> bool:
    """Replace what an openvino model computes of its input `timestep` before the first matrix product.

    The input is int32 [B] from then on, 0 to `timesteps` - 1. Returns False for a model without it, left as it is.
    """
    import openvino
    from openvino import opset13 as ops

    given = next((p for p in model.get_parameters() if INPUT in p.output(0).get_names()), None)
    if given is None:
        return False
    (embedding,) = _before_matrix_product(given)
    consumers, kind = embedding.get_target_inputs(), embedding.get_element_type()
    alone = openvino.Model([ops.convert(embedding, "f32")], [given])  # NumPy has no bfloat16
    computed = core.compile_model(alone, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    table = computed([np.arange(timesteps, dtype=np.float32)])[0]
    whole = ops.parameter(given.get_partial_shape(), openvino.Type.i32)
    picked = ops.gather(ops.constant(table), whole, ops.constant(np.int32(0)))
    typed = ops.convert(picked, kind)
    for consumer in consumers:
        consumer.replace_source_output(typed.output(0))
    model.remove_parameter(given)
    model.add_parameters([whole])
    whole.output(0).set_names({INPUT})
    model.validate_nodes_and_infer_types()
    return True


def _before_matrix_product(node: Any) -> list[Any]:
    """The outputs downstream of `node` that a matrix product takes."""
    found, todo = {}, [node.output(0)]
    while todo:
        output = todo.pop()
        for consumer in output.get_target_inputs():
            after = consumer.get_node()
            if after.get_type_name() == _MATRIX_PRODUCT:
                found[output.get_node().get_friendly_name()] = output
            else:
                todo += after.outputs()
    return list(found.values())
