"""A client with tritonclient: reads a request from a file, writes answers or errors to another.

Runs in Triton's environment: client.py ADDRESS INPUTS.npz OUTPUTS.npz

It asks by tritonclient, NVIDIA's own client: FP32 and BYTES are KServe v2's names of types. What
`status` and `message` say is the server's own; nothing is made up here but "200".
"""

import json
import sys
import time

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException


def main():
    """Ask `segment` for each name, and `query` with the class's tensors."""
    address, given, written = sys.argv[1:]
    inputs = dict(np.load(given, allow_pickle=False))
    client = http.InferenceServerClient(address)
    names = [str(each) for each in inputs.pop("names")]
    image = inputs.pop("image")
    made, said = {}, {}
    for name in names:
        start = time.perf_counter()
        text = np.array([name.encode()], dtype=object)
        try:
            answer = client.infer(
                "segment", [tensor("image", image), tensor("name", text, "BYTES")]
            )
        except InferenceServerException as error:
            said[name] = [error.status(), error.message()]
            continue
        made[f"segment {name} logits"] = answer.as_numpy("logits")
        made[f"segment {name} iou"] = answer.as_numpy("iou")
        said[name] = ["200", f"{1000 * (time.perf_counter() - start):.0f} ms"]
    answer = client.infer("query", [tensor("image", image), *map(tensor, inputs, inputs.values())])
    made["query logits"] = answer.as_numpy("logits")
    said["metadata"] = client.get_model_metadata("segment")
    np.savez(written, said=json.dumps(said), **made)


def tensor(name, array, kind="FP32"):
    """Return an input."""
    made = http.InferInput(name, list(array.shape), kind)
    made.set_data_from_numpy(array)
    return made


if __name__ == "__main__":
    main()
