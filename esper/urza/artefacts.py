"""Whether a kernel is fit for the record, before anything of it is stored."""

from __future__ import annotations

import math

from esper.errors import CorruptKernel, LibraryError
from esper.messages import KernelArtefact
from esper.urza.tiers import digest_of


def checked_blobs(artefact: KernelArtefact) -> dict[str, bytes]:
    """The artefact's blobs by digest, once its bytes and metadata are seen to be fit for the record.

    Raises CorruptKernel for bytes that are not those it names, LibraryError for what no column can hold.
    """
    metadata = artefact.metadata
    kernel = f"kernel {metadata.kernel_id!r} was not stored"
    for name in ("compilation_time", "performance_score", "latency_ms", "latency_ratio"):
        if not math.isfinite(getattr(metadata, name)):
            raise LibraryError(f"{kernel}: its {name} is {getattr(metadata, name)}")
    if len(metadata.input_shape) != 1 or len(metadata.output_shape) != 1:
        shapes = f"{metadata.input_shape} -> {metadata.output_shape}"
        raise LibraryError(f"{kernel}: its shapes {shapes} are not one feature count each")
    blueprint = artefact.blueprint.encode()
    named = {"program": metadata.program_digest, "weights": metadata.weights_digest}
    for part, digest in named.items():
        if digest_of(getattr(artefact, part)) != digest:
            raise CorruptKernel(f"{kernel}: the digest of its {part} does not match")
    return {
        metadata.program_digest: artefact.program,
        metadata.weights_digest: artefact.weights,
        digest_of(blueprint): blueprint,
    }
