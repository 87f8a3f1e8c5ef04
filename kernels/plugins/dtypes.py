"""TensorRT's element types by our kernels' names."""

import tensorrt as trt

TYPES = {
    trt.DataType.FLOAT: "float32",
    trt.DataType.HALF: "float16",
    trt.DataType.BF16: "bfloat16",
}
