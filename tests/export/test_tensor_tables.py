"""The documented tensors are those of a real bundle."""

from uino_deploy.export.tensor_tables import preset_section


def test_the_small_models_table_is_its_manifest(bundle):
    rows = set(preset_section("tiny").splitlines())
    for piece in bundle.manifest.pieces.values():
        for way, tensors in (("in", piece.inputs), ("out", piece.outputs)):
            for tensor in tensors:
                shape = ", ".join(map(str, tensor.shape))
                start = f"| `{piece.name}` | {way} | `{tensor.name}` | [{shape}] | {tensor.dtype} |"
                assert any(row.startswith(start) for row in rows), start
