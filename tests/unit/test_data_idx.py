import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from esper.data import load_idx
from esper.data.idx import read_idx
from esper.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "train-labels-idx1-ubyte.gz"


def idx(values: np.ndarray) -> bytes:
    """``values`` in the IDX format, written from its description rather than by the code under test."""
    return b"\0\0\x08" + bytes([values.ndim]) + b"".join(map(_count, values.shape)) + values.tobytes()


def _count(number: int) -> bytes:
    return struct.pack(">I", number)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def images(count: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, 6, 5)).astype(np.uint8)


def labels(count: int) -> np.ndarray:
    return (np.arange(count) % 10).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 40), ("t10k", 20)):
        write(tmp_path / f"{part}-images-idx3-ubyte.gz", idx(images(count, seed=count)))
        write(tmp_path / f"{part}-labels-idx1-ubyte.gz", idx(labels(count)))
    return tmp_path


def load(folder):
    return load_idx(folder, "tiny", held_out=10)


def test_the_four_files_become_three_splits(folder):
    splits = load(folder)
    assert (splits.name, splits.classes, splits.sample_shape) == ("tiny", 10, (1, 6, 5))
    assert [len(s.y) for s in (splits.train, splits.held_out, splits.test)] == [30, 10, 20]
    assert splits.test.y.tolist() == labels(20).tolist()
    black, unit = splits.black[0], splits.test.x.flatten().diff()
    pixels = images(20, seed=20).astype(np.float64)
    std = np.diff(pixels.ravel())[0] / unit[0].item()
    np.testing.assert_allclose((splits.test.x.numpy()[:, 0] - black) * std, pixels, atol=1e-2)


@pytest.mark.parametrize("name", ["-idx3-ubyte", ".idx3-ubyte", ".idx3-ubyte.gz"])
def test_files_may_be_raw_and_named_either_way(folder, name):
    expected = load(folder)
    (folder / IMAGES).unlink()
    write(folder / f"train-images{name}", idx(images(40, seed=40)))
    assert load(folder).train.x.equal(expected.train.x)


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load(f"~/{folder.name}").task == "tiny/30"


def test_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match=rf"data\.root={tmp_path}/none, found nothing") as caught:
        load(tmp_path / "none")
    assert "data.root=FOLDER" in caught.value.hint


def test_a_file_in_the_place_of_the_folder(folder):
    with pytest.raises(DataError, match="found a file"):
        load(folder / IMAGES)


@pytest.mark.parametrize("root", ["~no-such-user/data", "x" * 5000])
def test_a_path_that_cannot_be(root):
    with pytest.raises(DataError, match=r"expected a folder at data\.root="):
        load(root)


def test_a_folder_that_may_not_be_read(folder, monkeypatch):
    # Permissions do not bind root, as whom containers often run tests: ask what the system would answer.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(DataError, match=f"data.root={folder} may not be read"):
        load(folder)


def test_a_missing_file(folder):
    (folder / LABELS).unlink()
    with pytest.raises(DataError, match=f"expected a file {LABELS} or train-labels-idx1-ubyte, found none"):
        load(folder)


WHOLE = idx(images(40, seed=40))

DAMAGED = {
    "empty": (b"", "starting with 00000803, found nothing"),
    "another format": (b"\x89PNG\r\n\x1a\n", "starting with 00000803, found 89504e47"),
    "labels for images": (idx(labels(40)), "starting with 00000803, found 00000801"),
    "floats": (b"\0\0\x0d\x03" + WHOLE[4:], "starting with 00000803, found 00000d03"),
    "cut in the header": (WHOLE[:10], "the file ends inside its header"),
    "no images": (WHOLE[:4] + _count(0) + WHOLE[8:16], "claims 0 values"),
    "a header that claims the world": (WHOLE[:4] + b"\xff" * 12, "claims 79,228,162,458,924"),
    "cut": (WHOLE[:-1], "expected 1,200 values after the header, found 1,199"),
    "too long": (WHOLE + b"\0", "expected 1,200 values after the header, found more"),
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("name", [IMAGES, IMAGES.removesuffix(".gz")])
def test_a_damaged_file_is_named_with_what_was_expected_and_found(folder, name, kind):
    content, message = DAMAGED[kind]
    (folder / IMAGES).unlink()
    write(folder / name, content)
    with pytest.raises(DataError, match=f"^{folder / name}: .*{message}") as caught:
        load(folder)
    assert caught.value.hint == "copy or download that file again"


@pytest.mark.parametrize(
    "content",
    [gzip.compress(WHOLE)[:-12], gzip.compress(WHOLE)[:50], WHOLE, b"<html>not found</html>"],
    ids=["end cut", "middle cut", "not gzipped", "a web page"],
)
def test_a_damaged_gzip_file(folder, content):
    (folder / IMAGES).write_bytes(content)
    with pytest.raises(DataError, match="gzip stream is damaged or cut off"):
        load(folder)


def test_other_counts_of_images_and_labels(folder):
    write(folder / LABELS, idx(labels(39)))
    with pytest.raises(DataError, match=f"{LABELS}: expected 40 labels, as many as {IMAGES}.* found 39"):
        load(folder)


def test_a_label_out_of_range(folder):
    wrong = labels(40)
    wrong[7] = 11
    write(folder / LABELS, idx(wrong))
    with pytest.raises(DataError, match=f"{LABELS}: expected labels 0 to 9, found 11 at sample 7") as caught:
        load(folder)
    assert "data.classes" in caught.value.hint


def test_training_and_test_images_of_different_sizes(folder):
    write(folder / "t10k-images-idx3-ubyte.gz", idx(np.zeros((20, 5, 5), np.uint8)))
    with pytest.raises(DataError, match="training images are 6x5, test images 5x5"):
        load(folder)


def test_held_out_larger_than_the_data(folder):
    with pytest.raises(ConfigError, match=r"data\.held_out is 40, but tiny has 40 samples"):
        load_idx(folder, "tiny", held_out=40)


def test_a_file_that_may_not_be_read(folder):
    path = folder / IMAGES
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        read_idx(path, 3)


def test_the_script_that_makes_the_subset(folder, tmp_path):
    output = tmp_path / "subset.npz"
    script = ROOT / "scripts" / "make_fashion_subset.py"
    command = [sys.executable, script, folder, output, "--train", "3", "--test", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith(str(output))
    with np.load(output, allow_pickle=False) as made:
        for part, count, each in (("train", 40, 3), ("test", 20, 1)):
            index = made[f"{part}_index"]
            assert np.array_equal(index, np.unique(index))
            assert np.array_equal(made[f"{part}_images"], images(count, seed=count)[index])
            assert np.bincount(made[f"{part}_labels"]).tolist() == [each] * 10


def test_the_script_says_what_is_wrong_in_one_line(tmp_path):
    script = ROOT / "scripts" / "make_fashion_subset.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path) in done.stderr
