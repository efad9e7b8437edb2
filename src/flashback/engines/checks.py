"""Whether a model can be trusted with a cache: by its kind, then by what it computes."""

import contextlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from flashback.arrangement import Ids, Prompt
from flashback.engines.batch import LocalBatch
from flashback.engines.cache import CUTTABLE, has_hidden_windows
from flashback.engines.packed import is_quantized
from flashback.errors import UnsupportedReader

if TYPE_CHECKING:
    from flashback.engines.local import LocalEngine

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of a logit, relative to the largest logit (at least 1), by dtype."""
_LOOSE = 5e-2
"""With other dtypes, and with rounded weights."""


def refuse_uncuttable(model: PreTrainedModel) -> None:
    """Refuse, before running it, a model whose layers keep a state that cannot be cut back.

    Raises:
        UnsupportedReader: naming the layer type.
    """
    config = model.config.get_text_config()
    name = label(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedReader(f"{name} is an encoder-decoder; expected a decoder-only model")
    parameters = inspect.signature(model.forward).parameters
    if "past_key_values" not in parameters:
        raise UnsupportedReader(
            f"{name} keeps no key-value cache (a recurrent state cannot be cut back to a prefix); "
            "expected an attention-only model"
        )
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        raise UnsupportedReader(f"{name} has chunked-attention layers, which are not verified")
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) not in CUTTABLE:
            raise UnsupportedReader(
                f"{name} has layers of type {type(layer).__name__}, whose state cannot be cut back "
                "to a prefix; expected full or sliding-window attention only"
            )


def label(model: PreTrainedModel) -> str:
    kind = model.config.model_type
    return f"model {model.name_or_path} ({kind})" if model.name_or_path else f"model {kind}"


@torch.inference_mode()
def check_cache_reuse(engine: "LocalEngine") -> None:
    """Compare cached with recomputed logits, through two successive cuts, the second deeper.

    Raises:
        UnsupportedReader: they differ by more than the dtype's tolerance.
    """
    length = max(2, min(24, engine.capabilities.window))
    base, other = _random_ids(engine.model, 2, length)
    for kept in (length, 2 * length // 3, length // 3):
        ids = base[:kept] + other[kept:]
        sequence, shared = engine._lease(Prompt(tuple(ids[:-1])))
        engine._forward(sequence, ids[shared:-1], 1)  # several tokens behind the cache,
        cached = engine._forward(sequence, ids[-1:], 1)[-1]  # and a single one
        engine._release(sequence)
        _compare(engine.model, ids, cached, "logits from a cut-back cache")
    engine.forget()


@torch.inference_mode()
def has_fixed_passes(engine: "LocalEngine") -> bool:
    """Whether an engine's fixed passes compute what recomputing does, first run and replayed.

    Of one token, of several, and of a passage alone.
    """
    window = engine.capabilities.window
    (ids,) = _random_ids(engine.model, 1, max(9, min(24, window)))
    if len(ids) > window:
        return False
    sequence, _ = engine._lease(Prompt(tuple(ids[:-6])))
    try:
        engine._forward(sequence, ids[:-6], 1)
        for start, end in ((-6, -5), (-5, -4), (-4, -2), (-2, None)):
            logits = engine._forward(sequence, ids[start:end], 1)[-1]
            _compare(engine.model, ids[:end], logits, "logits of a fixed pass")
        for passage in (ids[:2], ids[2:5]):
            _compare_states(engine, tuple(passage))
    except torch.OutOfMemoryError:
        raise
    except (UnsupportedReader, TypeError, ValueError, RuntimeError):
        return False
    finally:
        engine._end_lease(sequence)
    return True


@torch.inference_mode()
def has_joint_passes(engine: "LocalEngine") -> bool:
    """Whether passages that are encoded with the tokens behind them are as if on their own."""
    passages = ((1, 2, 3), (4, 5, 6, 7, 8))
    room, window = len(passages[1]), engine.capabilities.window
    (ids,) = _random_ids(engine.model, 1, 7)
    if engine.model.config._attn_implementation != "sdpa" or room + len(ids) > window:
        return False
    joint, apart = engine.new_sequence(room), engine.new_sequence(room)
    try:
        for passage, new in zip(passages, (ids[:-1], ids[-1:]), strict=True):
            logits = engine.joint_pass(joint, passage, new)[-1]
            apart.show(passage, engine.encode_passage(passage, room))
            expected = engine._forward(apart, new, 1)[-1]
            _compare_values(engine.model, logits, expected, "logits of a joint pass")
    except torch.OutOfMemoryError:
        raise
    except (UnsupportedReader, TypeError, ValueError, RuntimeError):
        return False
    return True


def has_fixed_batches(engine: "LocalEngine") -> bool:
    """Whether batches compute what recomputing does by fixed passes, too.

    Raises:
        UnsupportedReader: they do not even without.
    """
    if engine.fixed is not None:
        with contextlib.suppress(UnsupportedReader):
            _check_batch(engine, fixed=True)
            return True
    _check_batch(engine, fixed=False)
    return False


@torch.inference_mode()
def _check_batch(engine: "LocalEngine", *, fixed: bool) -> None:
    """Compare rows of different lengths with recomputed logits, then cut them unequally.

    Raises:
        UnsupportedReader: they differ by more than the dtype's tolerance, or cannot be had.
    """
    if has_hidden_windows(engine.model):
        raise UnsupportedReader(
            f"{label(engine.model)} measures its local window in columns of the cache, which rows "
            "of different lengths do not share"
        )
    length = max(4, min(24, engine.capabilities.window))
    batch = LocalBatch(engine, 2, fixed=fixed)
    half = length // 2
    # New rows, then fixed passes that run, are recorded and replayed; then one token of each.
    lengths = [(length, half), (half + 1, length), (length, half + 1), (half + 1, length)]
    lengths += [(length - 1, half), (length, half + 1), (length - 1, half), (length, half + 1)]
    long, short = _random_ids(engine.model, 2, length)
    for first, second in lengths if fixed else lengths[:2]:
        prompts = (long[:first], short[:second])
        try:
            logits = batch.logits([Prompt(tuple(ids)) for ids in prompts])
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise UnsupportedReader(
                f"{label(engine.model)} cannot compute rows of different lengths together"
            ) from error
        for ids, row in zip(prompts, logits, strict=True):
            _compare(engine.model, ids, row, "logits of a row in a batch")


def _random_ids(model: PreTrainedModel, rows: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    ids: list[list[int]] = torch.randint(size, (rows, length), generator=generator).tolist()
    return ids


def _compare_states(engine: "LocalEngine", passage: Ids) -> None:
    """Refuse the model if a passage's keys and values differ from those of a pass of its own."""
    room = len(passage) + 2
    positions = torch.arange(2, room, device=engine.model.device)[None]
    ids = torch.tensor([passage], device=engine.model.device)
    expected = engine.states_alone(ids, positions)
    for pair, other in zip(engine.encode_passage(passage, room), expected, strict=True):
        for states, alone in zip(pair, other, strict=True):
            _compare_values(engine.model, states, alone, "a passage's keys and values")


def _compare(model: PreTrainedModel, ids: Sequence[int], logits: Tensor, what: str) -> None:
    """Refuse the model if `logits` (V,) are not those behind `ids`."""
    recomputed = model(
        input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False
    ).logits[0, -1]
    _compare_values(model, logits, recomputed, what)


def _compare_values(model: PreTrainedModel, found: Tensor, expected: Tensor, what: str) -> None:
    error = float((found.float() - expected.float()).abs().max())
    allowed = _LOOSE if is_quantized(model) else _TOLERANCE.get(model.dtype, _LOOSE)
    if not error <= allowed * max(1.0, float(expected.abs().max())):
        raise UnsupportedReader(
            f"{label(model)} fails the self-check: {what} differ from recomputed ones by "
            f"{error:.2g} (allowed: {allowed:g} relative)"
        )
