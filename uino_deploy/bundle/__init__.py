"""A bundle and its files: manifest, plans, supports, reference values, weights, signatures."""

from uino_deploy.bundle.manifest import (
    MANIFEST,
    SCHEMA,
    Bundle,
    Decision,
    DType,
    Edge,
    FileEntry,
    Manifest,
    Piece,
    Precision,
    Preprocess,
    Provenance,
    Quantisation,
    Source,
    model_fingerprint,
    write_manifest,
)

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "Bundle",
    "DType",
    "Decision",
    "Edge",
    "FileEntry",
    "Manifest",
    "Piece",
    "Precision",
    "Preprocess",
    "Provenance",
    "Quantisation",
    "Source",
    "model_fingerprint",
    "write_manifest",
]
