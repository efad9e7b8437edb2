"""Whether a model can be trusted with a cache: by its kind, then by what it computes."""

import contextlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from flashback.engines.batch import LocalBatch
from flashback.engines.cache.layers import CUTTABLE, States, full_layers, has_hidden_windows
from flashback.engines.kernels.packed import is_quantized
from flashback.errors import UnsupportedReader
from flashback.patterns.prompt import Ids, Prompt

if TYPE_CHECKING:
    from flashback.engines.local import LocalEngine

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of a logit, relative to the largest logit (at least 1), by dtype."""
_LOOSE = 5e-2
"""With other dtypes, and with rounded weights."""
_ROPE_BY_LENGTH = {"dynamic", "longrope"}
"""Rotary positions whose frequencies are those of the furthest token of a pass."""


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
        sequence, shared = engine.lease(Prompt.plain(tuple(ids[:-1])))
        # Several tokens behind the cache, and a single one.
        cached = [
            engine._forward(sequence, new, 1)[-1].clone() for new in (ids[shared:-1], ids[-1:])
        ]
        engine.leases.give_back(sequence)
        expected = _recomputed(engine.model, ids)[-2:]
        _compare_values(engine.model, torch.stack(cached), expected, "logits from a cut-back cache")
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
    sequence, _ = engine.lease(Prompt.plain(tuple(ids[:-6])))
    try:
        engine._forward(sequence, ids[:-6], 1)
        for start, end in ((-6, -5), (-5, -4), (-4, -2), (-2, None)):
            logits = engine._forward(sequence, ids[start:end], 1)[-1]
            _compare(engine.model, ids[:end], logits, "logits of a fixed pass")
        for passage in (tuple(ids[:2]), tuple(ids[2:5])):
            found = engine.encode_passage(passage, len(passage) + 2)
            _compare_states(engine.model, found, _states_alone(engine, passage))
    except torch.OutOfMemoryError:
        raise
    except (UnsupportedReader, TypeError, ValueError, RuntimeError):
        return False
    finally:
        engine.leases.give_up(sequence)
    return True


@torch.inference_mode()
def has_joint_passes(engine: "LocalEngine") -> bool:
    """Whether passages that are encoded with the tokens behind them are as if on their own."""
    room, window = 5, engine.capabilities.window
    passages, (ids, _) = _random_ids(engine.model, 2, room), _random_ids(engine.model, 2, 7)
    if room + len(ids) > window or _rope_types(engine.model) & _ROPE_BY_LENGTH:
        return False
    joint, apart = engine.new_sequence(room), engine.new_sequence(room)
    try:
        for passage, new in ((passages[0][:3], ids[:-1]), (passages[1], ids[-1:])):
            logits = engine.joint_pass(joint, tuple(passage), new)[-1]
            states = engine.encode_passage(tuple(passage), room)
            apart.show(tuple(passage), states)
            expected = engine._forward(apart, new, 1)[-1]
            _compare_values(engine.model, logits, expected, "logits of a joint pass")
            held = [layer.shown for layer in full_layers(joint.cache)]
            _compare_states(engine.model, held, states)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever it is, two passes do without
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
            logits = batch.logits([Prompt.plain(tuple(ids)) for ids in prompts])
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


def _states_alone(engine: "LocalEngine", passage: Ids) -> list[States]:
    positions = torch.arange(2, len(passage) + 2, device=engine.model.device)[None]
    return engine.states_alone(torch.tensor([passage], device=engine.model.device), positions)


def _rope_types(model: PreTrainedModel) -> set[str]:
    """What kinds of rotary positions a model has; some have one for each kind of layer."""
    found = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [found, *(one for one in found.values() if isinstance(one, dict))]
    return {str(one["rope_type"]) for one in kinds if "rope_type" in one}


def _compare_states(
    model: PreTrainedModel, found: Sequence[States], expected: Sequence[States]
) -> None:
    """Refuse the model if a passage's keys and values differ from those of a pass of its own."""
    for pair, other in zip(found, expected, strict=True):
        for states, alone in zip(pair, other, strict=True):
            _compare_values(model, states, alone, "a passage's keys and values")


def _recomputed(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """The logits behind every id, (T, V), without a cache."""
    given = torch.tensor([list(ids)], device=model.device)
    logits: Tensor = model(input_ids=given, use_cache=False).logits[0]
    return logits


def _compare(model: PreTrainedModel, ids: Sequence[int], logits: Tensor, what: str) -> None:
    """Refuse the model if `logits` (V,) are not those behind `ids`."""
    _compare_values(model, logits, _recomputed(model, ids)[-1], what)


def _compare_values(model: PreTrainedModel, found: Tensor, expected: Tensor, what: str) -> None:
    error = float((found.float() - expected.float()).abs().max())
    allowed = _LOOSE if is_quantized(model) else _TOLERANCE.get(model.dtype, _LOOSE)
    if not error <= allowed * max(1.0, float(expected.abs().max())):
        raise UnsupportedReader(
            f"{label(model)} fails the self-check: {what} differ from recomputed ones by "
            f"{error:.2g} (allowed: {allowed:g} relative)"
        )
