"""The table of model families says what transformers' models do."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from families import BY_COLUMN, ENGINE_FAMILIES, SLIDING, SLOTTED, tiny_model
from flashback.engines.kernels.padding import mask_of, place_tokens
from flashback.engines.kernels.window_masks import column_positions
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import BatchingEngine, CachingEngine, Usage
from flashback.engines.support import key_value_heads, support_of
from flashback.patterns.prompt import Layout
from tiny_readers import tiny_reader

ALIBI = ("bloom", "mpt")


@pytest.mark.parametrize("family", [*ENGINE_FAMILIES, *BY_COLUMN])
def test_the_properties_of_every_family(family: str) -> None:
    found = support_of(tiny_model(family))
    full = family not in (*SLIDING, "gpt_neo")
    assert found.full_attention_only == full
    assert found.reserved_positions == (family in (*SLOTTED, "mpt"))
    assert found.window == (24 if family in SLIDING and family != "mistral" else None)
    assert found.takes_positions == (family not in ALIBI)
    assert found.alibi == (family in ALIBI)
    assert found.explicit_positions == (full and family not in ALIBI)
    assert found.skips_hidden_columns == (full and family != "mpt")
    assert found.windows_in_columns == (family == "gpt_neo")
    assert found.takes_logits_to_keep
    assert found.every_layer_caches
    assert not found.positions_by_length


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_positions_that_depend_on_the_length(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    model = tiny_model("llama", rope_parameters=rope)
    assert support_of(model).positions_by_length == (kind == "dynamic")


def test_heads_that_share_keys() -> None:
    assert key_value_heads(tiny_model("llama").config) == 2
    assert key_value_heads(tiny_model("opt").config) == 4
    assert key_value_heads(tiny_model("falcon").config) == 1  # multi-query


def test_padding_goes_behind_the_new_tokens_and_is_seen_by_none_of_them() -> None:
    start, padding, shift = (torch.tensor(one) for one in ([[7], [2]], [[0], [2]], [[0], [-2]]))
    columns, positions = place_tokens(start, padding, shift, torch.arange(3))
    assert columns.tolist() == [[7, 8, 9], [3, 4, 2]]
    assert positions.tolist() == [[7, 8, 9], [0, 0, 0]]
    mask = mask_of(columns, torch.tensor([[5], [0]]), torch.arange(10), torch.float32)
    seen = [[sorted(row.eq(0).nonzero()[:, 0].tolist()) for row in rows[0]] for rows in mask]
    assert seen[0] == [[5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 8, 9]]
    assert seen[1][-1] == [0, 1, 2]
    narrow = mask_of(columns, torch.tensor([[5], [0]]), torch.arange(10), torch.float32, window=2)
    assert narrow[0, 0, -1].eq(0).nonzero()[:, 0].tolist() == [8, 9]


@given(
    history=st.integers(0, 20),
    reserved=st.integers(0, 20),
    room=st.integers(0, 30),
    tokens=st.integers(0, 40),
)
def test_columns_stand_where_their_tokens_do(
    history: int, reserved: int, room: int, tokens: int
) -> None:
    layout = Layout(history, reserved)
    passage = range(layout.passage_end - room, layout.passage_end)
    text = [layout.position(token) for token in range(tokens)]
    found = column_positions(room, tokens, history, reserved, torch.device("cpu"))
    assert found.tolist() == [*passage, *text]


def test_a_local_engine_batches_and_says_what_it_caches() -> None:
    engine = LocalEngine(tiny_model("llama"), window=100)
    assert isinstance(engine, BatchingEngine)
    assert isinstance(engine, CachingEngine)


@pytest.mark.parametrize(
    ("family", "change", "reason"),
    [
        ("llama", {}, None),
        ("llama", {"takes_positions": False}, "takes no positions"),
        ("llama", {"takes_positions": False, "alibi": True}, None),
        ("llama", {"every_layer_caches": False}, None),
        ("mistral", {}, "in all layers"),
        ("gpt_neo", {}, "in columns of its cache"),
        ("gemma2", {}, None),
        ("gemma2", {"every_layer_caches": False}, "has layers that share keys and values"),
        ("gemma2", {"takes_positions": False, "alibi": True}, "takes no positions"),
    ],
)
def test_why_there_is_no_slot(family: str, change: dict[str, bool], reason: str | None) -> None:
    found = replace(support_of(tiny_model(family)), **change)
    assert found.reserved_positions == (found.without_slot is None) == (reason is None)
    assert (reason or "") in (found.without_slot or "")


def test_the_former_names_of_caches_and_patterns_warn() -> None:
    reader = tiny_reader("llama")
    with pytest.warns(DeprecationWarning, match="cache_use"):
        assert LocalEngine(reader.model, 100, self_check=False).held == (0, 0)
    for family, expected in (("llama", True), ("mistral", False)):
        with pytest.warns(DeprecationWarning, match=r"can_have\("):
            assert tiny_reader(family).can_have_slot is expected


def test_the_former_names_of_counts_warn() -> None:
    usage = Usage(prefilled=3, prefill_seconds=0.5)
    with pytest.warns(DeprecationWarning, match=r"Usage\.prefilled"):
        assert usage.encoded == 3
    with pytest.warns(DeprecationWarning, match=r"Usage\.prefill_seconds"):
        assert usage.encode_seconds == 0.5
