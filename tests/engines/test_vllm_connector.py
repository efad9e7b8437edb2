"""The connector's orders and copies, without vLLM; `make peers-vllm` runs it in a real one."""

import importlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

BLOCK, BLOCKS, LAYERS = 4, 32, 2
BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"
NAME = "flashback.engines.vllm_connector"


class Base:
    """As much of vLLM's base class as a connector uses."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        self._kv_transfer_config = vllm_config.kv_transfer_config
        self._kv_cache_manager: Any = None
        self._connector_metadata: Any = None

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        self._connector_metadata = connector_metadata

    def _get_connector_metadata(self) -> Any:
        return self._connector_metadata


@dataclass
class FullAttentionSpec:
    page_size_bytes: int = 100


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The connector's module, beside a stand-in for vLLM."""
    base = ModuleType(BASE)
    vars(base).update(KVConnectorBase_V1=Base, KVConnectorMetadata=type("Metadata", (), {}))
    logger = ModuleType("vllm.logger")
    vars(logger).update(init_logger=logging.getLogger)
    interface = ModuleType("vllm.v1.kv_cache_interface")
    vars(interface).update(FullAttentionSpec=FullAttentionSpec)
    parts = BASE.split(".")
    for end in range(1, len(parts)):
        name = ".".join(parts[:end])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, BASE, base)
    monkeypatch.setitem(sys.modules, "vllm.logger", logger)
    monkeypatch.setitem(sys.modules, "vllm.v1", ModuleType("vllm.v1"))
    monkeypatch.setitem(sys.modules, "vllm.v1.kv_cache_interface", interface)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


@dataclass
class Request:
    request_id: str
    ids: list[int]
    wanted: Any = None
    cache_salt: str | None = None
    num_computed_tokens: int = 0
    lora_request: Any = None

    @property
    def kv_transfer_params(self) -> dict[str, Any] | None:
        return None if self.wanted is None else {"flashback": self.wanted}

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def all_token_ids(self) -> list[int]:
        return self.ids

    @property
    def block_hashes(self) -> list[tuple[object, ...]]:
        ends = range(BLOCK, len(self.ids) + 1, BLOCK)
        return [(self.cache_salt, *self.ids[:end]) for end in ends]


@dataclass
class Pool:
    """vLLM's block pool: blocks by hash, of which several may be equal."""

    cached: dict[tuple[object, ...], list[int]] = field(default_factory=dict)

    def get_cached_block(self, name: tuple[object, ...], groups: list[int]) -> Any:
        assert groups == [0]
        blocks = self.cached.get(name)
        return [SimpleNamespace(block_id=blocks[0])] if blocks else None

    def evict_blocks(self, blocks: set[int]) -> None:
        for found in self.cached.values():
            found[:] = [one for one in found if one not in blocks]


@dataclass
class Both:
    """A connector on both sides, and a cache."""

    module: Any
    passage_blocks: int = 4
    pool: Pool = field(default_factory=Pool)
    caches: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        for layer in range(LAYERS):
            self.caches[f"layer{layer}"] = torch.randn(BLOCKS, 2, BLOCK, 3, generator=generator)
        self.blocks: dict[str, list[int]] = {}
        manager = SimpleNamespace(
            block_pool=self.pool, get_block_ids=lambda name: (self.blocks[name],)
        )
        self.scheduler, self.worker = self.connector(), self.connector()
        self.scheduler._kv_cache_manager = manager
        self.worker.register_kv_caches(self.caches)

    def connector(
        self,
        specs: tuple[Any, ...] = (FullAttentionSpec(),),
        policy: str = "fail",
        engines: int = 1,
        prefixes: bool = True,
    ) -> Any:
        room = 100 * LAYERS * self.passage_blocks
        layers = ["a"] * LAYERS
        groups = [SimpleNamespace(kv_cache_spec=spec, layer_names=layers) for spec in specs]
        transfer = SimpleNamespace(
            get_from_extra_config=lambda _name, _default: room, kv_load_failure_policy=policy
        )
        config = SimpleNamespace(
            cache_config=SimpleNamespace(block_size=BLOCK, enable_prefix_caching=prefixes),
            kv_transfer_config=transfer,
            parallel_config=SimpleNamespace(data_parallel_size=engines),
        )
        caches = SimpleNamespace(kv_cache_groups=groups, num_blocks=BLOCKS)
        return self.module.FlashBackConnector(config, None, caches)

    def step(self, request: Request, blocks: list[int], cached: int = 0) -> tuple[int, set[int]]:
        """One pass over a whole new request: tokens said to be loaded, blocks said to be bad."""
        self.blocks[request.request_id] = blocks
        self.scheduler.on_new_request(request)
        loaded, later = self.scheduler.get_num_new_matched_tokens(request, cached)
        assert not later
        allocated = SimpleNamespace(get_block_ids=lambda: (blocks,))
        self.scheduler.update_state_after_alloc(request, allocated, loaded)
        request.num_computed_tokens = cached + loaded
        scheduled = {request.request_id: request.num_tokens - request.num_computed_tokens}
        output = SimpleNamespace(num_scheduled_tokens=scheduled)
        self.worker.bind_connector_metadata(self.scheduler.build_connector_meta(output))
        self.worker.wait_for_save()
        return loaded, self.worker.get_block_ids_with_load_errors()


