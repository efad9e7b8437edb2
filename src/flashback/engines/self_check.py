"""Whether a model can be trusted with a cache: its cached logits are compared with recomputed ones.

Each check runs a few small passes. `support.py` refuses models by their kind before any pass.
"""

import contextlib
import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flashback.engines.batch import LocalBatch
from flashback.engines.cache.budget import Budget
from flashback.engines.cache.layers import full_layers, new_cache
from flashback.engines.cache.passages import PassageCache
from flashback.engines.kernels.linear import is_quantized
from flashback.engines.kernels.single_step import SingleStep, single_steps
from flashback.engines.kernels.states import States
from flashback.engines.passes import Passes
from flashback.engines.reference import recomputed
from flashback.engines.support import label
from flashback.errors import UnsupportedReader
from flashback.patterns.prompt import Ids, Layout, PlacedPassage, Prompt

_LOG = logging.getLogger(__name__)
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of a logit, relative to the largest logit (at least 1), by dtype; from a
float32 pass of the same weights."""
_LOOSE = 5e-2
"""With other dtypes."""
_ROUNDED = 0.3
"""With rounded weights: inputs of several rows are rounded, those of a single one are not."""


def choose_exact(passes: Passes, window: int, *, check: bool, fixed: bool | None) -> None:
    """Leave out the ways of running passes that are not exact with a model.

    Args:
        window: the most positions a sequence may have.
        check: compare cached with recomputed logits; else the plain passes are trusted.
        fixed: whether fixed passes are wanted; None: on CUDA only. Without `check`, True says that
            they are exact.

    Raises:
        UnsupportedReader: not even plain passes are.
    """
    if check:
        passes.step = fastest_step(passes.model)
        _check_last_layer(passes, window)
    wanted = passes.model.device.type == "cuda" if fixed is None else fixed
    if not wanted or passes.fixed is not None or not passes.support.explicit_positions:
        return
    passes.fix()
    known = fixed is True and not check
    if not known and not has_fixed_passes(passes, window):
        passes.fixed = None
    elif check:
        check_cache_reuse(passes, window)  # cuts between fixed passes, too


def _check_last_layer(passes: Passes, window: int) -> None:
    """Check the cache, with the last layer whole if it is not exact when narrowed."""
    try:
        return check_cache_reuse(passes, window)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a narrowed layer may fail in any way; the second check says what is wrong
        passes.leave_last_layer_whole()
    return check_cache_reuse(passes, window)


def fastest_step(model: PreTrainedModel) -> SingleStep | None:
    """The fastest way to compute single tokens that gives the model's own logits; None: its own."""
    found, steps = None, list(single_steps(model))
    if steps:
        ids = _random_ids(model, 2, 5)
        with torch.inference_mode():
            expected = recomputed(model, ids)[:, 3:]
            exact = (step for step in steps if _is_exact(step, model, torch.tensor(ids), expected))
            found = next(exact, None)
    way = "the model itself" if found is None else str(found)
    _LOG.info("%s: single tokens are computed by %s", label(model), way)
    return found


def _is_exact(step: SingleStep, model: PreTrainedModel, ids: Tensor, expected: Tensor) -> bool:
    """Whether steps of one row and of two behind some tokens give the logits of a whole pass.

    Args:
        ids: (2, 5).
        expected: the logits (2, 2, V) behind the last two.
    """
    positions = torch.arange(5).expand(2, 5)
    try:
        for rows in (ids[:1], ids):
            cache, own = new_cache(model), positions[: len(rows)]
            model(input_ids=rows[:, :3], past_key_values=cache, use_cache=True)
            found = [step(rows[:, at, None], own[:, at, None], cache) for at in (3, 4)]
            _compare_values(model, torch.cat(found, 1), expected[: len(rows)], "logits of a step")
    except (UnsupportedReader, AttributeError, TypeError, ValueError, RuntimeError):
        return False
    return True


