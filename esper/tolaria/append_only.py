"""What a run only ever adds to: its epochs, verdicts, refusals and growths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar, overload

T = TypeVar("T")


class Place(NamedTuple):
    """Where the log of a run has a frame: from which byte on, how many, and what it is sealed under."""

    start: int
    size: int
    id: str


class _Store(Generic[T]):
    """Items that sequences share, each up to its length; ``saved`` is how many the log has, and where."""

    def __init__(self, items: list[T], saved: tuple[int, Place | None]) -> None:
        self.items = items
        self.saved = saved


class AppendOnly(Sequence[T]):
    """An immutable sequence that is added to, and handed out, in constant time.

    It equals a list or tuple of the same items. A slice is a tuple. ``place`` is where the log of checkpoints
    has its first ``saved`` items, None where it has none.
    """

    __hash__ = None  # type: ignore[assignment]  # as of a list: what it holds need have none

    def __init__(self, items: Iterable[T] = (), place: Place | None = None) -> None:
        """With ``place`` the log has all of ``items``."""
        held = list(items)
        self._store: _Store[T] = _Store(held, (len(held), place) if place else (0, None))
        self._length = len(held)

    def plus(self, item: T) -> AppendOnly[T]:
        """This with one more item; the two share what they have in common."""
        longer = AppendOnly[T]()
        longer._store, longer._length = self._store, self._length + 1
        if len(self._store.items) > self._length:  # something else was added to it before
            longer._store = _Store(self._store.items[: self._length], (self.saved, self.place))
        longer._store.items.append(item)
        return longer

    @property
    def saved(self) -> int:
        """How many items, from the first on, the log has."""
        return self._saved[0]

    @property
    def place(self) -> Place | None:
        """Where the log has them."""
        return self._saved[1]

    @property
    def _saved(self) -> tuple[int, Place | None]:
        saved = self._store.saved
        return saved if saved[0] <= self._length else (0, None)  # else they are not all of this one

    def note_saved(self, place: Place) -> None:
        """The log has all of it, at ``place``. Another thread may call this."""
        self._store.saved = self._length, place

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        items = self._store.items
        if isinstance(index, slice):
            return tuple(items[place] for place in range(*index.indices(self._length)))
        if not -self._length <= index < self._length:
            raise IndexError("there are fewer items")
        return items[index % self._length]

    def __iter__(self) -> Iterator[T]:
        return islice(self._store.items, self._length)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (AppendOnly, list, tuple)):
            return NotImplemented
        return self._length == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"AppendOnly({list(self)})"


def restored(state: Iterable[dict[str, Any]], make: Callable[[dict[str, Any]], T]) -> AppendOnly[T]:
    """What a checkpoint has of a sequence, of whose items it has the fields; older ones have a list."""
    return AppendOnly(map(make, state), state.place if isinstance(state, AppendOnly) else None)
