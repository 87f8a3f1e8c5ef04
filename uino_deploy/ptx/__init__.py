"""An executor, in numpy, for the PTX that Triton writes; it counts memory traffic.

It does not prove timing; memory ordering between blocks; tcgen05 (refused); the rounding of a
GPU's approximate units and tensor-core sums; what ptxas makes of the text.

    program = parse(ptx)
    out = poisoned((rows, columns), np.float16)
    trace = launch(program, grid=(4, 1, 1), block=128, shared=16384, arguments=[a, b, rows, out])
"""

from uino_deploy.ptx.arguments import Struct
from uino_deploy.ptx.errors import PtxError, PtxFault, UnsupportedPtx
from uino_deploy.ptx.execution import launch
from uino_deploy.ptx.memory import Output, poisoned
from uino_deploy.ptx.parser import Program, parse
from uino_deploy.ptx.trace import Accesses, ArrayTrace, SharedTrace, Trace

__all__ = [
    "Accesses",
    "ArrayTrace",
    "Output",
    "Program",
    "PtxError",
    "PtxFault",
    "SharedTrace",
    "Struct",
    "Trace",
    "UnsupportedPtx",
    "launch",
    "parse",
    "poisoned",
]
