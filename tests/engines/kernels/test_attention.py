"""Attention of many queries as matrix products: what PyTorch's kernel computes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from families import FAMILIES, tiny_model
from flashback.engines.kernels import attention
from flashback.engines.kernels.attention import Attention, attend
from flashback.engines.local import LocalEngine
from flashback.patterns.registry import PATTERNS
from flashback.settings import RetrievalSettings, Settings, StoppingSettings
from flashback.writing.generator import Generator
from recompute import TOLERANCE, check_greedy, largest_error
from recorded import generate_and_record
from tiny_readers import MadeUpRetriever, tiny_reader

SIZE = 8


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Key heads of each call that is computed as products, of two queries and more."""
    heads: list[int] = []
    way = attention._by_products

    def counted(*given: Any) -> Tensor:
        heads.append(given[1].shape[1])
        return way(*given)

    monkeypatch.setattr(attention, "_by_products", counted)
    monkeypatch.setattr(attention, "_MANY", 2)
    return heads


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("key_heads", [6, 3, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_attention(
    dtype: torch.dtype, key_heads: int, added: bool, products: list[int]
) -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 6, 9, SIZE).to(dtype)
    key, value = (torch.randn(1, key_heads, 40, SIZE).to(dtype) for _ in range(2))
    seen = torch.rand(1, 1, 9, 40) < 0.7
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf) if added else seen
    module: Any = torch.nn.Module()
    module.num_key_value_groups = 6 // key_heads
    found, _ = attend(module, query, key, value, mask, scaling=0.3)
    assert products == [key_heads]
    usual, _ = sdpa_attention_forward(module, query, key, value, seen, scaling=0.3)
    expected, _ = sdpa_attention_forward(
        module, query.double(), key.double(), value.double(), seen, scaling=0.3
    )
    assert (found.shape, found.dtype) == (usual.shape, dtype)
    assert found.is_contiguous()

    def error(output: Tensor) -> float:
        return float((output.double() - expected).abs().max())

    assert error(found) <= max(2 * error(usual), 1e-5)
    default, _ = attend(module, query, key, value, mask)
    usual, _ = sdpa_attention_forward(module, query, key, value, seen)
    assert torch.allclose(
        default.float(), usual.float(), atol=1e-5 if dtype is torch.float32 else 0.02
    )


def test_few_heads_at_a_time_and_none_that_leave_the_cache(
    products: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 5, count, SIZE) for count in (9, 40, 40))
    mask = torch.ones(9, 40, dtype=torch.bool).tril(31)[None, None]
    module = torch.nn.Module()
    usual, _ = sdpa_attention_forward(module, query, key, value, mask)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for fit, expected in ((1, 0), (2, 2), (3, 3), (9, 4)):  # two for each of two cores at the most
        monkeypatch.setattr(attention, "_CACHED_BYTES", fit * 9 * 40 * 4)
        assert attention._key_heads_at_once(query, key) == expected
        found, _ = attend(module, query, key, value, mask)
        assert torch.allclose(found, usual, atol=1e-5)
    assert len(products) == 3


def test_what_is_not_many_queries_behind_a_context_stays(products: list[int]) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, count, SIZE) for count in (9, 40, 40))
    mask = torch.ones(2, 1, 9, 40, dtype=torch.bool)
    module = torch.nn.Module()
    attend(module, query, key, value, mask)  # rows of a batch
    one = query[:1], key[:1], value[:1]
    attend(module, *one, None)  # a prompt
    attend(module, one[0][:, :, :1], *one[1:], mask[:1, :, :1])  # a token
    attend(module, *one, torch.zeros(1, 2, 9, 40))  # a bias of every head
    assert not products
    attend(module, *one, mask[:1])
    assert products == [2]


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("key_heads", [3, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_that_share_keys_are_queries_of_one_head(
    dtype: torch.dtype, key_heads: int, tokens: int, added: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    query = torch.randn(4, 6, tokens, SIZE).to(dtype).requires_grad_()
    key, value = (torch.randn(4, key_heads, 40, SIZE).to(dtype).requires_grad_() for _ in range(2))
    given = query, key, value
    seen = torch.rand(4, 1, tokens, 40) < 0.7
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf) if added else seen
    module: Any = torch.nn.Module()
    module.num_key_value_groups = 6 // key_heads
    usual, _ = sdpa_attention_forward(module, *given, mask, scaling=0.3)
    monkeypatch.delattr(attention, "sdpa_attention_forward")  # nothing is repeated
    found, _ = attend(module, *given, mask, scaling=0.3)
    assert (found.shape, found.dtype) == (usual.shape, dtype)
    assert found.is_contiguous()
    close = 1e-5 if dtype is torch.float32 else 0.02
    assert torch.allclose(found, usual, atol=close)
    weights = torch.randn_like(usual)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), given),
        torch.autograd.grad((usual * weights).sum(), given),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=10 * close, rtol=0.02)


def test_nothing_is_kept_for_gradients_but_what_the_kernel_keeps(products: list[int]) -> None:
    query, key, value = (torch.randn(1, 2, count, SIZE) for count in (9, 40, 40))
    module = torch.nn.Module()
    mask = torch.ones(1, 1, 9, 40, dtype=torch.bool)
    attend(module, query.requires_grad_(), key, value, mask)
    assert not products


@pytest.mark.parametrize("pattern", ["append", "slot"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_by_products_equals_recomputation(
    family: str, pattern: str, products: list[int]
) -> None:
    reader, plain = tiny_reader(family), tiny_reader(family)
    if not reader.can_have(PATTERNS[pattern]):
        return

    def write(usual: bool) -> tuple[Any, list[Tensor]]:
        engine = LocalEngine((plain if usual else reader).model, window=120, self_check=False)
        engine.joins_passages = False
        writer = Generator(plain if usual else reader, engine, MadeUpRetriever(3))
        settings = Settings(
            RetrievalSettings(pattern, stride=5, passage_tokens=20),
            stopping=StoppingSettings(max_new_tokens=64, ignore_eos=True),
        )
        return generate_and_record(writer, [0, *range(10, 40)], settings)

    generation, seen = write(usual=False)
    if pattern == "append":
        # Bloom and MPT add a bias to every head, Falcon computes attention itself.
        assert bool(products) == (
            reader.model.config._attn_implementation == "sdpa"
            and family not in ("bloom", "mpt", "falcon")
        )
        assert largest_error(plain.model, generation, seen) <= TOLERANCE
        check_greedy(plain.model, generation, reader.forbidden)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_MANY", 1 << 30)
        expected, logits = write(usual=True)
    assert generation.tokens == expected.tokens
    assert float((torch.stack(seen) - torch.stack(logits)).abs().max()) <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "tokens", "behind", "taken"),
    [
        ("llama", 144, True, True),
        ("llama", 144, False, False),
        ("llama", 1, True, True),  # its heads share keys
        ("opt", 1, True, False),
        ("opt", 2, True, True),
        ("falcon", 2, True, False),  # it would take another kind for "eager"
    ],
)
def test_it_is_taken_for_what_stands_behind_a_context(
    family: str, tokens: int, behind: bool, taken: bool
) -> None:
    config = (model := tiny_model(family)).config
    usual = config._attn_implementation
    with Attention(model).for_pass(tokens, fixed=False, behind=behind):
        assert config._attn_implementation == (attention._OURS if taken else usual)
    assert config._attn_implementation == usual