def check_cache_reuse(passes: Passes, window: int) -> None:
    """Compare cached with recomputed logits, through two successive cuts, the second deeper.

    Raises:
        UnsupportedReader: they differ by more than the dtype's tolerance.
    """
    model, length = passes.model, max(2, min(24, window))
    base, other = _random_ids(model, 2, length)
    texts = [base[:kept] + other[kept:] for kept in (length, 2 * length // 3, length // 3)]
    sequence = passes.new_sequence()
    with passes.running():
        for ids, expected in zip(texts, recomputed(model, texts)[:, -2:], strict=True):
            shared = sequence.common_prefix(Prompt.plain(ids[:-1]))
            if not sequence.reaches(shared):
                sequence, shared = passes.new_sequence(), 0
            sequence.cut(shared)
            # Several tokens behind the cache, and a single one.
            cached = [
                passes.extend(sequence, new)[-1].clone() for new in (ids[shared:-1], ids[-1:])
            ]
            _compare_values(model, torch.stack(cached), expected, "logits from a cut-back cache")


def has_fixed_passes(passes: Passes, window: int) -> bool:
    """Whether fixed passes compute what recomputing does, first run and replayed.

    Of one token, of several, and of a passage alone.
    """
    (ids,) = _random_ids(passes.model, 1, max(9, min(24, window)))
    if len(ids) > window:
        return False
    try:
        with passes.running():
            _check_fixed_passes(passes, ids)
    except torch.OutOfMemoryError:
        raise
    except (UnsupportedReader, TypeError, ValueError, RuntimeError):
        return False
    return True


def _check_fixed_passes(passes: Passes, ids: Sequence[int]) -> None:
    sequence, expected = passes.new_sequence(), recomputed(passes.model, [ids])[0]
    passes.extend(sequence, ids[:-6])
    for start, end in ((6, 5), (5, 4), (4, 2), (2, 0)):  # from the end
        logits = passes.extend(sequence, ids[len(ids) - start : len(ids) - end])[-1]
        behind = expected[-1 - end]
        _compare_values(passes.model, logits, behind, "logits of a fixed pass")
    for passage in (tuple(ids[:2]), tuple(ids[2:5])):
        found = passes.prefill_passage(PlacedPassage(passage, len(passage) + 2))
        _compare_states(passes.model, found, _prefilled_alone(passes, passage))


def has_joint_passes(passes: Passes, window: int) -> bool:
    """Whether passages in a pass with the tokens behind them are as if prefilled on their own."""
    reserved = 5
    passages, (ids, _) = (_random_ids(passes.model, 2, length) for length in (reserved, 7))
    if reserved + len(ids) > window or passes.support.positions_by_length:
        return False
    try:
        with passes.running():
            _check_joint_passes(passes, passages, ids, reserved)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever it is, two passes do without
        return False
    return True


def _check_joint_passes(
    passes: Passes, passages: Sequence[Sequence[int]], ids: Sequence[int], reserved: int
) -> None:
    model = passes.model
    joint, apart = passes.new_sequence(), passes.new_sequence()
    for one in (joint, apart):
        one.lay_out(Layout(2, reserved, tuple(ids[:1])))
        passes.extend(one, ids[:2])
    for given, new in ((passages[0][:3], ids[2:-1]), (passages[1], ids[-1:])):
        passage = joint.placed(tuple(given))
        logits = passes.extend_with_passage(joint, passage, new)[-1]
        states = passes.prefill_passage(passage)
        apart.show(passage.ids, states)
        expected = passes.extend(apart, new)[-1]
        _compare_values(model, logits, expected, "logits of a joint pass")
        held = [layer.shown for layer in full_layers(joint.cache)]
        _compare_states(model, held, states)


def has_fixed_batches(passes: Passes, window: int) -> bool:
    """Whether batches compute what recomputing does by fixed passes, too.

    Raises:
        UnsupportedReader: they do not even without.
    """
    if passes.fixed is not None:
        with contextlib.suppress(UnsupportedReader):
            _check_batch(passes, window, fixed=True)
            return True
    _check_batch(passes, window, fixed=False)
    return False


def _check_batch(passes: Passes, window: int, *, fixed: bool) -> None:
    """Compare rows of different lengths with recomputed logits, then cut them unequally.

    Raises:
        UnsupportedReader: they differ by more than the dtype's tolerance, or cannot be computed.
    """
    if passes.support.windows_in_columns:
        raise UnsupportedReader(
            f"{label(passes.model)} measures its local window in columns of the cache, which rows "
            "of different lengths do not share"
        )
    length = max(4, min(24, window))
    batch = LocalBatch(passes, PassageCache(Budget(0)), 2, fixed=fixed)
    half = length // 2
    # New rows, then fixed passes that run, are recorded and replayed; then one token of each.
    lengths = [(length, half), (half + 1, length), (length, half + 1), (half + 1, length)]
    lengths += [(length - 1, half), (length, half + 1), (length - 1, half), (length, half + 1)]
    texts = _random_ids(passes.model, 2, length)
    with passes.running():
        behind = recomputed(passes.model, texts)
    for pair in lengths if fixed else lengths[:2]:
        prompts = [ids[:size] for ids, size in zip(texts, pair, strict=True)]
        with passes.running():
            for row, size, logits in zip(_batched(batch, prompts), pair, behind, strict=True):
                expected = logits[size - 1]
                _compare_values(passes.model, row, expected, "logits of a row in a batch")


def _batched(batch: LocalBatch, prompts: Sequence[Sequence[int]]) -> Tensor:
    """The logits behind each prompt, (A, V)."""
    try:
        return batch.logits([Prompt.plain(ids) for ids in prompts])
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedReader(
            f"{label(batch.passes.model)} cannot compute rows of different lengths together"
        ) from error


def _random_ids(model: PreTrainedModel, rows: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    ids: list[list[int]] = torch.randint(size, (rows, length), generator=generator).tolist()
    return ids


def _prefilled_alone(passes: Passes, passage: Ids) -> list[States]:
    """Keys and values of a passage from position 2 on, by a plain pass."""
    device = passes.model.device
    positions = torch.arange(2, len(passage) + 2, device=device)[None]
    return passes.prefill_alone(torch.tensor([passage], device=device), positions)


def _compare_states(
    model: PreTrainedModel, found: Sequence[States], expected: Sequence[States]
) -> None:
    """Refuse the model if a passage's keys and values differ from those of a pass of its own."""
    for pair, other in zip(found, expected, strict=True):
        for states, alone in zip(pair, other, strict=True):
            _compare_values(model, states, alone, "a passage's keys and values")


def _compare_values(model: PreTrainedModel, found: Tensor, expected: Tensor, what: str) -> None:
    error = float((found.float() - expected.float()).abs().max())
    allowed = _ROUNDED if is_quantized(model) else _TOLERANCE.get(model.dtype, _LOOSE)
    if not error <= allowed * max(1.0, float(expected.abs().max())):
        raise UnsupportedReader(
            f"{label(model)} fails the self-check: {what} differ from recomputed ones by "
            f"{error:.2g} (allowed: {allowed:g} relative)"
        )
