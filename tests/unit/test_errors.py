import copy
import pickle

import pytest

from esper import errors
from esper.errors import CompilationError, EsperError, KernelNotFound, StorageError, UnknownKey

OTHERS = {
    CompilationError: CompilationError("it failed", stage="build", hint="look"),
    KernelNotFound: KernelNotFound("kernel_1"),
    UnknownKey: UnknownKey("0123456789abcdef", "keys.json"),
}
TREE = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EsperError)]


@pytest.mark.parametrize("kind", TREE)
def test_an_error_is_the_same_in_another_process(kind):
    error = OTHERS.get(kind) or kind("it failed", hint="do this")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_so_is_one_that_was_made_from_another():
    error = StorageError.from_os(OSError(28, "No space left on device"), "runs", "cannot write")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert "free some space" in str(error)
