"""A slot in vLLM: passages in the first blocks of a request, exchanged in place.

A connector for vLLM's own process, which its core loads by name:

    --kv-transfer-config '{"kv_connector": "FlashBackConnector", "kv_role": "kv_both",
        "kv_connector_module_path": "flashback.engines.vllm_connector"}'

vLLM's prefix cache finds blocks by the ids in them and a request's `cache_salt`. A text in a slot
has the same ids in its reserved positions, whatever passage stands there, so its blocks are found
again at every stride, under a salt of its own. What is left to do here is to write the keys and
values of the passage in view into the request's first blocks, before its first pass. They were
computed by a request of the passage alone, and are kept beside vLLM's cache. Blocks are copied
whole: the order inside them, which differs from backend to backend, does not matter.

A request asks in `kv_transfer_params`, under `flashback`:

    {}                  to be told what there is: {"block": tokens, "passages": blocks}
    {"keep": n}         to keep the blocks of its first n tokens
    {"show": ids}       for those kept of these ids, in its first blocks
    {..., "valid": n}   to forget what the prefix cache has behind its first n tokens
    {..., "needed": n}  to fail if the prefix cache has fewer than n tokens, as it does if the
                        passage is not kept
    {..., "salt": s}    for passages that only requests with the same salt can show

What is not understood fails, too.

Runs where vLLM does (0.32), and needs nothing else of FlashBack.
"""

import sys
from collections import OrderedDict
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)
from vllm.logger import init_logger
from vllm.v1.kv_cache_interface import FullAttentionSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

NAME = "flashback"
"""Of its parameters in a request and in an answer."""
PASSAGE_BYTES = 256 << 20
"""Of kept passages on each worker; `passage_bytes` in `kv_connector_extra_config`."""

