"""SelectiveScan2d in ONNX: its schema, and a portable function for runtimes that lack it."""

import onnx

from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.onnx_domain import operator_function, operator_schema

SCHEMA = operator_schema(
    "SelectiveScan2d",
    "The selective scan of a plane in four directions, added up.",
    {
        "x": "[S, H, W, D]",
        "packed": "[S, H, W, 4, P]",
        "dt_weight": "[4, D, R]",
        "dt_bias": "[4, D]",
        "A": "[4, D, N]",
        "skip": "[4, D]",
    },
    {"y": "[S, H, W, D]"},
    float32=("dt_weight", "dt_bias", "A", "skip"),
)


def portable_function(dtype: int, opset: int) -> onnx.FunctionProto:
    """Return the operator as a function of standard operators: one Scan over all four directions.

    The operands are laid out by visiting step, [T, 4, S, ...], so that each step of the Scan
    reads one contiguous slice, and the channels come last in the state, so that each product runs
    along them: otherwise ONNX Runtime is several times slower. The arithmetic is float32.

    Args:
        dtype: the inputs' type, an `onnx.TensorProto` number.
        opset: the model's opset of standard operators.
    """
    nodes = f"""
        minus_one = Constant <value = int64[1] {{-1}}> ()
        zero = Constant <value = int64[1] {{0}}> ()
        one = Constant <value = int64[1] {{1}}> ()
        directions = Constant <value = int64[1] {{{DIRECTIONS}}}> ()
        sequences = Shape <start = 0, end = 1> (x)
        height = Shape <start = 1, end = 2> (x)
        width = Shape <start = 2, end = 3> (x)
        channels = Shape <start = 3, end = 4> (x)
        states = Shape <start = 2, end = 3> (A)
        by_step = Concat <axis = 0> (minus_one, one, sequences, channels)
        x_32 = Cast <to = 1> (x)
        x_rows = Transpose <perm = [1, 2, 0, 3]> (x_32)
        x_columns = Transpose <perm = [2, 1, 0, 3]> (x_32)
        x_0 = Reshape (x_rows, by_step)
        x_1 = Reshape (x_columns, by_step)
        x_forward = Concat <axis = 1> (x_0, x_1)
        {_reversed("x_forward", "x_backward")}
        x_steps = Concat <axis = 1> (x_forward, x_backward)
        {_visited("packed")}
        rank = Shape <start = 2, end = 3> (dt_weight)
        rank_states = Add (rank, states)
        rank_states_2 = Add (rank_states, states)
        dt_steps = Slice (packed_steps, zero, rank, minus_one)
        B_steps = Slice (packed_steps, rank, rank_states, minus_one)
        C_steps = Slice (packed_steps, rank_states, rank_states_2, minus_one)
        dt_columns = Transpose <perm = [0, 2, 1]> (dt_weight)
        raised = MatMul (dt_steps, dt_columns)
        bias = Unsqueeze (dt_bias, one)
        raised_biased = Add (raised, bias)
        A_last = Transpose <perm = [0, 2, 1]> (A)
        decays = Unsqueeze (A_last, one)
        state_shape = Concat <axis = 0> (directions, sequences, states, channels)
        state_0 = ConstantOfShape <value = float[1] {{0.0}}> (state_shape)
        state_T, scanned = Scan <num_scan_inputs = 4, body = step (
            float[G, S, N, D] state, float[G, S, D] raised_t, float[G, S, D] x_t,
            float[G, S, N] B_t, float[G, S, N] C_t
        ) => (float[G, S, N, D] state_next, float[G, S, D] y_t) {{
            last = Constant <value = int64[1] {{-1}}> ()
            middle = Constant <value = int64[1] {{2}}> ()
            {_softplus("raised_t", "delta_t")}
            delta_t1 = Unsqueeze (delta_t, middle)
            exponent = Mul (delta_t1, decays)
            decay = Exp (exponent)
            kept = Mul (decay, state)
            delta_x_t = Mul (delta_t, x_t)
            delta_x_t1 = Unsqueeze (delta_x_t, middle)
            B_t1 = Unsqueeze (B_t, last)
            added = Mul (delta_x_t1, B_t1)
            state_next = Add (kept, added)
            C_t1 = Unsqueeze (C_t, last)
            read = Mul (state_next, C_t1)
            y_t = ReduceSum <keepdims = 0> (read, middle)
        }}> (state_0, raised_biased, x_steps, B_steps, C_steps)
        y_forward, y_backward = Split <axis = 1, num_outputs = 2> (scanned)
        {_reversed("y_backward", "y_returned")}
        y_steps = Add (y_forward, y_returned)
        y_rows, y_columns = Split <axis = 1, num_outputs = 2> (y_steps)
        rows = Concat <axis = 0> (height, width, sequences, channels)
        columns = Concat <axis = 0> (width, height, sequences, channels)
        by_row = Reshape (y_rows, rows)
        by_column = Reshape (y_columns, columns)
        y_row = Transpose <perm = [2, 0, 1, 3]> (by_row)
        y_column = Transpose <perm = [2, 1, 0, 3]> (by_column)
        y_scanned = Add (y_row, y_column)
        skip_sum = ReduceSum <keepdims = 0> (skip, zero)
        skipped = Mul (skip_sum, x_32)
        y_32 = Add (y_scanned, skipped)
        y = Cast <to = {dtype}> (y_32)
    """
    return operator_function(SCHEMA, opset, nodes)


