"""Records have the checksums that TensorBoard asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow as peer
from tensorboard.summary.writer.record_writer import RecordWriter

from esper.nissa.telemetry.record_file import RecordFile, crc32c


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 255, 256, 257, 259, 260, 1000])
def test_the_checksum_is_that_of_tensorboard(length: int) -> None:
    data = bytes((7 * place + place // 3) % 256 for place in range(length))
    assert crc32c(data) == peer.crc32c(data)


def test_a_file_is_that_of_tensorboard(tmp_path: Path) -> None:
    ours, theirs = RecordFile(tmp_path / "ours"), RecordWriter((tmp_path / "theirs").open("wb"))
    for file in (ours, theirs):
        for record in (b"", b"a record", bytes(300)):
            file.write(record)
        file.close()
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
