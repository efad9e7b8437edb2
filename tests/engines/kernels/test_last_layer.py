"""A last layer that runs at the needed positions only: the same logits of less work."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from families import FAMILIES, tiny_model
from flashback.engines.kernels.last_layer import LastLayer
from flashback.scoring.model import states_of

IDS = torch.randint(2, 258, (2, 12), generator=torch.Generator().manual_seed(0))
NEEDED = 3


def run(model: PreTrainedModel, mask: Tensor | None = None) -> Tensor:
    """The last logits, (B, NEEDED, V)."""
    given: dict[str, Any] = {} if mask is None else {"attention_mask": mask}
    with torch.no_grad():
        output = model(input_ids=IDS, past_key_values=DynamicCache(), use_cache=True, **given)
    logits: Tensor = output.logits[:, -NEEDED:]
    return logits


def last_stack(model: PreTrainedModel) -> nn.Module:
    count = model.config.num_hidden_layers
    (stack,) = {
        one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == count
    }
    return stack[-1]


def positions_computed(model: PreTrainedModel) -> list[int]:
    """Told, from now on, at how many positions the last layer's last matrix is multiplied."""
    found: list[int] = []
    *_, matrix = (one for one in last_stack(model).modules() if type(one).__name__ in MATRICES)
    matrix.register_forward_hook(lambda _, given, __: found.append(given[0].shape[-2]))
    return found


MATRICES = ("Linear", "Conv1D", "FalconLinear")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padded", [False, True])
def test_every_family_computes_the_same_of_less(family: str, attention: str, padded: bool) -> None:
    model = tiny_model(family)
    if attention == "eager":
        model.set_attn_implementation("eager")
    mask = None
    if padded:
        mask = torch.ones_like(IDS)
        mask[1, :4] = 0
    computed = positions_computed(model)
    expected = run(model, mask)
    with LastLayer(model).narrowed(NEEDED):
        narrowed = run(model, mask)
    assert (narrowed - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(run(model, mask), expected)  # and as before behind it
    assert [count % IDS.shape[1] or IDS.shape[1] for count in computed[::2]] == [IDS.shape[1]] * 2
    assert computed[1] in (NEEDED, NEEDED * len(IDS))


def test_a_cache_holds_the_keys_and_values_of_all_positions() -> None:
    model, caches = tiny_model("llama"), [DynamicCache(), DynamicCache()]
    with torch.no_grad():
        model(input_ids=IDS, past_key_values=caches[0], use_cache=True)
        with LastLayer(model).narrowed(NEEDED):
            model(input_ids=IDS, past_key_values=caches[1], use_cache=True)
    for whole, narrowed in zip(*map(states_of, caches), strict=True):
        assert all(map(torch.allclose, whole, narrowed))


def test_what_is_not_known_to_have_positions_is_left_alone() -> None:
    model = tiny_model("llama")
    computed = positions_computed(model)
    last_stack(model).register_forward_pre_hook(
        lambda _, args, given: (args, given | {"strange": torch.zeros(12)}), with_kwargs=True
    )
    with LastLayer(model).narrowed(NEEDED):
        run(model)
    assert computed == [IDS.shape[1]]


def test_a_layer_that_was_replaced_before_stays_replaced() -> None:
    model = tiny_model("llama")
    layer: Any = last_stack(model)
    expected, original = run(model), layer.forward
    with LastLayer(model).narrowed(NEEDED):
        pass
    assert "forward" not in vars(layer)
    layer.forward = replaced = lambda *args, **given: 2 * original(*args, **given)
    with LastLayer(model).narrowed(NEEDED):
        pass
    assert layer.forward is replaced
    assert not torch.equal(run(model), expected)


def test_narrowing_within_narrowing() -> None:
    model = tiny_model("llama")
    computed, narrow = positions_computed(model), LastLayer(model)
    with narrow.narrowed(NEEDED):
        with LastLayer(model).narrowed(2):
            run(model)
        run(model)
    run(model)
    assert computed == [2, NEEDED, IDS.shape[1]]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_position_needs_no_mask(family: str) -> None:
    model = tiny_model(family)
    expected = run(model)[:, -1]
    with LastLayer(model).narrowed(1):
        narrowed = run(model)[:, -1]
    assert (narrowed - expected).abs().max() < 1e-5 * expected.abs().max()


def test_threads_that_overlap_narrow_for_themselves() -> None:
    """The first to end neither takes the layer from the other nor leaves it replaced."""
    model = tiny_model("llama")
    layer, computed = last_stack(model), positions_computed(model)
    entered, left = threading.Event(), threading.Event()

    def narrow_and_leave() -> None:
        with LastLayer(model).narrowed(2):
            entered.set()
            assert inside.wait(10)
        left.set()

    inside = threading.Event()
    other = threading.Thread(target=narrow_and_leave)
    other.start()
    assert entered.wait(10)
    with LastLayer(model).narrowed(NEEDED):
        inside.set()
        assert left.wait(10)
        run(model)
    other.join()
    assert computed == [NEEDED]
    assert "forward" not in vars(layer)


def test_other_threads_get_whole_layers() -> None:
    model = tiny_model("llama")
    computed = positions_computed(model)
    with LastLayer(model).narrowed(NEEDED):
        other = threading.Thread(target=run, args=(model,))
        other.start()
        other.join()
    assert computed == [IDS.shape[1]]
