"""The enrolled classes as a model of Triton's Python backend: a name in, the class's tensors out.

`uino-deploy triton-repository` copies this file, which needs numpy alone, into the repository. The
folder of classes is looked at again for every request: what `uino-deploy enroll` or a service puts
there is found at once, on every server that sees the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

SUFFIX = ".safetensors"
KEPT_BYTES = 2 << 30
Arrays = Mapping[str, Any]
TYPES: Arrays = {"F32": np.float32, "F16": np.float16}
# The support file's names, and those of a query's inputs, which have an axis more for the class.
QUERY_NAMES = {"deep": "support_deep"}
CLASS_AXIS = {"deep", "weight", "sparse"}


class Unusable(Exception):
    """A class's file that cannot be used, and why."""


class TritonPythonModel:
    """Reads supports from a folder and keeps them."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Take the folder and the model that classes must belong to from the configuration."""
        config = json.loads(args["model_config"])
        given = {key: each["string_value"] for key, each in config["parameters"].items()}
        self.folder = given["classes"]
        self.fingerprint, self.preprocess = given["fingerprint"], given["preprocess"]
        self.outputs = {
            each["name"]: pb_utils.triton_string_to_numpy(each["data_type"])
            for each in config["output"]
        }
        self.kept: OrderedDict[str, tuple[tuple[int, int, int], Arrays]] = OrderedDict()
        self.lock = threading.Lock()
        os.listdir(self.folder)  # a wrong folder is told at the start

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request with the tensors of the class that it names."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """Return one request's response."""
        given = pb_utils.get_input_tensor_by_name(request, "name").as_numpy().ravel()[0]
        name = unicodedata.normalize("NFC", given.decode("utf-8", "replace"))
        try:
            found = self.read(name)
        except LookupError:
            names = ", ".join(self.names()[:10]) or "none"
            told = f"no class {name!r}; enrolled: {names}"
            return failed(told, pb_utils.TritonError.NOT_FOUND)
        except (Unusable, OSError) as error:
            told = f"class {name!r} cannot be used: {error}"
            return failed(told, pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(each, found[each].astype(kind)) for each, kind in self.outputs.items()]
        )

    def names(self) -> list[str]:
        """Return the names of the classes in the folder."""
        found = sorted(os.listdir(self.folder))
        return [each[: -len(SUFFIX)] for each in found if each.endswith(SUFFIX) and each[0] != "."]

    def read(self, name: str) -> Arrays:
        """Return a class's tensors by a query's names, from memory if its file is the same."""
        if name not in self.names():  # so no name leads out of the folder
            raise LookupError(name)
        path = os.path.join(self.folder, name + SUFFIX)
        state = os.stat(path)
        key = (state.st_mtime_ns, state.st_ino, state.st_size)
        with self.lock:
            if name not in self.kept or self.kept[name][0] != key:
                self.kept[name] = (key, self.load(name, path))
            self.kept.move_to_end(name)
            held = sum(key[2] for key, _ in self.kept.values())
            while held > KEPT_BYTES and len(self.kept) > 1:
                held -= self.kept.popitem(last=False)[1][0][2]
            return self.kept[name][1]

    def load(self, name: str, path: str) -> Arrays:
        """Read and check a class's file."""
        with open(path, "rb") as file:
            data = file.read()
        try:
            said, arrays = parse(data)
        except (KeyError, ValueError, TypeError) as error:
            raise Unusable(f"its file is damaged ({error}); enroll it again") from error
        if said.get("digest") != digest(arrays):
            raise Unusable("its file is damaged; enroll it again")
        if unicodedata.normalize("NFC", said["name"]) != name:
            raise Unusable(f"its file holds a class named {said['name']!r}")
        if (said["fingerprint"], said["preprocess"]) != (self.fingerprint, self.preprocess):
            raise Unusable("another model made it; enroll it again with this bundle")
        tensors = {
            QUERY_NAMES.get(each, each): array[None] if each in CLASS_AXIS else array
            for each, array in arrays.items()
        }
        missing = self.outputs.keys() - tensors.keys()
        if missing:
            raise Unusable(f"its file lacks {', '.join(sorted(missing))}")
        return tensors


def parse(data: bytes) -> tuple[Mapping[str, str], Arrays]:
    """Return the metadata and the arrays of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    said = header.pop("__metadata__")
    arrays = {}
    for name, each in header.items():
        first, last = (8 + length + offset for offset in each["data_offsets"])
        array = np.frombuffer(data[first:last], TYPES[each["dtype"]])
        arrays[name] = array.reshape(each["shape"])
    return said, arrays


def digest(arrays: Arrays) -> str:
    """Return the hash that the file's metadata must have, as the program that wrote it does."""
    made = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        made.update(f"{name} {array.dtype} {array.shape}\n".encode())
        made.update(array.tobytes())
    return made.hexdigest()


def failed(told: str, code: int) -> Any:
    """Return a response that says why there is none."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(told, code))
