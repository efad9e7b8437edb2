"""Trained token rows cost two rows, and compute what PEFT's own layer computes."""

import pytest
import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor

from families import FAMILIES
from flashback.readers.lora import add_lora
from flashback.readers.lora_settings import LoraSettings
from flashback.readers.marking_rows import MarkingRows
from tiny_readers import tiny_reader


def marked_model(family: str) -> tuple[PeftModel, tuple[int, int]]:
    """A model whose marking rows have been moved away from what they were made as."""
    model, _, marks = add_lora(tiny_reader(family), LoraSettings(dropout=0.0), seed=0)
    assert marks is not None
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval(), marks


def outputs_and_gradients(model: PeftModel, ids: Tensor) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=ids).logits
    (logits.log_softmax(-1) ** 2).sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("family", FAMILIES)
def test_marking_rows_compute_what_pefts_layer_does(family: str) -> None:
    model, marks = marked_model(family)
    ids = torch.tensor([[1, marks[0], 5, 7, marks[1], 9, marks[1]], [2, 3, 4, 5, 6, 7, 8]])
    ours = outputs_and_gradients(model, ids)
    layers = [module for module in model.modules() if isinstance(module, MarkingRows)]
    assert layers
    for layer in layers:
        layer.__class__ = TrainableTokensLayer  # type: ignore[assignment]
    theirs = outputs_and_gradients(model, ids)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_pass_keeps_no_copy_of_the_embedding_for_its_gradient(family: str) -> None:
    model, marks = marked_model(family)
    embedding = model.get_input_embeddings().weight
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    copies: list[Tensor] = []

    def note(kept: Tensor) -> Tensor:
        if kept.data_ptr() not in parameters:
            copies.append(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        model(input_ids=torch.tensor([[1, marks[0], 5]])).logits.sum().backward()
    assert copies
    assert all(copy.numel() < embedding.numel() for copy in copies)
