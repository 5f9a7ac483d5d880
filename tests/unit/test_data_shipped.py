import shutil

import numpy as np
import pytest
import torch

from esper.data import load_digits, load_fashion, shipped
from esper.errors import DataError


def test_digits_are_the_published_ones():
    splits = load_digits()
    assert splits.sample_shape == (1, 8, 8)
    assert [len(s.y) for s in (splits.train, splits.held_out, splits.test)] == [1197, 240, 360]
    counts = sum(torch.bincount(s.y) for s in (splits.train, splits.held_out, splits.test))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # scikit-learn, load_digits


def test_fashion_is_balanced_and_split_as_documented():
    splits = load_fashion()
    assert splits.sample_shape == (1, 28, 28)
    for split, each in ((splits.train, 850), (splits.held_out, 150), (splits.test, 200)):
        assert torch.bincount(split.y).tolist() == [each] * 10


@pytest.mark.parametrize("load", [load_digits, load_fashion])
def test_no_image_is_in_two_splits(load):
    splits = load(held_out=200)
    images = [{row.numpy().tobytes() for row in s.x} for s in (splits.train, splits.held_out, splits.test)]
    assert not images[0] & images[1]
    assert not images[1] & images[2]
    assert not images[0] & images[2]


@pytest.mark.parametrize("load", [load_digits, load_fashion])
def test_split_seed_moves_the_held_out_split_and_never_the_test_split(load):
    one, same, other = load(), load(), load(split_seed=1)
    assert torch.equal(one.held_out.x, same.held_out.x)
    assert torch.equal(one.test.y, other.test.y)
    assert not torch.equal(one.held_out.x, other.held_out.x)


def test_the_cut_of_the_digits_never_moves():
    # A change here means that accuracies reported before and after it are of different test sets.
    assert load_digits().test.y[:12].tolist() == [1, 7, 8, 0, 6, 2, 5, 6, 7, 8, 0, 9]


def test_a_nearest_mean_classifier_finds_the_classes():
    for splits, least in ((load_digits(), 0.85), (load_fashion(), 0.6)):
        x, y = splits.train.x.flatten(1), splits.train.y
        centres = torch.stack([x[y == label].mean(0) for label in range(10)])
        nearest = torch.cdist(splits.test.x.flatten(1), centres).argmin(1)
        assert (nearest == splits.test.y).float().mean() > least


@pytest.fixture
def files(tmp_path, monkeypatch):
    shutil.copytree(shipped.FILES, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(shipped, "FILES", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("load", "name"), [(load_digits, "digits.csv.gz"), (load_fashion, "fashion-12k.npz")]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "text"])
def test_a_damaged_installation_is_named_with_the_next_step(files, load, name, damage):
    path = files / name
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"moved elsewhere"}[damage])
    with pytest.raises(DataError, match=name) as caught:
        load()
    assert "install esper-morph again" in str(caught.value)


def test_objects_in_the_archive_are_not_unpickled(files):
    np.savez(files / "fashion-12k.npz", train_images=np.array([print], dtype=object))
    with pytest.raises(DataError, match="allow_pickle=False"):
        load_fashion()


def test_an_archive_of_other_sizes_is_refused(files):
    images, labels = np.zeros((20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 10
    np.savez(
        files / "fashion-12k.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    with pytest.raises(DataError, match=r"expected uint8 images \(10000, 1, 28, 28\), found"):
        load_fashion()


def test_each_data_file_ships_with_its_licence():
    texts = {path.name: path.read_text("utf-8") for path in shipped.FILES.glob("*LICENSE*")}
    assert "fashion-12k.npz" in texts["FASHION-MNIST-LICENSE.txt"]
    assert "The MIT License" in texts["FASHION-MNIST-LICENSE.txt"]
    assert "austen.txt.gz" in texts["AUSTEN-LICENSE.txt"]
    assert "public domain" in texts["AUSTEN-LICENSE.txt"]
    assert "The MIT License" in texts["AUSTEN-LICENSE.txt"]
    files = {path.name for path in shipped.FILES.iterdir()} - texts.keys()
    assert all(any(text.startswith(f"{name}\n") for text in texts.values()) for name in files)
    assert "digits.csv.gz" in texts["DIGITS-LICENSE.txt"]
    assert "CC BY 4.0" in texts["DIGITS-LICENSE.txt"]
    assert "BSD 3-Clause" in texts["DIGITS-LICENSE.txt"]
