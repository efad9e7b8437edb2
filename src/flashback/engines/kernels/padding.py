"""Rows with different numbers of new tokens in one pass: where their tokens go, and what they see.

Symbols: A rows of the pass, T tokens of each, padding included, K columns.

Rows are left-padded to T, so that the last token of every row gives its logits. Padding is written
to the columns right behind a row's new tokens, where no token sees it and the next pass overwrites
it.
"""

import torch
from torch import Tensor


def place_tokens(
    start: Tensor, padding: Tensor, shift: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Columns and positions of the tokens of a pass, (A, T) each.

    Padding has the position of the row's last token, since those behind it may be outside of the
    model's window.

    Args:
        start: the column of each row's first new token, (A, 1).
        padding: how many tokens of each row are padding, (A, 1).
        shift: the position of each row's first new token less its column, (A, 1).
        tokens: 0, 1, ..., T - 1, (T,); on the device of the others.
    """
    count = len(tokens)
    columns = start + (tokens - padding).remainder(count)
    last = start + count - padding - 1
    return columns, (torch.minimum(columns, last) + shift).clamp_min(0)


def mask_of(
    columns: Tensor,
    first: Tensor,
    keys: Tensor,
    dtype: torch.dtype,
    window: int | None = None,
    positions: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """A mask to be added to attention scores, (A, 1, T, K): 0 where seen, else the least number.

    Args:
        columns: of the tokens, (A, T).
        first: the first column in each row's view, (A, 1).
        keys: 0, 1, ..., K - 1, (K,).
        dtype: of the mask; the model's.
        window: how many positions a token sees, its own included; None: all up to its own.
        positions: of the tokens (A, T) and of the columns (A, K), where they are not columns.
    """
    queries = columns[..., None]
    seen = (keys <= queries) & (keys >= first[..., None])
    if window is not None:
        at, held = (columns, keys[None]) if positions is None else positions
        seen &= held[:, None] > at[..., None] - window
    never = torch.finfo(dtype).min
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, never)[:, None]
