import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from esper.data import load_cifar10
from esper.data.cifar_pickle import read_pickled_batch
from esper.errors import ConfigError, DataError

RECORDS = 12
STEMS = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def batch(stem: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (RECORDS, 3072) and labels of one file."""
    random = np.random.RandomState(STEMS.index(stem))
    return random.randint(0, 256, (RECORDS, 3072)).astype(np.uint8), np.arange(RECORDS, dtype=np.uint8) % 10


def binary(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    return np.hstack([labels[:, None], pixels]).tobytes()


class Python2:
    """Writes what Python 2's cPickle wrote at protocol 2, opcode by opcode, as the original files were."""

    @staticmethod
    def text(value: str | bytes) -> bytes:
        raw = value.encode() if isinstance(value, str) else value
        return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw

    @staticmethod
    def number(value: int) -> bytes:
        if 0 <= value < 256:
            return b"K" + bytes([value])
        return b"M" + struct.pack("<H", value) if 0 <= value < 65536 else b"J" + struct.pack("<i", value)

    @classmethod
    def array(cls, shape: tuple[int, int], raw: bytes, dtype: str = "u1") -> bytes:
        kind = b"cnumpy\ndtype\nq\x10" + cls.text(dtype) + b"K\x00K\x01\x87q\x11R"
        kind += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        new = b"cnumpy.core.multiarray\n_reconstruct\nq\x12cnumpy\nndarray\nq\x13K\x00\x85U\x01b\x87R"
        state = b"(K\x01" + cls.number(shape[0]) + cls.number(shape[1]) + b"\x86" + kind + b"\x89"
        return new + state + cls.text(raw) + b"tb"

    @classmethod
    def batch(cls, data: bytes, labels: np.ndarray) -> bytes:
        numbers = b"]q\x05(" + b"".join(cls.number(int(label)) for label in labels) + b"e"
        names = b"]r\x06\x01\x00\x00(" + cls.text("leptodactylus_pentadactylus_s_000004.png") + b"e"
        pairs = [("batch_label", cls.text("training batch 1 of 5")), ("labels", numbers)]
        pairs += [("data", data), ("filenames", names)]
        return b"\x80\x02}q\x01(" + b"".join(cls.text(key) + value for key, value in pairs) + b"u."


def pickled(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    return Python2.batch(Python2.array(pixels.shape, pixels.tobytes()), labels)


@pytest.fixture(params=["binary", "python"])
def version(request, tmp_path):
    """A folder in one of the two formats, the suffix of its files, and what writes one."""
    suffix, encode = {"binary": (".bin", binary), "python": ("", pickled)}[request.param]
    for stem in STEMS:
        (tmp_path / f"{stem}{suffix}").write_bytes(encode(*batch(stem)))
    return tmp_path, suffix, encode


def load(folder):
    return load_cifar10(folder, held_out=10, batch_records=RECORDS)


def test_the_six_files_become_three_splits(version):
    splits = load(version[0])
    assert (splits.name, splits.classes, splits.sample_shape) == ("cifar10", 10, (3, 32, 32))
    assert [len(s.y) for s in (splits.train, splits.held_out, splits.test)] == [50, 10, 12]
    pixels, labels = batch("test_batch")
    assert splits.test.y.tolist() == labels.tolist()
    for channel in range(3):  # red, green, blue planes of 1,024 values, row by row
        stored = pixels[:, channel * 1024 : (channel + 1) * 1024].reshape(RECORDS, 32, 32).astype(float)
        read = splits.test.x[:, channel].numpy() - splits.black[channel]
        scale = stored.sum() / read.sum()
        np.testing.assert_allclose(read * scale, stored, atol=0.01)


def test_both_versions_hold_the_same(tmp_path):
    for below, suffix, encode in (("bin", ".bin", binary), ("py", "", pickled)):
        (tmp_path / below / f"cifar-10-batches-{below}").mkdir(parents=True)
        for stem in STEMS:
            path = tmp_path / below / f"cifar-10-batches-{below}" / f"{stem}{suffix}"
            path.write_bytes(encode(*batch(stem)))
    one, other = load(tmp_path / "bin"), load(tmp_path / "py")
    assert one.train.x.equal(other.train.x)
    assert one.test.y.equal(other.test.y)


def test_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"data\.root=.*none, found nothing"):
        load(tmp_path / "none")


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"expected data_batch_1\.bin or data_batch_1 there") as caught:
        load(tmp_path)
    assert "cifar-10-binary.tar.gz" in caught.value.hint


@pytest.mark.parametrize("stem", ["data_batch_4", "test_batch"])
def test_a_missing_file(version, stem):
    folder, suffix, _ = version
    (folder / f"{stem}{suffix}").unlink()
    with pytest.raises(
        DataError, match=f"{stem}{suffix}: expected this file beside data_batch_1, found none"
    ):
        load(folder)


