"""Passes in half precision are judged against float32 passes of the same weights."""

import copy
from typing import Any

import pytest
import torch

from families import FAMILIES, tiny_model
from flashback.engines import self_check
from flashback.engines.kernels.choice import always
from flashback.engines.kernels.linear import lay_out
from flashback.engines.kernels.products import PACKED
from flashback.engines.local import LocalEngine
from flashback.engines.reference import in_float32, recomputed
from flashback.errors import UnsupportedReader

IDS = [[5, 9, 17, 3, 250, 7], [8, 8, 30, 41, 6, 2]]


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_recomputed_in_float32(family: str, dtype: torch.dtype) -> None:
    model: Any = copy.deepcopy(tiny_model(family))
    model.to(dtype=dtype)
    exact = copy.deepcopy(model).float()
    before = {name: (one.data_ptr(), one.clone()) for name, one in model.named_parameters()}
    with torch.inference_mode():
        found = recomputed(model, IDS)
        assert found.dtype is torch.float32
        expected = exact(input_ids=torch.tensor(IDS), use_cache=False).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert model(input_ids=torch.tensor(IDS), use_cache=False).logits.dtype is dtype
    for name, one in model.named_parameters():
        place, value = before[name]
        assert one.dtype is dtype
        assert one.data_ptr() == place
        assert torch.equal(one, value)


def test_so_are_layers_that_are_laid_out_for_this_processor() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    model = copy.deepcopy(tiny_model("llama")).bfloat16()
    with torch.inference_mode():
        expected = recomputed(model, IDS)
        assert lay_out(model, always(PACKED)) > 0
        torch.testing.assert_close(recomputed(model, IDS), expected, atol=1e-5, rtol=1e-5)
        assert model(input_ids=torch.tensor(IDS), use_cache=False).logits.dtype is torch.bfloat16


def test_weights_are_given_back_after_a_failure() -> None:
    model = copy.deepcopy(tiny_model("llama")).bfloat16()
    with pytest.raises(IndexError), in_float32(model):
        model(input_ids=torch.tensor([[1 << 20]]), use_cache=False)
    assert all(one.dtype is torch.bfloat16 for one in model.parameters())
    with torch.inference_mode():
        assert model(input_ids=torch.tensor(IDS), use_cache=False).logits.dtype is torch.bfloat16


def test_rounding_in_half_precision_passes_and_a_fault_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = copy.deepcopy(tiny_model("llama")).bfloat16()
    LocalEngine(model, 64)

    def shifted(*given: object) -> torch.Tensor:
        return recomputed(*given) + 0.2  # type: ignore[arg-type]

    monkeypatch.setattr(self_check, "recomputed", shifted)
    with pytest.raises(UnsupportedReader, match="fails the self-check"):
        LocalEngine(model, 64)
