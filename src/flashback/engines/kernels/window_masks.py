"""Masks where some layers see a sliding window, and a passage stands at reserved positions.

A window is measured in positions, as it would be if the passage were part of the text: a token
sees what is fewer than W positions before it. Columns do not tell positions here, so such passes
bring masks of their own.

Symbols: T new tokens, K columns, W sliding window, h history tokens, R reserved positions.
"""

import torch
from torch import Tensor

KINDS = ("sliding_attention", "full_attention")
"""Transformers' names of layers."""


def column_positions(
    room: int, tokens: int, history: int, reserved: int, device: torch.device
) -> Tensor:
    """The positions of a sequence's columns, (room + tokens,).

    Args:
        room: columns before the text; a passage in them ends at position h + R.
        tokens: of the text.
        history: h.
        reserved: R.
    """
    token = torch.arange(-room, tokens, device=device)
    token[room + history :] += reserved
    token[:room] += history + reserved
    return token


def masks_by_kind(
    new: Tensor, full: Tensor, windowed: Tensor, window: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Masks to be added to attention scores, (1, 1, T, K) by kind of layer.

    Args:
        new: positions of the new tokens, (T,); they are the last of the columns.
        full, windowed: positions of the columns that layers of each kind hold, (K,).
        window: W.
        dtype: of the masks; the model's.
    """
    return {
        kind: _mask(new, keys, width, dtype)
        for kind, keys, width in zip(KINDS, (windowed, full), (window, None), strict=True)
    }


def _mask(new: Tensor, keys: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    seen = torch.ones(len(new), len(keys), dtype=torch.bool, device=keys.device)
    seen = seen.tril(len(keys) - len(new))
    if window is not None:
        seen &= new[:, None] - keys < window
    never = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=keys.device).masked_fill_(~seen, never)[
        None, None
    ]
