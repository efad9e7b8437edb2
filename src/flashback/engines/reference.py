"""Logits in float32 of a model in half precision: what its passes are judged against.

Two passes in bfloat16 differ by the rounding of both; a float32 pass of the same weights has none.
Weights are cast module by module, so it needs the memory of the largest one.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flashback.engines.kernels.linear import JoinedLinear, LaidOutLinear

_HALF = (torch.bfloat16, torch.float16)


def recomputed(model: PreTrainedModel, ids: Sequence[Sequence[int]]) -> Tensor:
    """The logits (B, T, V) behind every id (B, T), without a cache; in float32 where it is less."""
    given = torch.tensor([list(row) for row in ids], device=model.device)
    with in_float32(model) if model.dtype in _HALF else contextlib.nullcontext():
        logits: Tensor = model(input_ids=given, use_cache=False).logits
    return logits


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Run a model in half precision in float32, with the same weights.

    No other thread may run it meanwhile.
    """
    with contextlib.ExitStack() as undo:
        for module in model.modules():
            if isinstance(module, LaidOutLinear | JoinedLinear):
                module.forward = partial(_product, module)  # type: ignore[method-assign]
                undo.callback(module.__dict__.pop, "forward")
            elif any(True for _ in _values(module)):
                cast = _Cast(module)
                undo.callback(cast.give_back)
                undo.callback(module.register_forward_pre_hook(cast.take).remove)
                after = module.register_forward_hook(cast.give_back, always_call=True)
                undo.callback(after.remove)
        yield


def _values(module: nn.Module) -> Iterator[Tensor]:
    """A module's own weights and buffers in half precision."""
    for one in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if one.dtype in _HALF:
            yield one


class _Cast:
    """The weights of one module, in float32 while it runs."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._held: list[Callable[[], None]] = []

    def take(self, *_: Any) -> None:
        for one in _values(self._module):
            self._held.append(partial(setattr, one, "data", one.data))
            one.data = one.data.float()

    def give_back(self, *_: Any) -> None:
        while self._held:
            self._held.pop()()


def _product(module: LaidOutLinear | JoinedLinear, x: Tensor) -> Tensor:
    bias = None if module.bias is None else module.bias.float()
    return nn.functional.linear(x.float(), module.weight.float(), bias)