def _softplus(name: str, result: str) -> str:
    """Return log(1 + exp(name)), accurate for small results too, unlike the operator Softplus.

    With u = 1 + e rounded, e = exp(-|name|): log1p(e) = log(u) + (e - (u - 1)) / u to first order
    in what the rounding lost, which is exact here.
    """
    return f"""
            {result}_unit = Constant <value = float {{1.0}}> ()
            {result}_size = Abs ({name})
            {result}_minus = Neg ({result}_size)
            {result}_e = Exp ({result}_minus)
            {result}_u = Add ({result}_unit, {result}_e)
            {result}_rounded = Sub ({result}_u, {result}_unit)
            {result}_lost = Sub ({result}_e, {result}_rounded)
            {result}_small = Div ({result}_lost, {result}_u)
            {result}_log = Log ({result}_u)
            {result}_log1p = Add ({result}_log, {result}_small)
            {result}_positive = Relu ({name})
            {result} = Add ({result}_positive, {result}_log1p)
    """


def _reversed(name: str, result: str) -> str:
    """Reverse the visiting order, axis 0."""
    return f"""
        {result}_end = Constant <value = int64[1] {{-9223372036854775807}}> ()
        {result} = Slice ({name}, minus_one, {result}_end, zero, minus_one)
    """


def _visited(name: str) -> str:
    """Map [S, H, W, 4, C] by cell -> `name`_steps [T, 4, S, C] by visiting step."""
    return f"""
        {name}_32 = Cast <to = 1> ({name})
        {name}_size = Shape <start = 4, end = 5> ({name})
        {name}_by_step = Concat <axis = 0> (minus_one, one, sequences, {name}_size)
        {name}_0, {name}_1, {name}_2, {name}_3 = Split <axis = 3, num_outputs = 4> ({name}_32)
        {name}_0_cells = Transpose <perm = [1, 2, 3, 0, 4]> ({name}_0)
        {name}_1_cells = Transpose <perm = [2, 1, 3, 0, 4]> ({name}_1)
        {name}_2_cells = Transpose <perm = [1, 2, 3, 0, 4]> ({name}_2)
        {name}_3_cells = Transpose <perm = [2, 1, 3, 0, 4]> ({name}_3)
        {name}_0_steps = Reshape ({name}_0_cells, {name}_by_step)
        {name}_1_steps = Reshape ({name}_1_cells, {name}_by_step)
        {name}_2_steps = Reshape ({name}_2_cells, {name}_by_step)
        {name}_3_steps = Reshape ({name}_3_cells, {name}_by_step)
        {name}_forward = Concat <axis = 1> ({name}_0_steps, {name}_1_steps)
        {name}_turned = Concat <axis = 1> ({name}_2_steps, {name}_3_steps)
        {_reversed(f"{name}_turned", f"{name}_backward")}
        {name}_steps = Concat <axis = 1> ({name}_forward, {name}_backward)
    """