PASSAGE = list(range(10, 18))


def test_a_kept_passage_is_written_into_the_first_blocks(module: Any) -> None:
    both = Both(module)
    both.step(Request("p", PASSAGE, {"keep": 8}), [3, 5])
    expected = [cache[[3, 5]].clone() for cache in both.caches.values()]
    for cache in both.caches.values():
        cache[[3, 5]] = 0.0  # vLLM has given the blocks to another request
    text = Request("t", [0] * 8 + [1, 2, 3], {"show": PASSAGE})
    assert both.step(text, [7, 9, 11]) == (8, set())
    for cache, kept in zip(both.caches.values(), expected, strict=True):
        assert torch.equal(cache[[7, 9]], kept)


def test_blocks_that_vllm_has_are_overwritten_and_no_tokens_loaded(module: Any) -> None:
    both = Both(module)
    both.step(Request("p", PASSAGE, {"keep": 8}), [3, 5])
    text = Request("t", [0] * 8 + [1, 2, 3, 4, 5], {"show": PASSAGE, "needed": 12})
    before = both.caches["layer0"][11].clone()
    assert both.step(text, [7, 9, 11, 12], cached=12) == (0, set())
    assert torch.equal(both.caches["layer0"][[7, 9]], both.caches["layer0"][[3, 5]])
    assert torch.equal(both.caches["layer0"][11], before)


def test_what_is_not_kept_or_not_cached_fails_the_request(module: Any) -> None:
    both = Both(module)
    text = Request("t", [0] * 8 + [1], {"show": PASSAGE})
    assert both.step(text, [7, 9, 11]) == (8, {7})
    both.step(Request("p", PASSAGE, {"keep": 8}), [3, 5])
    text = Request("t", [0] * 8 + [1] * 9, {"show": PASSAGE, "needed": 16})
    assert both.step(text, [7, 9, 11, 12, 13], cached=12) == (0, {7})
    other = Request("t", [0] * 8 + [1], {"show": PASSAGE, "salt": "another"})
    assert both.step(other, [7, 9, 11]) == (8, {7})
    assert both.step(Request("n", [1, 2, 3]), [20]) == (0, set())


def test_passages_that_were_used_longest_ago_go_first(module: Any) -> None:
    both = Both(module)  # room for two
    passages = [[number] * 8 for number in (1, 2, 3)]
    both.step(Request("a", passages[0], {"keep": 8}), [0, 1])
    both.step(Request("b", passages[1], {"keep": 8}), [2, 3])
    both.step(Request("t", [0] * 9, {"show": passages[0]}), [8, 9, 10])
    both.step(Request("c", passages[2], {"keep": 8}), [4, 5])
    assert len(both.worker._passages) == 2
    bad = [both.step(Request("t", [0] * 9, {"show": one}), [8, 9, 10])[1] for one in passages]
    assert bad == [set(), {8}, set()]


def test_a_passage_larger_than_all_the_room_is_told(
    module: Any, caplog: pytest.LogCaptureFixture
) -> None:
    both = Both(module, passage_blocks=1)
    both.step(Request("p", PASSAGE, {"keep": 8}), [3, 5])
    assert "no room for a passage of 2 blocks (passage_bytes)" in caplog.text
    assert both.worker._passages == {}


