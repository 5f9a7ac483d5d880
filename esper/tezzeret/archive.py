"""TorchScript archives, which are zip files: what is left out of ours, and what those of others may be."""

from __future__ import annotations

import encodings.cp437  # noqa: F401  what zipfile reads old names by; a worker can import nothing
import io
import re
import stat
import zipfile
import zlib

DATE = (1980, 1, 1, 0, 0, 0)
"""Of every entry: equal programs shall give equal bytes, whenever they were saved."""

MAX_ENTRIES = 4_096
MAX_NAME = 300

_LEFT_OUT = (".debug_pkl", "/.data/serialization_id")
_WEIGHT = re.compile(r"^[^/]+/data/\d+$", re.ASCII)
_NAME = re.compile(
    r"(?P<root>[\w-]+(?:\.[\w-]+)*)/(?:code/(?:\w+/)*\w+\.py(?:\.debug_pkl)?|(?:data|constants)/\d+|"
    r"(?:data|constants)\.pkl|version|byteorder|\.data/(?:version|serialization_id)|\.format_version|"
    r"\.storage_alignment)",
    re.ASCII,
)


def without_sources(program: bytes) -> bytes:
    """The archive ``program`` without the places in source files that its code came from.

    Each file of code has a pickle beside it that names the files of the machine that compiled it, line by
    line, for messages of errors; PyTorch loads code without it, and then shows the lines of the archive.
    """
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as source, zipfile.ZipFile(made, "w") as out:
        for entry in source.infolist():
            if not entry.filename.endswith(_LEFT_OUT):
                kept = zipfile.ZipInfo(entry.filename, DATE)
                out.writestr(kept, source.read(entry), entry.compress_type)
    return made.getvalue()


def check_archive(program: bytes, max_bytes: int) -> int:
    """How many bytes of weights ``program`` holds, if it is an archive as PyTorch writes them and no more.

    Nothing is unpacked but to see that it is whole. ``max_bytes`` is the most that all of it may unpack to.
    Raises ``RuntimeError`` for anything else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(program)) as archive:
            entries = archive.infolist()
            _check_entries(program, entries, max_bytes)
            broken = archive.testzip()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError, zlib.error) as error:
        raise RuntimeError(f"it is no whole zip archive: {error}") from error
    _require(broken is None, f"its entry {broken!r:.80} is damaged")
    return sum(entry.file_size for entry in entries if _WEIGHT.search(entry.filename))


def _check_entries(program: bytes, entries: list[zipfile.ZipInfo], max_bytes: int) -> None:
    _require(0 < len(entries) <= MAX_ENTRIES, f"it has {len(entries):,} entries, and at most {MAX_ENTRIES:,}")
    _require(program.startswith(b"PK\x03\x04") and entries[0].header_offset == 0, "something precedes it")
    roots = set()
    for entry in entries:
        name = entry.orig_filename
        match = _NAME.fullmatch(name) if len(name) <= MAX_NAME else None
        if match is None:
            raise RuntimeError(f"its entry {name!r:.80} is none that a program has")
        roots.add(match["root"])
        mode = entry.external_attr >> 16
        _require(stat.S_IFMT(mode) in (0, stat.S_IFREG), f"its entry {name!r} is no plain file")
        _require(not entry.flag_bits & 1, f"its entry {name!r} is encrypted")
    _require(len({entry.filename for entry in entries}) == len(entries), "it has an entry twice")
    _require(len(roots) == 1, "its entries are in more than one folder")
    total = sum(entry.file_size for entry in entries)
    _require(total <= max_bytes, f"it unpacks to {total:,} bytes; the most is {max_bytes:,}")


def _require(condition: bool, failure: str) -> None:
    if not condition:
        raise RuntimeError(failure)
