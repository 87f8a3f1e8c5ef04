"""The GPUs for which floors are computed: bandwidth, tensor-core rate and limits, with sources."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Board:
    """One board's bandwidth and dense peak rates.

    Attributes:
        bandwidth: the memory's bandwidth, GB/s.
        half_tflops: the rate of tensor cores on float16 inputs with float32 sums, without sparsity.
        float32_tflops: the rate of the ordinary units, with two operations per multiply-add.
        source: the maker's document with the figures, and how a figure is converted.
        checked: a page that repeats the maker's figures, where they were last checked.
    """

    name: str
    arch: str
    bandwidth: float
    half_tflops: float
    float32_tflops: float
    source: str
    checked: str


_NVIDIA = "https://www.nvidia.com/"
_BOARDS = f"{_NVIDIA}en-us/autonomous-machines/embedded-systems/"
_CENTER = f"{_NVIDIA}en-us/data-center/"
BOARDS = (
    Board(
        *("Jetson Orin Nano 8GB Super", "sm_87", 102, 16.7, 2.09),
        f"{_BOARDS}jetson-orin/ : 67 sparse INT8 TOPS / 4; 1,024 cores at 1,020 MHz",
        "https://www.brojogopalsapui.com/ai-foundations/sub_contents/AI_hardware/"
        "jetson_orin_nano_light.html",
    ),
    Board(
        *("Jetson AGX Orin 64GB", "sm_87", 204.8, 42.5, 5.3),
        f"{_NVIDIA}content/dam/en-zz/Solutions/gtcf21/jetson-orin/"
        "nvidia-jetson-agx-orin-technical-brief.pdf : the GPU's 170 of 275 sparse INT8 TOPS / 4; "
        "256 bits at 6.4 Gbit/s",
        "http://mzph.cn/web/30785.shtml (rates)",
    ),
    Board(
        *("Jetson AGX Thor T5000", "sm_110", 273, 258.5, 8.06),
        f"{_BOARDS}jetson-thor/ : 2,070 sparse FP4 TFLOPS / 8; 2,560 cores at 1,575 MHz",
        "https://technical.city/en/video/Iris-Xe-MAX-Graphics-vs-Jetson-T5000 (bandwidth), "
        "https://huggingface.co/hardware/jetson-t5000 (half rate)",
    ),
    Board(
        *("L4", "sm_89", 300, 121, 30.3),
        f"{_CENTER}l4/ : 242 sparse FP16 TFLOPS / 2",
        "https://grokipedia.com/page/NVIDIA_L4_vs_L40S, "
        "https://fpsbench.com/compare/gpu/nvidia-l4-vs-nvidia-tesla-m40",
    ),
    Board(
        *("A100 40GB SXM", "sm_80", 1555, 312, 19.5),
        f"{_NVIDIA}content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
        "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
        "https://glennklockwood.com/garden/processors/A100",
    ),
    Board(
        *("H100 SXM", "sm_90", 3350, 989.4, 66.9),
        f"{_CENTER}h100/ : 1,979 sparse FP16 TFLOPS / 2",
        "https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html",
    ),
    Board(
        *("RTX 4090", "sm_89", 1008, 165.2, 82.6),
        "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
        "https://waredb.com/processor/nvidia-geforce-rtx-4090",
    ),
    Board(
        *("B200", "sm_100", 8000, 2250, 80),
        f"{_CENTER}hgx/ : HGX B200, 4,500 sparse FP16 TFLOPS / 2 a GPU",
        "https://glennklockwood.com/garden/processors/B200",
    ),
)


@dataclass(frozen=True)
class Limits:
    """The limits of one multiprocessor: registers, shared memory in bytes, warps, blocks."""

    shared: int
    warps: int
    blocks: int = 32
    registers: int = 65536


# CUDA C++ Programming Guide, table of technical specifications per compute capability.
_KB = 1024
LIMITS = {
    "sm_75": Limits(64 * _KB, 32, 16),
    "sm_80": Limits(164 * _KB, 64),
    "sm_86": Limits(100 * _KB, 48, 16),
    "sm_87": Limits(164 * _KB, 48, 16),
    "sm_89": Limits(100 * _KB, 48, 24),
    "sm_90": Limits(228 * _KB, 64),
    "sm_100": Limits(228 * _KB, 64),
    "sm_103": Limits(228 * _KB, 64),
    "sm_110": Limits(228 * _KB, 48, 24),
    "sm_120": Limits(100 * _KB, 48, 24),
    "sm_121": Limits(100 * _KB, 48, 24),
}


def occupancy(arch: str, registers: int, shared: int, warps: int) -> float:
    """Return the share of a multiprocessor's warps that can be resident, 0 to 1.

    Registers are allocated per warp in units of 256; from sm_80 on the driver reserves 1 KB of
    shared memory per block.
    """
    limits = LIMITS[arch]
    per_warp = -(-registers * 32 // 256) * 256
    reserved = shared + (0 if arch == "sm_75" else 1024)
    blocks = min(
        limits.registers // (per_warp * warps),
        limits.shared // reserved,
        limits.warps // warps,
        limits.blocks,
    )
    return blocks * warps / limits.warps


def floor_us(board: Board, moved_bytes: int, flops: int, tflops: float) -> float:
    """Return the roofline's lower bound in microseconds: a floor, never a prediction.

    Args:
        board: the board whose memory moves the bytes.
        moved_bytes: the traffic that no cache can avoid.
        flops: the number of operations.
        tflops: the peak rate of the unit that executes them, see `peak_tflops`.
    """
    return max(moved_bytes / board.bandwidth / 1e3, flops / tflops / 1e6)


def peak_tflops(board: Board, dtype: str, tensor_cores: bool) -> float:
    """Return the peak rate of a kernel's arithmetic on a board.

    A float32 product on tensor cores takes three TF32 products, each at half the rate of float16.
    """
    if not tensor_cores:
        return board.float32_tflops
    return board.half_tflops / 6 if dtype == "float32" else board.half_tflops
