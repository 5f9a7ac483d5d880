"""A grown network as plain modules: seeds replaced by their eager kernels, without guards or switches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from esper.errors import RunError
from esper.kasmina.layer import Geometry, SeededLayer, seeded_layers
from esper.messages import Blend, SeedState, Site

_BLENDED = frozenset({SeedState.BLENDING, SeedState.HOLDING, SeedState.FOSSILIZED})


@dataclass(frozen=True)
class GrownChunk:
    """What the kernel of seed ``seed_idx`` does to features ``start`` to ``stop`` of its layer's output.

    It reads features ``first`` to ``last`` of the layer's input (parallel) or of its output (series).
    """

    seed_idx: int
    kernel_id: str
    site: Site
    blend: Blend
    alpha: float
    first: int
    last: int
    start: int
    stop: int


class GrownLayer(nn.Module):
    """A wrapped layer with its kernels as plain modules: what a seeded layer computes while nothing fails.

    Takes what the host takes; kernels read the first tensor of it. A host that returns a tuple, as an
    attention layer does, grows in the first item.
    """

    def __init__(
        self, host: nn.Module, geometry: Geometry, chunks: Sequence[tuple[GrownChunk, nn.Module]]
    ) -> None:
        super().__init__()
        self.host = host
        self.geometry = geometry
        self.chunks = [chunk for chunk, _ in chunks]
        for chunk, kernel in chunks:
            self.add_module(f"seed{chunk.seed_idx}", kernel)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The host's output with each kernel blended into its chunk."""
        hosted = self.host(*args, **kwargs)
        x: Any = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor | Proxy))
        if isinstance(self.host, nn.MultiheadAttention | nn.RNNBase):
            return self.grow(x, hosted[0]), hosted[1]
        if not isinstance(hosted, tuple):
            return self.grow(x, hosted)
        rest = (self.grow(x, hosted[0]), *hosted[1:])
        return type(hosted)(*rest) if hasattr(hosted, "_fields") else rest

    def grow(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with each kernel of ``x`` or ``y`` blended in."""
        results = [self.result(chunk, x, y) for chunk in self.chunks]
        pieces, end, features = [], 0, self.geometry.out_features
        for chunk, result in zip(self.chunks, results, strict=True):
            if chunk.start > end:
                pieces.append(self.cut(y, end, chunk.start))
            piece = result if chunk.blend == "lerp" else self.cut(y, chunk.start, chunk.stop) + result
            pieces.append(piece)
            end = chunk.stop
        if end < features:
            pieces.append(self.cut(y, end, features))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=self.geometry.axis)

    def result(self, chunk: GrownChunk, x: Tensor, y: Tensor) -> Tensor:
        """What replaces (lerp) or is added to (residual) the chunk of ``y``."""
        given = self.cut(x if chunk.site == "parallel" else y, chunk.first, chunk.last)
        swap = self.geometry.time_first
        kernel: nn.Module = getattr(self, f"seed{chunk.seed_idx}")
        k: Tensor = kernel(given.transpose(0, 1) if swap else given)
        k = k.transpose(0, 1) if swap else k
        if chunk.alpha == 1:
            return k
        if chunk.blend == "residual":
            return chunk.alpha * k
        return torch.lerp(self.cut(y, chunk.start, chunk.stop), k, chunk.alpha)

    def __getattr__(self, name: str) -> Any:
        """As in a seeded layer, what this does not have is the host's: ``layer.weight`` still works."""
        modules: dict[str, nn.Module] = self.__dict__.get("_modules", {})
        if name in modules or "host" not in modules:
            return super().__getattr__(name)
        return getattr(modules["host"], name)

    def cut(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Features ``start`` to ``stop`` of ``x``."""
        return x[:, start:stop] if self.geometry.axis == 1 else x[..., start:stop]


class EncoderLayer(nn.Module):
    """What ``nn.TransformerEncoderLayer`` computes, in calls of its parts, so that a part may have grown."""

    self_attn: nn.Module
    linear1: nn.Module
    linear2: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    dropout: nn.Module
    dropout1: nn.Module
    dropout2: nn.Module

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.norm_first = layer.norm_first
        self.activation = layer.activation
        for name, child in layer.named_children():
            self.add_module(name, child)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """As that of ``nn.TransformerEncoderLayer``; ``is_causal`` only says what the mask is anyway."""
        del is_causal
        x = src
        if self.norm_first:
            x = x + self.attend(self.norm1(x), src_mask, src_key_padding_mask)
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.attend(x, src_mask, src_key_padding_mask))
        return self.norm2(x + self.feed(x))

    def attend(self, x: Tensor, mask: Tensor | None, padding: Tensor | None) -> Any:
        """The attention branch."""
        masks = {"attn_mask": mask, "key_padding_mask": padding}
        given = {name: value for name, value in masks.items() if value is not None}
        return self.dropout1(self.self_attn(x, x, x, need_weights=False, **given)[0])

    def feed(self, x: Tensor) -> Any:
        """The feed-forward branch."""
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class Encoder(nn.Module):
    """What ``nn.TransformerEncoder`` computes, in calls of its layers."""

    def __init__(self, encoder: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers = encoder.layers
        self.norm = encoder.norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Any:
        """As that of ``nn.TransformerEncoder``; ``is_causal`` only says what the mask is anyway."""
        del is_causal
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        return src if self.norm is None else self.norm(src)


def plain_copy(
    model: nn.Module, kernels: Mapping[tuple[str, int], nn.Module]
) -> tuple[nn.Module, dict[str, list[GrownChunk]]]:
    """A copy of ``model`` without seeds, and what grew in each layer; ``model`` itself is left as it is.

    ``kernels`` holds an eager module for each seed with a kernel, by layer and number of the seed; the
    weights of the seed's own kernel are copied into a copy of it. Raises RunError if one is missing or
    does not have those weights.
    """
    layers = seeded_layers(model)
    memo: dict[int, Any] = {}
    grown: dict[str, list[GrownChunk]] = {}
    for name in sorted(layers, key=lambda name: name.count("."), reverse=True):  # the innermost first
        layer = layers[name]
        host = copy.deepcopy(layer.host, memo)
        if chunks := _grown_chunks(layer):
            grown[name] = chunks
            modules = [_eager(layer, name, chunk, kernels) for chunk in chunks]
            host = GrownLayer(host, layer.geometry, list(zip(chunks, modules, strict=True)))
        memo[id(layer)] = host
    plain = _open_encoders(copy.deepcopy(model, memo))
    return plain, {name: grown[name] for name in layers if name in grown}


def _open_encoders(module: nn.Module) -> nn.Module:
    """``module`` with transformer encoders in which something grew replaced by their parts."""
    for name, child in list(module._modules.items()):
        if child is not None:
            setattr(module, name, _open_encoders(child))
    if not any(isinstance(part, GrownLayer) for part in module.modules()):
        return module
    if type(module) is nn.TransformerEncoderLayer:
        return EncoderLayer(module)
    return Encoder(module) if type(module) is nn.TransformerEncoder else module


def _grown_chunks(layer: SeededLayer) -> list[GrownChunk]:
    chunks = []
    first = start = 0
    for i, (taken, given) in enumerate(zip(layer.in_sizes, layer.out_sizes, strict=True)):
        seed, last, stop = layer.seed(i), first + taken, start + given
        # A kernel in TRAINING learns without being heard.
        if seed.alpha is not None and seed.enabled and seed.state in _BLENDED and float(seed.alpha):
            read = (first, last) if seed.site == "parallel" else (start, stop)
            alpha = float(str(seed.alpha.float().numpy(force=True)))  # 0.3, not 0.30000001192092896
            settings = (str(seed.kernel_id), seed.site, seed.blend, alpha)
            chunks.append(GrownChunk(i, *settings, *read, start, stop))
        first, start = last, stop
    return chunks


def _eager(
    layer: SeededLayer, name: str, chunk: GrownChunk, kernels: Mapping[tuple[str, int], nn.Module]
) -> nn.Module:
    where = f"seed {chunk.seed_idx} of layer {name!r} ({chunk.kernel_id})"
    hint = "export with the kernel library that the run was trained with"
    trained = layer.seed(chunk.seed_idx).kernel
    if trained is None or (name, chunk.seed_idx) not in kernels:
        raise RunError(f"cannot export {where}: its blueprint is not at hand", hint=hint)
    eager = copy.deepcopy(kernels[name, chunk.seed_idx])
    weights = {key: value.detach().clone() for key, value in trained.state_dict().items()}
    try:
        eager.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        message = f"cannot export {where}: its weights are not those of its blueprint: {error}"
        raise RunError(message, hint=hint) from error
    for key, parameter in trained.named_parameters():
        eager.get_parameter(key).requires_grad_(parameter.requires_grad)
    alpha = layer.seed(chunk.seed_idx).alpha
    # Buffers that are not saved were still where the blueprint was built.
    return eager if alpha is None else eager.to(alpha.device)
