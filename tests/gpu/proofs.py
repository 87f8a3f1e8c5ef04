"""The steps that prove correctness; none of them is timed."""

from __future__ import annotations

import copy
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from cases import (
    DEVICE,
    DTYPES,
    FAILED,
    HERE,
    MAIN,
    MISSING,
    PASSED,
    REHEARSE,
    REHEARSED,
    SHORT,
    Case,
    Missing,
    all_cases,
    check_kernel,
    checked,
    cuda_driver,
    draw_numpy,
    draw_torch,
    exact,
    finding,
    guarded,
    judge,
    kernel_records,
    kernels_of,
    launch,
    launch_of,
    listed,
    load_as_aot,
    load_cubin,
    model_cases,
    on_card,
    out_shapes,
    public,
    ragged_cases,
    row,
    step,
    wait,
)

# --- the steps


@step
def versions(_: str) -> None:
    for name in ("torch", "triton", "cuda.bindings", "numpy", "msgspec", "safetensors",
                 "uino_deploy.kernels.plugins.library", "uino_deploy.runtime.cuda_memory",
                 "uino_deploy.kernels.correlation.triton_kernel", "uino_deploy.model",
                 "uino_deploy.export.precision"):  # fmt: skip
        try:
            module = importlib.import_module(name)
            row(name, version=getattr(module, "__version__", "imported"))
        except ModuleNotFoundError as error:
            row(name, MISSING, error=str(error))
    for command in ("ncu --version", "compute-sanitizer --version",
                    "nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,"
                    "temperature.gpu,power.limit --format=csv,noheader"):  # fmt: skip
        name = command.split()[0]
        if shutil.which(name):
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            row(name, version=(done.stdout.strip().splitlines() or [done.stderr])[-1])
        else:
            row(name, REHEARSED if REHEARSE else MISSING)
    import torch

    row("cpu", cores=os.cpu_count(), commit=(HERE / "COMMIT").read_text().strip())
    if REHEARSE:
        return row("card", REHEARSED)
    card = torch.cuda.get_device_properties(0)
    driver = checked(cuda_driver().cuDriverGetVersion())
    row("card", name=card.name, arch=f"sm_{card.major}{card.minor}", driver=driver,
        multiprocessors=card.multi_processor_count, l2=card.L2_cache_size,
        memory=card.total_memory, cuda_of_torch=torch.version.cuda)  # fmt: skip


@step
def aot(shard: str) -> None:
    """Imitate TensorRT's launch: the driver compiles the PTX, no opt-in to shared memory."""
    import torch

    torch.zeros(1, device=DEVICE)  # makes the context current
    for kernel in kernels_of(shard):
        name, began = kernel.record.name, time.monotonic()
        with finding(name):
            function = load_as_aot(kernel)
            check_parameters(function, kernel, time.monotonic() - began)
            for case in filter(lambda case: launch_of(kernel, case), all_cases()):
                with finding(f"{name} {case.label}"):
                    check_kernel(function, kernel, case)
            if kernel.record.op == "correlation4d":
                check_nan(function, kernel)


