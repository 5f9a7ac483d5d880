"""TorchScript archives, which are zip files: what is left out of ours, and what those of others may be."""

from __future__ import annotations

import io
import re
import zipfile

DATES = (1980, 1, 1, 0, 0, 0)
"""The date of every entry: equal programs shall give equal bytes, whenever they were saved."""

_LEFT_OUT = (".debug_pkl", "/.data/serialization_id")


def without_sources(program: bytes) -> bytes:
    """The archive ``program`` without the places in source files that its code came from.

    Each file of code has a pickle beside it that names the files of the machine that compiled it, line by
    line, for messages of errors; PyTorch loads code without it, and then shows the lines of the archive.
    """
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as source, zipfile.ZipFile(made, "w") as out:
        for entry in source.infolist():
            if not entry.filename.endswith(_LEFT_OUT):
                kept = zipfile.ZipInfo(entry.filename, DATES)
                out.writestr(kept, source.read(entry), entry.compress_type)
    return made.getvalue()
