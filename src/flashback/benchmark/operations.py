"""Multiplications and additions of the products in a computation, counted as it runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def operations_of(work: Callable[[], object]) -> int:
    """Those of all products, those of a backward pass in it included.

    The products of masked attention count as a whole, for kernels compute them.
    """
    with FlopCounterMode(display=False, custom_mapping=_COUNTED_ON_CPU) as counter:
        work()
    return int(counter.get_total_flops())


def _attention_products(query: torch.Size, key: torch.Size, products: int) -> int:
    batch, heads, positions, size = query
    return products * 2 * batch * heads * positions * key[2] * size


def _attention(query: torch.Size, key: torch.Size, *_: Any, **__: Any) -> int:
    return _attention_products(query, key, 2)  # of queries and keys, of weights and values


def _attention_backward(_: Any, query: torch.Size, key: torch.Size, *__: Any, **___: Any) -> int:
    return _attention_products(query, key, 4)  # of each of the two, both gradients


_COUNTED_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""What PyTorch's counter does not know."""
