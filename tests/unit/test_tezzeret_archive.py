"""Programs as they are kept: nothing of the machine that compiled them, the same bytes whenever saved."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from tezzeret_support import MLP, SLOT

from esper.tezzeret.builder import build
from esper.tezzeret.torchscript import TorchScriptTarget

TARGET = TorchScriptTarget()
PROGRAM = TARGET.compile(build(MLP, SLOT))


def as_pytorch_saves_it() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(PROGRAM, buffer)
    return buffer.getvalue()


def held(archive: bytes) -> bytes:
    """All that an archive holds, unpacked."""
    with zipfile.ZipFile(io.BytesIO(archive)) as entries:
        return b"".join(entries.read(name) for name in entries.namelist())


def test_a_program_names_no_file_of_this_machine() -> None:
    here = os.fsencode(Path(torch.__file__).parent)
    assert here in held(as_pytorch_saves_it())
    saved = TARGET.save(PROGRAM)
    assert here not in held(saved)
    assert len(saved) < 0.8 * len(as_pytorch_saves_it())


def test_it_computes_what_it_did_and_is_saved_to_the_same_bytes() -> None:
    saved = TARGET.save(PROGRAM)
    assert TARGET.save(PROGRAM) == saved
    loaded = TARGET.load(saved)
    x = torch.randn(3, 8)
    assert torch.equal(loaded(x), PROGRAM(x))
    assert [name for name, _ in loaded.named_parameters()] == [n for n, _ in PROGRAM.named_parameters()]


def test_an_error_in_a_kernel_still_shows_the_line_that_failed() -> None:
    with pytest.raises(
        RuntimeError, match=r"(?s)line \d+, in forward.*torch\.linear\(input.*HERE.*shapes cannot"
    ):
        TARGET.load(TARGET.save(PROGRAM))(torch.randn(3, 5))