_LOG = init_logger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What a request asks for; see the module."""

    keep: int = 0
    show: tuple[int, ...] = ()
    valid: int = sys.maxsize
    needed: int = 0
    salt: str = ""

    @classmethod
    def of(cls, request: "Request", block: int) -> "Wanted | None":
        """None: nothing.

        Raises:
            ValueError: it asks for what there is not, in one line.
        """
        given = (request.kv_transfer_params or {}).get(NAME)
        if given is None:
            return None
        if not isinstance(given, dict) or given.keys() - {one.name for one in fields(cls)}:
            raise ValueError("expected an object of keep, show, valid, needed and salt")
        found = cls(**given | {"show": tuple(given.get("show", ()))})
        numbers = (found.keep, found.valid, found.needed, *found.show)
        if not all(type(one) is int and one >= 0 for one in numbers):
            raise ValueError("expected whole numbers of at least 0")
        if type(found.salt) is not str:
            raise ValueError("expected a text as salt")
        for name, tokens in ("keep", found.keep), ("show", len(found.show) + 1):
            if tokens > request.num_tokens:
                raise ValueError(f"{name}: more than the prompt's {request.num_tokens} tokens")
        if found.keep % block or len(found.show) % block:
            raise ValueError(f"expected whole blocks of {block} tokens to keep and to show")
        return found


@dataclass(frozen=True)
class Copy:
    """Blocks of a request, and the key of the passage that they get or give."""

    key: str
    blocks: tuple[int, ...]


@dataclass
class Orders(KVConnectorMetadata):
    """What a worker does around one pass, in this order."""

    drop: list[str] = field(default_factory=list)
    """Keys of passages that are kept no longer."""
    show: list[Copy] = field(default_factory=list)
    """Before the pass: what to write."""
    keep: list[Copy] = field(default_factory=list)
    """Behind it: what to keep."""
    failed: list[int] = field(default_factory=list)
    """First blocks of requests that cannot have what they ask for."""


class Kept:
    """The keys of kept passages, and what each takes; those that were used longest ago go first."""

    def __init__(self, most: int) -> None:
        """Nothing is kept, and up to `most` blocks can be."""
        self.most = most
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def has(self, key: str) -> bool:
        """Whether a passage is kept; if so, it is used now."""
        if key in self._sizes:
            self._sizes.move_to_end(key)
        return key in self._sizes

    def add(self, key: str, blocks: int) -> list[str] | None:
        """Keep a passage; the keys that had to go. None: it is larger than all the room."""
        if blocks > self.most:
            return None
        self._sizes.pop(key, None)
        gone = []
        while sum(self._sizes.values()) + blocks > self.most:
            gone.append(self._sizes.popitem(last=False)[0])
        self._sizes[key] = blocks
        return gone


def key_of(request: "Request", ids: "Sequence[int]", salt: str) -> str:
    """Names what the first blocks of a request hold: an adapter and a salt have their own."""
    adapter = request.lora_request.lora_name if request.lora_request else ""
    return sha256(repr((tuple(ids), salt, adapter)).encode()).hexdigest()


class FlashBackConnector(KVConnectorBase_V1):
    """See the module."""

    def __init__(
        self, vllm_config: "VllmConfig", role: "KVConnectorRole", kv_cache_config: "KVCacheConfig"
    ) -> None:
        """For the scheduler or for a worker.

        Raises:
            ValueError: the server cannot have a slot, in one line.
        """
        super().__init__(vllm_config, role, kv_cache_config)
        groups = kv_cache_config.kv_cache_groups
        if len(groups) != 1 or not isinstance(groups[0].kv_cache_spec, FullAttentionSpec):
            kinds = ", ".join(type(one.kv_cache_spec).__name__ for one in groups)
            raise ValueError(f"{NAME}: layers cache {kinds}; expected full attention in all")
        if not vllm_config.cache_config.enable_prefix_caching:
            raise ValueError(f"{NAME}: expected --enable-prefix-caching")
        if self._kv_transfer_config.kv_load_failure_policy != "fail":
            raise ValueError(f"{NAME}: expected the kv_load_failure_policy 'fail'")
        if vllm_config.parallel_config.data_parallel_size > 1:
            raise ValueError(f"{NAME}: expected one engine, without data parallelism")
        self._block = int(vllm_config.cache_config.block_size)
        self._blocks = kv_cache_config.num_blocks
        page = groups[0].kv_cache_spec.page_size_bytes * len(groups[0].layer_names)
        room = self._kv_transfer_config.get_from_extra_config("passage_bytes", PASSAGE_BYTES)
        # The scheduler's.
        self._kept = Kept(int(room) // page)
        self._orders = Orders()
        self._hits: dict[str, int] = {}
        self._keeping: dict[str, tuple[Request, Wanted]] = {}
        # A worker's.
        self._caches: list[Tensor] = []
        self._passages: dict[str, list[Tensor]] = {}
        self._failed: set[int] = set()

    # The scheduler's side

    def on_new_request(self, request: "Request") -> None:
        """Forget the blocks that a request must not find."""
        pool = self._kv_cache_manager.block_pool
        for name in request.block_hashes[self._wanted(request).valid // self._block :]:
            while found := pool.get_cached_block(name, [0]):
                pool.evict_blocks({one.block_id for one in found})

    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int, bool]:
        """How many of a passage's tokens the prefix cache does not have."""
        wanted = self._wanted(request)
        self._hits[request.request_id] = num_computed_tokens
        return max(len(wanted.show) - num_computed_tokens, 0), False

    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        """A request will have its first pass: order what that needs."""
        wanted = self._wanted(request)
        cached = self._hits.pop(request.request_id, 0)
        if wanted.keep:
            self._keeping[request.request_id] = request, wanted
        if not wanted.show:
            return
        key = key_of(request, wanted.show, wanted.salt)
        first = blocks.get_block_ids()[0][: max(len(wanted.show) // self._block, 1)]
        if self._kept.has(key) and cached >= wanted.needed:
            self._orders.show.append(Copy(key, tuple(first)))
        else:
            self._orders.failed.append(first[0])

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> Orders:
        """The orders of a step; passages that are whole behind it are kept."""
        scheduled = scheduler_output.num_scheduled_tokens
        for name, (request, wanted) in list(self._keeping.items()):
            if name in scheduled and request.num_computed_tokens + scheduled[name] >= wanted.keep:
                del self._keeping[name]
                self._keep(request, wanted)
        orders, self._orders = self._orders, Orders()
        return orders

    def _keep(self, request: "Request", wanted: Wanted) -> None:
        key = key_of(request, request.all_token_ids[: wanted.keep], wanted.salt)
        count = wanted.keep // self._block
        gone = self._kept.add(key, count)
        if gone is None:
            _LOG.warning("%s: no room for a passage of %d blocks (passage_bytes)", NAME, count)
            return
        self._orders.drop.extend(gone)
        self._orders.keep = [one for one in self._orders.keep if one.key not in gone]
        blocks = self._kv_cache_manager.get_block_ids(request.request_id)[0]
        self._orders.keep.append(Copy(key, tuple(blocks[:count])))

    def request_finished(
        self, request: "Request", block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Blocks are freed as ever; who asked for anything is told what there is."""
        self._keeping.pop(request.request_id, None)
        self._hits.pop(request.request_id, None)
        try:
            wanted = Wanted.of(request, self._block)
        except (TypeError, ValueError) as error:
            return False, {NAME: {"error": str(error)}}
        found = {"block": self._block, "passages": self._kept.most}
        return False, None if wanted is None else {NAME: found}

    def _wanted(self, request: "Request") -> Wanted:
        """What a request asks for; what it cannot have, if that is not understood."""
        try:
            return Wanted.of(request, self._block) or Wanted()
        except (TypeError, ValueError) as error:
            _LOG.warning("%s: %s", NAME, error)
            front = (0,) * min(self._block, request.num_tokens - 1)
            return Wanted(show=front, needed=sys.maxsize)

    # A worker's side

    def register_kv_caches(self, kv_caches: "dict[str, Tensor]") -> None:
        """The caches of all layers, by blocks.

        Raises:
            ValueError: they are not.
        """
        self._caches = list(kv_caches.values())
        for name, cache in kv_caches.items():
            if cache.shape[0] != self._blocks:
                raise ValueError(
                    f"{NAME}: the cache of {name} has the shape {tuple(cache.shape)}; expected "
                    f"{self._blocks} blocks in front"
                )

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """Before a pass: write the passages in view.

        `start_load_kv` is called behind a pass if the prefix cache had all blocks.
        """
        super().bind_connector_metadata(connector_metadata)
        assert isinstance(connector_metadata, Orders)
        self._failed = set(connector_metadata.failed)
        for one in connector_metadata.show:
            for cache, kept in zip(self._caches, self._passages[one.key], strict=True):
                cache[list(one.blocks)] = kept
        for key in connector_metadata.drop:
            self._passages.pop(key, None)

    def wait_for_save(self) -> None:
        """Behind a pass: keep its passages."""
        orders = self._get_connector_metadata()
        assert isinstance(orders, Orders)
        for one in orders.keep:
            self._passages[one.key] = [cache[list(one.blocks)] for cache in self._caches]

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks of requests that fail, since they cannot have what they ask for."""
        return self._failed

    def start_load_kv(self, forward_context: "ForwardContext", **_: Any) -> None:
        """Everything has been written."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded layer by layer."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: "Tensor", attn_metadata: Any, **_: Any
    ) -> None:
        """Nothing is saved layer by layer."""