def check_parameters(function: Any, kernel: Any, seconds: float) -> None:
    """Compare the driver's view of the parameters with the JSON's, and look for spills."""
    driver, offset, wrong = cuda_driver(), 0, []
    for index, parameter in enumerate(kernel.record.parameters):
        size = 8 if parameter.pointer else 4
        offset = -(-offset // size) * size
        if driver.cuFuncGetParamInfo(function, index)[1:] != (offset, size):
            wrong.append(parameter.name)
        offset += size
    if not int(driver.cuFuncGetParamInfo(function, len(kernel.record.parameters))[0]):
        wrong.append("a parameter too many")
    which = driver.CUfunction_attribute
    registers, local = (
        checked(driver.cuFuncGetAttribute(attribute, function))
        for attribute in (which.CU_FUNC_ATTRIBUTE_NUM_REGS,
                          which.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)
    )  # fmt: skip
    row(f"{kernel.record.name} parameters", FAILED if wrong or local else PASSED, wrong=wrong,
        registers=registers, local_bytes=local, load_seconds=round(seconds, 2))  # fmt: skip


def check_nan(function: Any, kernel: Any) -> None:
    """Compare the outputs that a NaN token in the query reaches."""
    case = next(c for c in ragged_cases() if launch_of(kernel, c))
    inputs = draw_torch(case, kernel.record.dtype)
    inputs[0][0, 0, 5] = float("nan")
    (out,), _ = guarded(case, inputs[0])
    out.zero_()
    on_card(function, launch_of(kernel, case), inputs, [out])
    wait()
    seen, due = (int(t.isnan().sum()) for t in (out, *exact(case, inputs)))
    row(f"{kernel.record.name} NaN token", PASSED if seen == due else FAILED, seen=seen, due=due)


@step
def jit(shard: str) -> None:
    """PyTorch's operators: Triton compiles on this machine; inputs strided as in the model."""
    import torch

    torch.zeros(1, device=DEVICE)
    kind, dtype = shard.split()
    for case in jit_cases():
        config = case.operator.configurations(case.attributes, case.shapes)[0]
        if kind not in f"{case.operator.kernel}-{config}":
            continue
        with finding(f"{SHORT[dtype]} {config} {case.label}"):
            check_operator(config, case, dtype)
    if shard == "scan2d-serial float32":
        with finding("selective_scan_fn"):
            scan1d()


def check_operator(config: str, case: Case, dtype: str) -> None:
    drawn = draw_torch(case, dtype)
    inputs = [t.mT.contiguous().mT if t.ndim > 1 else t for t in drawn]
    began, operator = time.monotonic(), public(case)
    with Launches() as launches:
        out = listed(operator(*inputs, *case.attributes.values()))
    wait()
    seconds = round(time.monotonic() - began, 2)
    values = judge(out, exact(case, inputs), dtype, seconds=seconds, launches=launches.count)
    if launches.count != (0 if REHEARSE else 1):
        values |= {"status": FAILED, "why": "Triton was not launched once"}
    row(f"{SHORT[dtype]} {config} {case.label}", **values)


def jit_cases() -> list[Case]:
    """Return the main preset's shapes, and ragged ones of its configurations.

    None has a 1 in its plane: Triton would compile again for it, on the card's time.
    """
    cases = model_cases(MAIN) + ([] if REHEARSE else model_cases(MAIN, 2, 2))
    used = {c.operator.configurations(c.attributes, c.shapes)[0] for c in cases}
    for case in ragged_cases():
        config = case.operator.configurations(case.attributes, case.shapes)[0]
        if config in used and 1 not in case.shapes.get("x", ())[:3]:
            cases.append(case)
    return cases


class Launches:
    """A counter of Triton launches: a fall-back to the reference would also be right."""

    def __enter__(self) -> Launches:
        import triton

        self.count, self._run = 0, triton.runtime.JITFunction.run

        def run(function: Any, *args: Any, **options: Any) -> Any:
            self.count += 1
            return self._run(function, *args, **options)

        triton.runtime.JITFunction.run = run
        return self

    def __exit__(self, *_: object) -> None:
        import triton

        triton.runtime.JITFunction.run = self._run


def scan1d() -> None:
    """`selective_scan_fn` against mamba's formula."""
    import torch

    from uino_deploy.kernels import selective_scan_fn

    torch.manual_seed(0)
    u, delta, z = (torch.randn(2, 64, 300, device=DEVICE) for _ in range(3))
    a, d, bias = -torch.rand(64, 16, device=DEVICE) - 0.1, *torch.randn(2, 64, device=DEVICE)
    b, c = torch.randn(2, 2, 16, 300, device=DEVICE)
    got = selective_scan_fn(u, delta, a, b, c, d, z, bias, delta_softplus=True)
    wide = [t.double() for t in (u, delta, a, b, c, d, z, bias)]
    u, delta, a, b, c, d, z, bias = wide
    delta, state, y = torch.nn.functional.softplus(delta + bias[:, None]), 0, []
    for t in range(u.shape[-1]):
        decay = torch.exp(delta[..., t, None] * a)
        state = decay * state + (delta * u)[..., t, None] * b[:, None, :, t]
        y.append((state * c[:, None, :, t]).sum(-1))
    expected = (torch.stack(y, -1) + d[:, None] * u) * z * z.sigmoid()
    row("selective_scan_fn", **judge([got], [expected], "float32"))


@step
def cubin(dtype: str) -> None:
    """The newer ptxas's cubin on this driver, loaded and launched by the project's code."""
    import torch

    torch.zeros(1, device=DEVICE)
    for kernel in [k for k in kernel_records() if k.record.dtype == dtype]:
        with finding(kernel.record.name):
            function = load_cubin(kernel)
            usable = [c for c in ragged_cases() + model_cases(MAIN) if launch_of(kernel, c)]
            for case in usable[:1] + usable[-1:]:
                check_kernel(function, kernel, case)


@step
def sanitizer(tool: str) -> None:
    """One small launch per kernel, in a process without PyTorch; outputs are checked as well."""
    import torch

    path = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not (REHEARSE or Path(path).exists()):
        raise Missing("compute-sanitizer")
    records, cases = kernel_records(), ragged_cases()
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for dtype in DTYPES:
            plans = [(k.record.name, next(c.label for c in cases if launch_of(k, c)))
                     for k in records if k.record.dtype == dtype]  # fmt: skip
            prefix = [path, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
            place = Path(folder, dtype)
            running.append((dtype, plans, place, bare(plans, place, [] if REHEARSE else prefix)))
        for dtype, plans, place, process in running:
            text = process.communicate()[0]
            summary = [line for line in text.splitlines() if "SUMMARY" in line] or [text[-800:]]
            clean = process.returncode == 0 and (REHEARSE or "SUMMARY: 0 " in text)
            status = PASSED if clean else FAILED
            row(f"{tool} {dtype}", status, summary=summary, log="" if clean else text[-4000:])
            for index, (name, label) in enumerate(plans if clean else []):
                case = next(c for c in cases if c.label == label)
                inputs = [as_torch(a, torch) for a in draw_numpy(case, dtype)]
                paths = [place / f"{index}-{i}.npy" for i in range(len(out_shapes(case)))]
                got = [as_torch(np.load(path), torch) for path in paths]
                row(f"{tool} {name}", **judge(got, exact(case, inputs), dtype))


def as_torch(array: Any, torch: Any) -> Any:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def bare(plans: list[tuple[str, str]], place: Path, prefix: list[str]) -> Any:
    """Start a process that only launches these (kernel, case) pairs, perhaps under a tool."""
    place.mkdir()
    (place / "plans.json").write_text(json.dumps(plans))
    command = [*prefix, sys.executable, str(HERE / "first_light.py"), "--bare", str(place)]
    command += ["--rehearse"] if REHEARSE else []
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_bare(place: Path) -> None:
    """Run as that process: driver and numpy, nothing else on the card."""
    driver = cuda_driver()
    checked(driver.cuInit(0))
    device = checked(driver.cuDeviceGet(0))
    checked(driver.cuCtxSetCurrent(checked(driver.cuDevicePrimaryCtxRetain(device))))
    kernels = {kernel.record.name: kernel for kernel in kernel_records()}
    cases = {case.label: case for case in ragged_cases() + model_cases(MAIN)}
    for index, (name, label) in enumerate(json.loads((place / "plans.json").read_text())):
        kernel, case = kernels[name], cases[label]
        inputs = draw_numpy(case, kernel.record.dtype)
        outputs = [np.empty(shape, inputs[0].dtype) for shape in out_shapes(case)]
        for out in outputs:
            out.view(np.uint8).fill(0xFF)
        arrays = [*map(np.ascontiguousarray, inputs), *outputs]
        places = [checked(driver.cuMemAlloc(array.nbytes)) for array in arrays]
        for there, array in zip(places, arrays, strict=True):
            checked(driver.cuMemcpyHtoD(there, array.ctypes.data, array.nbytes))
        addresses, count = [int(there) for there in places], len(inputs)
        plan = launch_of(kernel, case)
        launch(load_as_aot(kernel), plan, addresses[:count], addresses[count:])
        checked(driver.cuCtxSynchronize())
        for i, (there, out) in enumerate(zip(places[count:], outputs, strict=True)):
            checked(driver.cuMemcpyDtoH(out.ctypes.data, there, out.nbytes))
            np.save(place / f"{index}-{i}.npy", out)


@step
def memory(_: str) -> None:
    """`runtime.cuda_memory` on the real driver."""
    from uino_deploy.runtime import cuda_memory

    if os.environ.get("FIRST_LIGHT_PLANT") == "missing":
        raise ModuleNotFoundError("No module named 'cuda'")
    if REHEARSE:  # the tests' fake: waits, captures and refusals
        cuda_memory.import_cudart = importlib.import_module("rehearsal").cudart
    device = cuda_memory.Device()
    row("device", name=device.name, arch=device.architecture, release=device.driver_release())
    random, sent = np.random.default_rng(0), []
    for size, kind in (
        (0, "f4"),
        (1, "u1"),
        (1000, "f2"),
        (1 << (16 if REHEARSE else 24), "f4"),
        (77, "i8"),
    ):
        sent.append((random.normal(size=size) * 9).astype(kind))
    there = {str(i): device.upload(a) for i, a in enumerate(sent)}
    back = device.download(there)
    same = all(np.array_equal(a, back[str(i)]) for i, a in enumerate(sent))
    row("upload and download", PASSED if same else FAILED)
    held, target = device.upload(sent[2]), device.empty(sent[2].shape, "f2")
    graph = device.capture(lambda: device.copy(target, held))
    for factor in (1, 2, 3):
        device.copy(held, device.upload(sent[2] * np.float16(factor)))
        device.launch(graph)
        right = np.array_equal(target.to_host(), sent[2] * np.float16(factor))
        row(f"replay {factor}", PASSED if right else FAILED)
    try:
        device.empty((1 << 45,), "u1")
        row("out of memory", FAILED, why="32 TiB were given")
    except cuda_memory.CudaError as error:
        usable = np.array_equal(device.upload(sent[3]).to_host(), sent[3])
        row("out of memory", PASSED if usable else FAILED, error=str(error), usable_after=usable)
    try:
        device.capture(lambda: 1 / 0)
    except ZeroDivisionError:
        usable = np.array_equal(device.upload(sent[3]).to_host(), sent[3])
        row("a capture that fails", PASSED if usable else FAILED)
    if REHEARSE:
        return row("a kernel inside a graph, an illegal address", REHEARSED)
    kernel_in_graph(device)
    command = [sys.executable, str(HERE / "first_light.py"), "--child", "illegal"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    status, log = PASSED if done.returncode == 0 else FAILED, done.stdout + done.stderr
    return row("after an illegal address", status, exit=done.returncode, log=log[-600:])


def kernel_in_graph(device: Any) -> None:
    """Capture a launch of the project's launcher; replay it on changed inputs."""
    import torch

    from uino_deploy.kernels.plugins import driver

    kernel = next(k for k in kernel_records() if "serial-d16n4r2p16-fp32" in k.record.name)
    case = next(c for c in ragged_cases() if launch_of(kernel, c))
    plan, function = launch_of(kernel, case), load_as_aot(kernel)
    inputs = [device.upload(a) for a in draw_numpy(case, "float32")]
    (shape,) = out_shapes(case)
    out = device.upload(np.full(shape, np.nan, "f4"))
    addresses = [a.address for a in inputs]
    graph = device.capture(
        lambda: driver.run(function, plan, addresses, [out.address], device.stream)
    )
    for seed in (1, 2):
        arrays = draw_numpy(case, "float32", seed)
        for place, array in zip(inputs, arrays, strict=True):
            device.copy(place, device.upload(array))
        device.launch(graph)
        expected = exact(case, [torch.from_numpy(a) for a in arrays])
        values = judge([torch.from_numpy(out.to_host())], expected, "float32")
        row(f"kernel in a graph, inputs {seed}", **values)


@step  # started only by `memory`
def illegal(_: str) -> None:
    """A kernel reads an illegal address: a fault, never a missing dependency."""
    from uino_deploy.errors import DependencyError
    from uino_deploy.kernels.plugins import driver
    from uino_deploy.runtime import cuda_memory

    device = cuda_memory.Device()
    kernel = next(k for k in kernel_records() if "serial-d16n4r2p16-fp32" in k.record.name)
    case = next(c for c in ragged_cases() if launch_of(kernel, c))
    plan, nowhere = launch_of(kernel, case), [0x10] * len(case.shapes)
    driver.run(load_as_aot(kernel), plan, nowhere, [0x10], device.stream)
    try:
        device.synchronise()
        row("illegal address", FAILED, why="nobody noticed")
    except cuda_memory.CudaError as error:
        status = FAILED if isinstance(error, DependencyError) else PASSED
        row("illegal address", status, error=str(error), kind=type(error).__mro__[1].__name__)


# Grids of 17 and 13 tokens: for multiples of 16 Triton would compile everything again.
SMALL, SMALLER = 238, 182


@step
def model(shard: str) -> None:
    """The whole model on the card, against float32 on the CPU."""
    import torch

    torch.backends.cudnn.allow_tf32 = False  # on by default: 1e-4 and more in float32
    if shard == "training":
        training()
    elif shard == "tiny":
        trained_tiny()
    else:
        preset_forward("tiny" if REHEARSE else shard)


def relative(got: Any, expected: Any) -> float:
    expected = expected.double().cpu()
    return ((got.double().cpu() - expected).norm() / expected.norm()).item()


def whole(case: str, got: Any, expected: Any, dtype: str, **values: Any) -> None:
    """Check logits and the mask they give against the project's own bounds."""
    from uino_deploy.tolerances import mask_iou_floor, whole_tolerance

    error, (mask, true) = relative(got, expected), (got.cpu() > 0, expected.cpu() > 0)
    iou = ((mask & true).sum() / (mask | true).sum().clamp(min=1)).item()
    bound = whole_tolerance([SHORT[dtype]]).relative_l2
    right = error <= bound and iou >= mask_iou_floor([SHORT[dtype]])
    row(case, PASSED if right else FAILED, error=error, bound=bound, iou=iou, **values)


def segmenter(preset: str, size: int | None) -> tuple[Any, list[Any]]:
    """Return a model with random weights, and (query, support images, masks)."""
    import torch

    from uino_deploy import UinoConfig, UinoFSS

    torch.manual_seed(0)
    config = UinoConfig.from_preset(preset, image_size=size)
    images = torch.randn(3, 3, config.image_size, config.image_size)
    masks = (torch.rand(1, 2, config.tokens) > 0.6).float()
    return UinoFSS(config).eval(), [images[:1], images[None, 1:], masks]


def preset_forward(preset: str) -> None:
    """Compare with the CPU at a small size; at full size, compare the half types with float32."""
    import torch

    from uino_deploy.export.precision import in_precision

    for size in (None,) if REHEARSE else (SMALL, None):
        net, inputs = segmenter(preset, size)
        with torch.inference_mode():
            if size or REHEARSE:
                expected, _ = net(*inputs)
            for dtype in DTYPES:
                kind = getattr(torch, dtype)
                moved = in_precision(net, SHORT[dtype], 22).to(DEVICE)
                logits, _ = moved(*(t.to(DEVICE, kind) for t in inputs))
                if size is None and not REHEARSE and dtype == "float32":
                    expected = logits
                name = f"{preset} {size or 'full size'} {SHORT[dtype]}"
                whole(name, logits, expected, dtype, finite=bool(logits.isfinite().all()))
                if size or REHEARSE:
                    hypercorrelation(name, net, moved, kind)


def hypercorrelation(name: str, net: Any, moved: Any, kind: Any) -> None:
    """Compare the operators' own module: with random weights the logits hardly depend on it."""
    import torch

    from uino_deploy.tolerances import piece_tolerance

    config, encoder = net.config, net.config.encoder
    layers, side = len(encoder.correlation_layers), min(config.tokens, 17**2)
    generator = torch.Generator().manual_seed(1)
    shapes = (1, layers, side, encoder.width), (1, 2, layers, side, encoder.width), (1, 2, side)
    inputs = [torch.randn(s, generator=generator).to(kind) for s in shapes]
    expected = net.prompt_generator.hypercorrelation(*(t.float() for t in inputs))
    got = moved.prompt_generator.hypercorrelation(*(t.to(DEVICE) for t in inputs))
    bound = piece_tolerance(SHORT[str(kind).removeprefix("torch.")]).relative_l2
    error = relative(got, expected)
    row(f"{name} hypercorrelation", PASSED if error <= bound else FAILED, error=error, bound=bound)


def trained_tiny() -> None:
    """The bundled weights on the card, against the example stored in the bundle."""
    import torch

    from uino_deploy.bundle import Bundle
    from uino_deploy.bundle.reference import load_example
    from uino_deploy.export.precision import in_precision
    from uino_deploy.model import load_checkpoint

    example = load_example(Bundle.open(HERE / "tiny.uino"))
    example = {name: torch.from_numpy(array) for name, array in example.items()}
    net = load_checkpoint(HERE / "site/uino_deploy/assets/tiny.safetensors").eval()
    names = ("image", "support_image", "mask")
    for dtype in DTYPES:
        moved = in_precision(net, SHORT[dtype], 22).to(DEVICE)
        query, images, masks = (example[n].to(DEVICE, getattr(torch, dtype)) for n in names)
        with torch.inference_mode():
            logits, _ = moved(query, images[None], masks[None])
        whole(f"trained tiny {SHORT[dtype]}", logits, example["logits"], dtype)


def training() -> None:
    """One step: loss and gradients on the card against the CPU's; bfloat16 by autocast.

    The operators' own gradients come from a loss on their module: in the model's loss, with random
    weights, they would be lost beside the decoder's.
    """
    import torch
    from torch.nn import functional as F

    net, inputs = segmenter("tiny" if REHEARSE else "vits14", None if REHEARSE else SMALLER)
    net.encoder.requires_grad_(False)
    with torch.no_grad():
        deep = net.encoder(torch.cat([inputs[0], inputs[1][0]]))[1]

    def gradients(device: str, autocast: bool) -> tuple[float, Any, Any, float]:
        moved, began = copy.deepcopy(net).to(device).train(), time.monotonic()
        module = moved.prompt_generator.hypercorrelation
        query, support = deep[:1].to(device), deep[None, 1:].to(device)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            out = module(query, support, inputs[2].to(device) * 2 - 1)
            weight = torch.linspace(-1, 1, out.numel(), device=device).sin().reshape(out.shape)
            (out.float() * weight).sum().backward()
            own = torch.cat([p.grad.flatten().double().cpu() for p in module.parameters()])
            moved.zero_grad()
            logits, _ = moved(*(t.to(device) for t in inputs))
        target = torch.linspace(0, 1, logits.numel(), device=device).reshape(logits.shape)
        loss = F.binary_cross_entropy_with_logits(logits.float(), target)
        loss.backward()
        trained = [p for p in moved.parameters() if p.grad is not None]
        every = torch.cat([p.grad.flatten().double().cpu() for p in trained])
        torch.optim.AdamW(trained, 1e-4).step()
        return loss.item(), own, every, time.monotonic() - began

    loss, own, every, _ = gradients("cpu", False)
    for autocast, bounds in ((False, (1e-3, 1e-3)), (True, (0.2, 0.5))):
        value, mine, whole_model, seconds = gradients(DEVICE, autocast)
        errors = relative(mine, own), relative(whole_model, every)
        right = all(e <= b for e, b in zip(errors, bounds, strict=True))
        row(f"training step {'bf16 autocast' if autocast else 'fp32'}", PASSED if right else FAILED,
            error=errors[0], error_of_model=errors[1], bounds=bounds, loss=value, loss_cpu=loss,
            seconds=round(seconds, 2))  # fmt: skip


@step
def gradients(word: str) -> None:
    """The fused backward passes, compiled on this machine, against float64: `gradients.py`."""
    if REHEARSE:
        return row(f"{word}: nothing of this runs without a card", REHEARSED, needs_a_card=True)
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-B", str(HERE / "gradients.py"), *word.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert process.stdout is not None
    last = ""
    for last in process.stdout:
        if last.startswith("{"):
            document = json.loads(last)
            if "case" in document:
                document["error"] = document.get("error", max(document.get("errors", [0.0])))
                row(document.pop("case"), document.pop("status", PASSED), **document)
    if process.wait() not in (0, 1):
        raise RuntimeError(f"gradients.py ended with {process.returncode}: {last}")
    return None
