"""A bundle with plans that are its own graphs, for what only copies and describes plans.

A plan's description has the fields of `PlanInfo`, as `uino-deploy build` writes it beside a plan;
10.9.0 is the first TensorRT whose plans hold our kernels (the route `aot`), and sm_90 is an H100.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec

from uino_deploy.bundle import Bundle
from uino_deploy.bundle.manifest import MANIFEST
from uino_deploy.bundle.plans import PlanInfo, PluginRoute, Profile, plan_folder
from uino_deploy.files import sha256


def with_plans(
    source: Path,
    target: Path,
    archs: tuple[str, ...] = ("sm_90",),
    route: PluginRoute = "aot",
    shapes: dict[str, Profile] | None = None,
) -> Bundle:
    """Copy a bundle and give it plans, which are its graphs: the stand-in runs those."""
    shutil.copytree(source, target)
    manifest = json.loads((target / MANIFEST).read_text("utf-8"))
    for arch in archs:
        folder, plans = plan_folder("tensorrt", arch), {}
        (target / folder).mkdir(parents=True)
        for name, piece in manifest["pieces"].items():
            if name == "query":
                continue
            plans[name] = path = f"{folder}/{name}.plan"
            shutil.copyfile(target / piece["model"], target / path)
            info = PlanInfo(
                piece=name,
                backend="tensorrt",
                version="10.9.0",
                arch=arch,
                compute_capability="9.0",
                gpu=None,
                precision="fp32",
                shapes=(shapes or {}).get(name, {}),
                workspace=None,
                layers={},
                matrix_layers={},
                engine=None,
                route=route,
                operators=[],
                sources={},
                plan_sha256=sha256(target / path),
                built_by="a test",
                seconds=0.0,
            )
            (target / folder / f"{name}.json").write_bytes(msgspec.json.encode(info))
            for each in (path, f"{folder}/{name}.json"):
                size = (target / each).stat().st_size
                manifest["files"][each] = {"sha256": sha256(target / each), "size": size}
        manifest["plans"][folder.removeprefix("plans/")] = plans
    (target / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return Bundle.open(target)
