"""Packed copies of frozen weights: the same outputs and gradients, for as long as they are used."""

import pytest
import torch
from torch import Tensor, nn

from families import FAMILIES, tiny_model
from flashback.engines.kernels import frozen
from flashback.engines.kernels.choice import Chooser
from flashback.engines.kernels.frozen import FrozenLinear, FrozenWeights
from flashback.engines.kernels.products import PACKED, PLAIN
from flashback.readers.inference import for_training
from flashback.readers.lora import add_lora
from flashback.readers.lora_settings import LoraSettings
from recompute import TOLERANCE
from tiny_readers import tiny_reader

IDS = torch.randint(1, 60, (2, 12), generator=torch.Generator().manual_seed(0))
PLAIN_FAMILIES = [
    one for one in FAMILIES if any(type(m) is nn.Linear for m in tiny_model(one).modules())
]


def always_packed(*_: object) -> str:
    return PACKED


def outputs_and_gradients(model: nn.Module) -> list[Tensor]:
    """Logits, and the gradient of every parameter that is trained."""
    model.zero_grad()
    logits: Tensor = model(input_ids=IDS).logits
    logits.log_softmax(-1)[..., 3].sum().backward()
    grads = [one.grad.clone() for one in model.parameters() if one.grad is not None]
    assert grads
    return [logits.detach(), *grads]


def frozen_layers(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, FrozenLinear)]


@pytest.mark.parametrize("family", PLAIN_FAMILIES)
def test_outputs_and_gradients_are_those_of_plain_weights(family: str) -> None:
    model, *_ = add_lora(tiny_reader(family), LoraSettings(dropout=0.0), seed=0)
    model.eval()
    expected = outputs_and_gradients(model)
    weights = FrozenWeights(model, always_packed)
    with weights.packed():
        assert len(frozen_layers(model)) == len(weights) > 0
        found = outputs_and_gradients(model)
    assert not frozen_layers(model)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=1e-4)
    for one, other in zip(outputs_and_gradients(model), expected, strict=True):
        assert torch.equal(one, other)


def test_layers_that_are_trained_are_left_alone() -> None:
    layer = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    layer[0].requires_grad_(requires_grad=False)
    with FrozenWeights(layer, always_packed).packed():
        assert frozen_layers(layer) == [layer[0]]


def test_a_bias_is_added_once() -> None:
    layer = nn.Linear(8, 6).requires_grad_(requires_grad=False)
    x = torch.randn(3, 8)
    expected = layer(x)
    with FrozenWeights(layer, always_packed).packed():
        assert isinstance(layer, FrozenLinear)
        torch.testing.assert_close(layer(x), expected)


def test_copies_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "_SPARE", 8 * 8 * 4 * 3)
    layers = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(4)))
    assert len(FrozenWeights(layers.requires_grad_(requires_grad=False), always_packed)) == 2


def test_under_autocast_weights_are_cast_as_usual() -> None:
    layer = nn.Linear(8, 6).requires_grad_(requires_grad=False)
    x = torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with FrozenWeights(layer, always_packed).packed():
            found = layer(x)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, expected)


def test_layouts_are_measured_where_weights_are_large() -> None:
    large = nn.Linear(768, 512, bias=False).requires_grad_(requires_grad=False)
    asked = []

    class Counting(Chooser):
        def of_many(self, outputs: int, inputs: int, dtype: torch.dtype) -> str:
            asked.append((outputs, inputs))
            return super().of_many(outputs, inputs, dtype)

    chooser = Counting((PLAIN, PACKED))
    FrozenWeights(
        nn.Sequential(large, nn.Linear(8, 8).requires_grad_(requires_grad=False)), chooser.of_many
    )
    assert asked == [(512, 768), (768, 512), (8, 8), (8, 8)]
    assert chooser.seconds > 0


def test_tiny_models_stay_plain() -> None:
    model, *_ = add_lora(tiny_reader("llama"), LoraSettings(), seed=0)
    assert len(for_training(model)) == 0
