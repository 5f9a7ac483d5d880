import pytest
import torch

from esper.data import Augment, Batches
from esper.errors import ConfigError


def numbered(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 2, 6, 5), torch.arange(count)


def drain(batches: Batches, epoch: int, start: int = 0) -> torch.Tensor:
    return torch.cat([y for _, y in batches.epoch(epoch, start=start)])


def test_an_epoch_has_every_sample_once_and_images_with_their_labels():
    x, y = numbered(23)
    batches = Batches(x, y, 5, seed=0)
    seen = list(batches.epoch(0))
    assert len(seen) == len(batches) == 5
    assert [len(labels) for _, labels in seen] == [5, 5, 5, 5, 3]
    assert sorted(drain(batches, 0).tolist()) == list(range(23))
    for images, labels in seen:
        assert images[:, 0, 0, 0].equal(labels.float())


def test_the_order_depends_on_seed_and_epoch():
    x, y = numbered(50)
    order = Batches(x, y, 10, seed=0).order
    assert order(0).equal(Batches(x, y, 7, seed=0).order(0))
    assert not order(0).equal(order(1))
    assert not order(0).equal(Batches(x, y, 10, seed=1).order(0))
    # An order that is reused under another name would show up as a seed one higher being an epoch later.
    assert not order(1).equal(Batches(x, y, 10, seed=1).order(0))


def test_the_global_generator_is_neither_read_nor_moved():
    x, y = numbered(20)
    batches = Batches(x, y, 6, seed=0, augment=Augment())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = [images for images, _ in batches.epoch(3)]
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(2)
    again = [images for images, _ in Batches(x, y, 6, seed=0, augment=Augment()).epoch(3)]
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))


def test_an_epoch_can_be_taken_up_in_the_middle():
    x, y = numbered(20)
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    whole = list(Batches(x, y, 6, seed=0, augment=Augment()).epoch(3))
    rest = list(Batches(x, y, 6, seed=0, augment=Augment()).epoch(3, start=2))
    assert len(rest) == 2
    for (x1, y1), (x2, y2) in zip(whole[2:], rest, strict=True):
        assert x1.equal(x2)
        assert y1.equal(y2)


def test_augmentation_differs_between_steps_and_between_epochs():
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(12, -1, -1, -1)
    batches = Batches(image, torch.zeros(12), 4, seed=0, augment=Augment(pad=3))
    assert not batches.batch(0, 0)[0].equal(batches.batch(0, 1)[0])
    assert not batches.batch(0, 0)[0].equal(batches.batch(1, 0)[0])


def test_a_batch_is_a_copy():
    x, y = numbered(4)
    x = x.clone()
    batches = Batches(x, y, 2, seed=0)
    batches.batch(0, 0)[0].zero_()
    assert x[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_a_step_outside_the_epoch():
    batches = Batches(*numbered(10), 5, seed=0)
    with pytest.raises(IndexError, match="step 2 of an epoch of 2"):
        batches.batch(0, 2)


@pytest.mark.parametrize("size", [0, -4])
def test_an_impossible_batch_size(size):
    with pytest.raises(ConfigError, match=f"at least 1, not {size}"):
        Batches(*numbered(10), size, seed=0)


def test_no_samples_and_uneven_samples():
    x, y = numbered(10)
    with pytest.raises(ConfigError, match="as many samples as labels"):
        Batches(x, y[:9], 5, seed=0)
    with pytest.raises(ConfigError, match="at least one"):
        Batches(x[:0], y[:0], 5, seed=0)


def test_a_negative_padding():
    with pytest.raises(ConfigError, match="at least 0, not -1"):
        Augment(pad=-1)


def test_no_padding_and_no_flip_change_nothing():
    x = torch.randn(7, 2, 6, 5)
    assert Augment(pad=0, flip=False)(x, torch.Generator()).equal(x)


def test_every_shift_and_both_directions_occur():
    x = torch.arange(1.0, 10.0).view(1, 1, 3, 3).expand(400, -1, -1, -1)
    out = Augment(pad=1, flip=True)(x, torch.Generator().manual_seed(0))
    assert len(torch.unique(out, dim=0)) == 3 * 3 * 2
    shifted_only = Augment(pad=1, flip=False)(x, torch.Generator().manual_seed(0))
    assert len(torch.unique(shifted_only, dim=0)) == 3 * 3


def test_turning_the_flip_off_leaves_the_shifts_where_they_were():
    symmetric = torch.arange(6.0).view(1, 1, 6, 1).expand(9, 1, 6, 5).contiguous()
    one, other = (
        Augment(pad=2, flip=flip, fill=(-1.0,))(symmetric, torch.Generator().manual_seed(4))
        for flip in (True, False)
    )
    assert one[:, 0, :, 2].equal(other[:, 0, :, 2])


def test_samples_that_are_left_out_are_in_no_batch() -> None:
    x = torch.arange(10.0)
    batches = Batches(x, x.long(), 4, seed=0)
    whole = [batches.batch(0, step)[1].tolist() for step in range(3)]
    out = whole[1][0]
    batches.leave_out([out])
    assert [batches.batch(0, step)[1].tolist() for step in range(3)] == [whole[0], whole[1][1:], whole[2]]
    batches.leave_out([])
    assert batches.batch(0, 1)[1].tolist() == whole[1]