def test_a_truncated_binary_file(tmp_path):
    for stem in STEMS:
        (tmp_path / f"{stem}.bin").write_bytes(binary(*batch(stem)))
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-3073])
    with pytest.raises(DataError, match=r"expected 36,876 bytes \(12 records of 3073\), found 33,803"):
        load(tmp_path)


def test_the_original_number_of_records_is_expected_unless_told_otherwise(version):
    with pytest.raises(DataError, match=r"expected 30,730,000 bytes|expected 10,000 images"):
        load_cifar10(version[0])


def test_a_label_out_of_range(version):
    folder, suffix, encode = version
    pixels, labels = batch("data_batch_3")
    labels[5] = 10
    (folder / f"data_batch_3{suffix}").write_bytes(encode(pixels, labels))
    with pytest.raises(
        DataError, match=f"data_batch_3{suffix}: expected labels 0 to 9, found 10 at sample 5"
    ):
        load(folder)


def test_fewer_labels_than_images(tmp_path):
    for stem in STEMS:
        (tmp_path / stem).write_bytes(pickled(*batch(stem)))
    pixels, labels = batch("data_batch_1")
    (tmp_path / "data_batch_1").write_bytes(pickled(pixels, labels[:-1]))
    with pytest.raises(DataError, match=r"expected 12 images of 3072 values .* and 11 labels"):
        load(tmp_path)


def test_held_out_larger_than_the_data(version):
    with pytest.raises(ConfigError, match=r"data\.held_out is 60, but cifar10 has 60 samples"):
        load_cifar10(version[0], held_out=60, batch_records=RECORDS)


def test_python_2_wrote_what_this_test_writes():
    # pickle itself, told to expect Python 2's text, reads the same array: the test's writer is not invented.
    pixels, labels = batch("data_batch_1")
    whole = pickle.loads(pickled(pixels, labels).replace(b"numpy.core", b"numpy._core"), encoding="bytes")
    assert np.array_equal(whole[b"data"], pixels)
    assert whole[b"labels"] == labels.tolist()
    assert whole[b"data"].dtype == np.uint8


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def hostile(data: bytes = b"N") -> bytes:
    return Python2.batch(data, np.arange(RECORDS))


PIXELS = batch("test_batch")[0]
RAW = PIXELS.tobytes()

HOSTILE = {
    "empty": (b"", "pickle exhausted"),
    "text": (b"<html>not found</html>", "cannot be read"),
    "cut": (pickled(*batch("test_batch"))[:20_000], "cannot be read"),
    "a call": (hostile(b"cos\nsystem\nU\x04trueq\x20\x85R"), "names os.system"),
    "a call by another name": (hostile(b"cbuiltins\neval\nU\x011q\x20\x85R"), "names builtins.eval"),
    "an attribute of what is allowed": (hostile(b"cnumpy\nndarray.tofile\n"), "names numpy.ndarray.tofile"),
    "state given to a class": (hostile(b"cnumpy\nndarray\n}b"), "cannot be read"),
    "an extension code": (hostile(b"\x82\x01"), "uses EXT1"),
    "a persistent id": (hostile(b"U\x01aQ"), "uses BINPERSID"),
    "an instance": (hostile(b"(ios\nsystem\n"), "uses INST"),
    "a memo of gigabytes": (hostile(b"Nr\xff\xff\xff\x7f"), "under number 2,147,483,647"),
    "a list": (b"\x80\x02].", "no dictionary with 'data' and 'labels'"),
    "no array": (hostile(), "'data' is not an array"),
    "objects": (hostile(Python2.array((12, 3072), RAW, "O8")), "'data' is not an array"),
    "floats": (hostile(Python2.array((12, 768), RAW, "f4")), "'data' is not an array"),
    "a shape that lies": (hostile(Python2.array((13, 3072), RAW)), "'data' is not an array"),
    "a negative shape": (hostile(Python2.array((-12, -3072), RAW)), "'data' is not an array"),
    "an empty array": (hostile(Python2.array((0, 3072), b"")), "'data' is not an array"),
    "an array without content": (
        hostile(b"cnumpy.core.multiarray\n_reconstruct\n)R"),
        "'data' is not an array",
    ),
    "negative labels": (
        Python2.batch(Python2.array((12, 3072), RAW), np.array([-1] * 12)),
        "'labels' is not a list of whole numbers",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_and_damaged_pickles_are_refused(kind):
    content, message = HOSTILE[kind]
    with pytest.raises(DataError, match=message) as caught:
        read_pickled_batch(content, Path("data_batch_1"))
    assert caught.value.message.startswith("data_batch_1: ")
    assert "binary version" in caught.value.hint


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_is_run(tmp_path, protocol):
    target = tmp_path / "written"
    with pytest.raises(DataError):
        read_pickled_batch(pickle.dumps(Touch(target), protocol), tmp_path / "data_batch_1")
    assert not target.exists()
