"""The training forward pass compiled by ``torch.compile``: once for each shape that the network grows to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.kasmina import SeededLayer

Backend = Literal["inductor", "aot_eager", "eager"]
"""What compiles: machine code, or PyTorch's own operators after tracing forward and backward, or forward."""

BACKENDS = get_args(Backend)


class CompiledForward:
    """Calls ``model``, compiled for batches of ``usual`` samples, in training.

    It is compiled anew, and what was compiled before dropped, when ``shape`` gives another value or one of
    ``layers`` has more or fewer running seeds; nothing else may make torch compile. Kernels stay as they are
    (see ``esper.kasmina.uncompiled``), and so does each call that is rare: of a batch of another size, and
    with health observed.
    """

    def __init__(
        self,
        model: nn.Module,
        backend: str | Callable[..., Any],
        *,
        usual: int,
        layers: Collection[SeededLayer],
        shape: Callable[[], int],
    ) -> None:
        self._model = model
        self._backend = backend
        self._usual = usual
        self._layers = layers
        self._shape = shape
        self._compiled: tuple[object, Callable[[Tensor], Tensor]] | None = None
        self.compilations = 0

    def __call__(self, x: Tensor) -> Tensor:
        """The output of the model for the batch ``x``.

        Raises ConfigError when torch cannot compile the network, or wants to do so again without growth.
        """
        if len(x) != self._usual or any(layer.observing for layer in self._layers):
            output: Tensor = self._model(x)
            return output
        version = (self._shape(), tuple(len(layer.running) for layer in self._layers))
        if self._compiled is None or self._compiled[0] != version:
            return self._compile(x, version)
        with torch.compiler.set_stance("fail_on_recompile"):
            try:
                return self._compiled[1](x)
            except RuntimeError as error:
                if "fail_on_recompile" not in str(error):
                    raise
                raise ConfigError(
                    f"torch.compile would compile this network again though it has not grown: {_last(error)}",
                    hint="leave tolaria.compile null",
                ) from error

    def _compile(self, x: Tensor, version: object) -> Tensor:
        import torch._dynamo.config as config  # which takes a second to load
        from torch._dynamo.exc import TorchDynamoException

        torch.compiler.reset()
        # A forward that loops over layers whose seeds run is compiled a layer at a time. Past its limits
        # torch would go on without compiling, and say nothing.
        modules = sum(1 for _ in self._model.modules())
        limits = {
            "recompile_limit": modules,
            "accumulated_recompile_limit": modules,
            "fail_on_recompile_limit_hit": True,
        }
        function: Callable[[Tensor], Tensor] = torch.compile(
            self._model, backend=self._backend, dynamic=False
        )
        try:
            with config.patch(limits), warnings.catch_warnings():
                # Of torch itself, as it looks at what a layer with running seeds gave.
                warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf")
                output = function(x)
        except TorchDynamoException as error:
            raise ConfigError(
                f"torch.compile cannot compile this network: {_first(error)}",
                hint="leave tolaria.compile null; inductor needs a C++ compiler on the CPU, aot_eager none",
            ) from error
        self._compiled = version, function
        self.compilations += 1
        return output


def _lines(error: Exception) -> list[str]:
    text = str(error).partition("Set TORCHDYNAMO_VERBOSE")[0]
    return [line.strip() for line in text.splitlines() if line.strip()]


def _first(error: Exception) -> str:
    return " ".join(_lines(error)[:2])


def _last(error: Exception) -> str:
    return _lines(error)[-1]