def test_a_passage_is_kept_once_it_is_whole(module: Any) -> None:
    both = Both(module)
    request = Request("p", PASSAGE, {"keep": 8})
    both.blocks["p"] = [3, 5]
    both.scheduler.on_new_request(request)
    both.scheduler.get_num_new_matched_tokens(request, 0)
    first = SimpleNamespace(get_block_ids=lambda: ([3],))
    both.scheduler.update_state_after_alloc(request, first, 0)
    for computed in (0, 4):
        request.num_computed_tokens = computed
        output = SimpleNamespace(num_scheduled_tokens={"p": 4})
        orders = both.scheduler.build_connector_meta(output)
        assert len(orders.keep) == (computed == 4)
    assert orders.keep[0].blocks == (3, 5)


def test_blocks_behind_the_valid_tokens_are_forgotten_all_of_them(module: Any) -> None:
    both = Both(module)
    text = Request("t", [0] * 8 + [1] * 8, {"show": PASSAGE, "valid": 12}, cache_salt="s")
    names = text.block_hashes
    both.pool.cached = {name: [at, at + 16] for at, name in enumerate(names)}
    both.scheduler.on_new_request(text)
    assert [len(both.pool.cached[name]) for name in names] == [2, 2, 2, 0]
    plain = Request("n", text.ids, cache_salt="s")
    both.scheduler.on_new_request(plain)
    assert [len(both.pool.cached[name]) for name in names] == [2, 2, 2, 0]


@pytest.mark.parametrize(
    "wanted",
    [
        "show",
        {"shown": []},
        {"show": "text"},
        {"show": [1, 2]},
        {"show": 5},
        {"keep": 400},
        {"keep": True},
        {"keep": -4},
        {"valid": -1},
        {"salt": 1},
        {"show": [1] * 400},
    ],
)
def test_what_is_not_understood_fails_and_is_told(
    module: Any, wanted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    both = Both(module)
    request = Request("t", [0] * 9, wanted)
    assert both.step(request, [7, 9, 11]) == (4, {7})
    assert "flashback" in caplog.text
    later, told = both.scheduler.request_finished(request, [7, 9, 11])
    assert not later
    assert told["flashback"]["error"]


def test_who_asks_is_told_what_there_is(module: Any) -> None:
    both = Both(module)
    asked, plain = Request("t", [0] * 9, {}), Request("u", [0] * 9)
    told = {"flashback": {"block": BLOCK, "passages": 4}}
    assert both.scheduler.request_finished(asked, []) == (False, told)
    assert both.scheduler.request_finished(plain, []) == (False, None)


def test_an_adapters_passages_are_its_own(module: Any) -> None:
    both = Both(module)
    adapter = SimpleNamespace(lora_name="adapter")
    both.step(Request("p", PASSAGE, {"keep": 8}, lora_request=adapter), [3, 5])
    plain = Request("t", [0] * 9, {"show": PASSAGE})
    assert both.step(plain, [7, 9, 11])[1] == {7}
    assert both.step(replace(plain, lora_request=adapter), [7, 9, 11])[1] == set()


def test_a_passage_that_goes_in_the_step_that_keeps_it_is_not_kept(module: Any) -> None:
    both = Both(module, passage_blocks=2)
    for name in ("a", "b"):
        both.blocks[name] = [2, 3]
        request = Request(name, [ord(name)] * 8, {"keep": 8})
        both.scheduler.get_num_new_matched_tokens(request, 0)
        allocated = SimpleNamespace(get_block_ids=lambda: ([2, 3],))
        both.scheduler.update_state_after_alloc(request, allocated, 0)
    output = SimpleNamespace(num_scheduled_tokens={"a": 8, "b": 8})
    orders = both.scheduler.build_connector_meta(output)
    assert len(orders.keep) == len(orders.drop) == 1


def test_a_server_that_cannot_have_a_slot_is_refused_in_one_line(module: Any) -> None:
    both = Both(module)
    spec = FullAttentionSpec()
    with pytest.raises(ValueError, match="layers cache FullAttentionSpec, FullAttentionSpec; exp"):
        both.connector((spec, spec))
    with pytest.raises(ValueError, match="layers cache object; expected full attention in all"):
        both.connector((object(),))
    with pytest.raises(ValueError, match="kv_load_failure_policy 'fail'"):
        both.connector(policy="recompute")
    with pytest.raises(ValueError, match="without data parallelism"):
        both.connector(engines=2)
    with pytest.raises(ValueError, match="--enable-prefix-caching"):
        both.connector(prefixes=False)
    with pytest.raises(ValueError, match="expected 32 blocks in front"):
        both.worker.register_kv_caches({"a": torch.zeros(2, BLOCKS, 3)})
