"""How many nodes stay in float: from noise and margins, by hand."""

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from scipy.stats import norm

from tests.test_compress_rounding import draw_flat, make_graph, quantise, run
from vitlab.compress.isolation import isolate_node
from vitlab.compress.sensitivity import measure_margins, plan_float_nodes


def test_margins_are_of_the_reference_classes():
    reference = np.array([[3.0, 1.0, 0.0], [0.0, 1.0, 4.0]])
    np.testing.assert_array_equal(measure_margins(reference, reference), [2, 3])
    changed = np.array([[1.0, 2.0, 9.0], [0.0, 0.0, 5.0]])
    np.testing.assert_array_equal(measure_margins(reference, changed), [-1, 5])


def test_no_node_is_spared_where_margins_are_wide():
    assert plan_float_nodes(np.array([0.3, 0.2]), np.full(50, 10.0), 0.99) == 0


def test_just_as_many_as_the_gate_calls_for():
    """Margins of 1: with noise of standard deviation s a share of Phi(-1 / s) changes; half of 1 %
    are let through.
    """
    limit = (1 / norm.isf(0.005)) ** 2
    noise = np.array([0.5, 0.2, 0.6 * limit, 0.3 * limit])
    assert plan_float_nodes(noise, np.ones(20), 0.99) == 2
    assert plan_float_nodes(noise * 1.2, np.ones(20), 0.99) == 3  # 1.08 of the limit are left
    assert plan_float_nodes(noise, np.ones(20), 0.5) < 2


def test_a_tie_cannot_be_planned_for():
    assert plan_float_nodes(np.array([0.1, 0.1]), np.zeros(4), 0.99) == 2


def run_plainly(proto):
    """Without fusing Q and DQ into kernels of whole numbers, which round ties otherwise."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": draw_flat()})[0]


def test_a_node_by_itself_is_that_of_the_whole(tmp_path):
    """In the little graph only the convolution is quantised, so alone it gives what the whole graph
    gives.
    """
    proto = make_graph()
    whole = quantise(proto, tmp_path)
    alone = isolate_node(proto, whole, "Conv_0")
    np.testing.assert_allclose(run_plainly(alone), run_plainly(whole), atol=1e-4)
    kinds = [node.op_type for node in alone.graph.node]
    assert kinds.count("Round") == 2 and "QuantizeLinear" not in kinds
    # nothing is quantised behind our back
    np.testing.assert_allclose(run(alone, draw_flat()), run_plainly(whole), atol=1e-4)
    kernel = next(
        numpy_helper.to_array(tensor)
        for tensor in alone.graph.initializer
        if tensor.name == "kernel"
    )
    scale = next(
        numpy_helper.to_array(tensor)
        for tensor in whole.graph.initializer
        if tensor.name == "kernel_scale"
    )
    steps = kernel / scale.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    onnx.checker.check_model(alone)
