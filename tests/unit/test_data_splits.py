import numpy as np
import pytest
import torch

from esper.data.splits import RawImages, assemble
from esper.errors import ConfigError


def raw(count: int, seed: int = 0, channels: int = 3) -> RawImages:
    """Images whose first pixel of the first channel is their own number."""
    random = np.random.RandomState(seed)
    images = random.randint(0, 256, (count, channels, 4, 4)).astype(np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return RawImages(images, np.arange(count, dtype=np.int64) % 5)


@pytest.fixture
def splits():
    return assemble("tiny", 5, raw(100), raw(20, seed=1), held_out=25, split_seed=3)


def numbers(splits, split) -> list[int]:
    """The pool's numbers that the samples of ``split`` carry."""
    pool = raw(100).images.astype(np.float32)
    first = torch.sort(torch.cat([splits.train.x, splits.held_out.x])[:, 0, 0, 0]).values
    assert len(first) == len(pool)
    return torch.searchsorted(first, split.x[:, 0, 0, 0].contiguous()).tolist()


def test_splits_are_disjoint_and_cover_the_pool(splits):
    train, held_out = numbers(splits, splits.train), numbers(splits, splits.held_out)
    assert len(held_out) == 25
    assert sorted(train + held_out) == list(range(100))


def test_labels_stay_with_their_images(splits):
    for split in (splits.train, splits.held_out):
        assert [n % 5 for n in numbers(splits, split)] == split.y.tolist()


def test_held_out_has_the_class_proportions_of_the_pool(splits):
    assert torch.bincount(splits.held_out.y).tolist() == [5] * 5


def test_types_and_shapes(splits):
    for split, count in ((splits.train, 75), (splits.held_out, 25), (splits.test, 20)):
        assert split.x.dtype == torch.float32
        assert split.x.is_contiguous()
        assert split.y.dtype == torch.int64
        assert split.x.shape == (count, 3, 4, 4)
    assert splits.sample_shape == (3, 4, 4)
    assert splits.task == "tiny/75"


def test_every_split_is_normalised_with_the_statistics_of_train(splits):
    assert torch.allclose(splits.train.x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(splits.train.x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)
    test = torch.from_numpy(raw(20, seed=1).images.astype(np.float32))
    kept = np.isin(np.arange(100), numbers(splits, splits.train))
    train = torch.from_numpy(raw(100).images[kept].astype(np.float32))
    mean, std = train.mean((0, 2, 3)), train.std((0, 2, 3), correction=0)
    expected = (test - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(splits.test.x, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(splits.black), -mean / std, rtol=1e-4, atol=1e-4)


def test_a_constant_channel_becomes_zero():
    pool = raw(10)
    pool.images[:, 2] = 7
    splits = assemble("tiny", 5, pool, raw(5), held_out=5, split_seed=0)
    assert not splits.train.x[:, 2].any()


def test_the_seed_alone_decides_the_cut():
    def held_out(seed):
        return assemble("tiny", 5, raw(100), raw(20), held_out=25, split_seed=seed).held_out.x

    torch.manual_seed(1)
    first = held_out(0)
    torch.manual_seed(2)
    assert torch.equal(first, held_out(0))
    assert not torch.equal(first, held_out(1))


@pytest.mark.parametrize("held_out", [0, -1, 100, 1000])
def test_held_out_must_leave_something_on_both_sides(held_out):
    with pytest.raises(ConfigError, match="100 samples") as caught:
        assemble("tiny", 5, raw(100), raw(20), held_out=held_out, split_seed=0)
    assert "between 1 and 99" in caught.value.hint


def test_a_seed_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"data\.split_seed is -1"):
        assemble("tiny", 5, raw(100), raw(20), held_out=5, split_seed=-1)


def test_subset_is_balanced_deterministic_and_of_that_size(splits):
    small = splits.subset(train=20, held_out=5)
    assert (len(small.train.y), len(small.held_out.y), len(small.test.y)) == (20, 5, 20)
    assert torch.bincount(small.train.y).tolist() == [4] * 5
    assert set(numbers(splits, small.train)) < set(numbers(splits, splits.train))
    assert torch.equal(small.train.x, splits.subset(train=20).train.x)
    assert not torch.equal(small.train.x, splits.subset(train=20, seed=1).train.x)
    assert small.task == "tiny/20"


@pytest.mark.parametrize("count", [0, 76])
def test_subset_of_an_impossible_size_is_refused(splits, count):
    with pytest.raises(ConfigError, match=f"tiny: train: {count} samples asked for, 75 there"):
        splits.subset(train=count)


def test_batches_augment_with_black(splits):
    plain, moved = splits.batches(8, 0), splits.batches(8, 0, pad=1)
    assert plain.augment is None
    assert moved.augment.fill == splits.black
    assert torch.equal(plain.batch(0, 0)[1], moved.batch(0, 0)[1])


def test_to_moves_every_split(splits):
    moved = splits.to("meta")
    assert {t.device.type for s in (moved.train, moved.held_out, moved.test) for t in s} == {"meta"}
