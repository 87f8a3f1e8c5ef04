"""No command looks a name up or leaves a trace at home, whatever the environment says."""

import os
import shutil
import subprocess
import sys

import pytest

# Answers every look-up with "unknown name" and writes the name down.
WATCH = """
#define _GNU_SOURCE
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
int getaddrinfo(const char *n, const char *s, const struct addrinfo *h, struct addrinfo **r) {
  FILE *log = fopen(getenv("LOOK_UPS"), "a");
  fprintf(log, "%s\\n", n ? n : "-");
  fclose(log);
  return EAI_NONAME;
}
"""
# ONNX Runtime 1.32 sends 9 seconds after its first session.
WORK = """
import contextlib, socket, sys, time
from uino_deploy.child import Child
from uino_deploy.runtime.backends import open_backend
from uino_deploy.bundle import Bundle
from uino_deploy.dependencies import is_importable
bundle = Bundle.open(sys.argv[1])
for name in ("onnxruntime", "openvino"):
    if is_importable(name):
        open_backend(name).load(bundle, "encoder")
with Child("uino_deploy.doctor:list_providers", {"PATH": "", "LOOK_UPS": sys.argv[2]}) as child:
    child.ask(None)
time.sleep(14)
with contextlib.suppress(OSError):
    socket.getaddrinfo("the-watch-works.invalid", 80)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler"
)
def test_no_name_is_looked_up_and_home_stays_empty(fake_bundle, tmp_path):
    (tmp_path / "watch.c").write_text(WATCH)
    library, log, home = tmp_path / "watch.so", tmp_path / "log", tmp_path / "home"
    home.mkdir()
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "watch.c")]
    subprocess.run(command, check=True)
    # In a CI the telemetry is silent by itself.
    quiet = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "BUILD_ID", "ORT_DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    environment |= {"LD_PRELOAD": str(library), "LOOK_UPS": str(log), "HOME": str(home)}
    environment |= {"ORT_DISABLE_TELEMETRY": "0"}
    bundle = shutil.copytree(fake_bundle, tmp_path / "b.uino")
    command = [sys.executable, "-c", WORK, str(bundle), str(log)]
    subprocess.run(command, check=True, env=environment)
    assert log.read_text().split() == ["the-watch-works.invalid"]
    assert not [path for path in home.rglob("*") if path.is_file()]
