"""An adapter put onto a reader: LoRA weights and the trained marking rows, merged.

Knows the folder's weights. Knows nothing of how they are trained.
"""

import dataclasses
import json
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from flashback.errors import AdapterError
from flashback.readers.card import CARD, CONFIG, WEIGHTS, AdapterCard, read_card
from flashback.readers.fingerprint import base_of
from flashback.readers.reader import Reader
from flashback.readers.text_reader import MARK_LEFT, MARK_RIGHT

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel


def add_marks(tokenizer: Tokenizer, model: PreTrainedModel) -> tuple[int, int]:
    """Give a reader the two marking tokens, and embedding rows for them if it has none to spare.

    New rows are drawn around the mean of the others, as transformers does it, and the same ones
    every time.
    """
    tokenizer.add_tokens([MARK_LEFT, MARK_RIGHT], special_tokens=True)
    known = tokenizer.get_vocab()
    marks = known[MARK_LEFT], known[MARK_RIGHT]
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    if max(marks) >= embedding.shape[0]:
        devices = [embedding.device] if embedding.is_cuda else []
        with _quiet_resizing(), torch.random.fork_rng(devices):
            torch.manual_seed(0)
            model.resize_token_embeddings(max(marks) + 1)
    return marks


@contextmanager
def _quiet_resizing() -> Iterator[None]:
    """transformers explains at length how it draws the new rows."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(before)


def check_base(reader: Reader, folder: Path) -> AdapterCard:
    """The card of an adapter that was trained on this reader.

    Raises:
        AdapterError: the adapter is missing, damaged, or belongs to another model.
    """
    card, found = read_card(folder), base_of(reader)
    if found.fingerprint != card.base.fingerprint:
        raise AdapterError(
            f"adapter {folder} was trained on {card.base.name} ({card.base.model_type}, "
            f"{card.base.fingerprint[:12]}), but {reader.name} ({found.model_type}, "
            f"{found.fingerprint[:12]}) is another model; load the adapter's own"
        )
    return card


def put_on(reader: Reader, folder: str | Path) -> Reader:
    """A reader with an adapter merged into its weights: as fast as without.

    The given reader must not be used afterwards: its model and tokenizer are changed in place.

    Raises:
        AdapterError: the adapter is missing, damaged, or belongs to another model.
    """
    folder = Path(folder)
    card = check_base(reader, folder)
    if card.mark_ids is not None:
        given = add_marks(reader.tokenizer, reader.model)
        if given != card.mark_ids:
            raise AdapterError(
                f"adapter {folder}: its marking tokens are {card.mark_ids}, but this tokenizer "
                f"gives them {given}; it is not the one the adapter was trained with"
            )
    return dataclasses.replace(reader, model=_merged(reader.model, folder, card), adapter=card)


def _merged(model: PreTrainedModel, folder: Path, card: AdapterCard) -> PreTrainedModel:
    try:
        adapted = wrap(model, _lora_config(folder, card))
        load_lora(adapted, folder)
        merged: Any = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # PEFT raises almost anything for a bad folder
        found = textwrap.shorten(str(error) or "no reason given", 300, placeholder=" ...")
        kind = type(error).__name__
        raise AdapterError(
            f"adapter {folder}: cannot be put onto the model: {found} ({kind})"
        ) from error
    assert isinstance(merged, PreTrainedModel)
    merged.eval()
    return merged


def _lora_config(folder: Path, card: AdapterCard) -> "LoraConfig":
    """The fields of PEFT's file that `flashback train` writes; others are ignored."""
    from peft import LoraConfig

    record = json.loads((folder / CONFIG).read_text("utf-8"))
    if record["peft_type"] != "LORA":
        raise ValueError(f"{CONFIG} says {record['peft_type']}, expected LORA")
    rows = record["trainable_token_indices"]
    if rows != (None if card.mark_ids is None else list(card.mark_ids)):
        raise ValueError(f"{CONFIG} has the token rows {rows}, {CARD} {card.mark_ids}")
    return LoraConfig(
        r=record["r"],
        lora_alpha=record["lora_alpha"],
        target_modules=list(record["target_modules"]),
        fan_in_fan_out=record["fan_in_fan_out"],
        trainable_token_indices=rows,
        task_type="CAUSAL_LM",
    )


def wrap(model: PreTrainedModel, config: "LoraConfig") -> "PeftModel":
    """Put fresh LoRA weights, and the token rows that the configuration names, around a model."""
    from peft import PeftModel, get_peft_model

    with warnings.catch_warnings():
        # PEFT asks transformers for a name that will go.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def load_lora(model: "PeftModel", folder: Path) -> None:
    """Read the weights of an adapter folder or a checkpoint into a model that was wrapped for them.

    Raises:
        ValueError: the folder has not exactly the weights that the model wants.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    found = load_file(folder / WEIGHTS)
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    if differing := sorted(wanted.keys() ^ found.keys()):
        kind = "lacks" if differing[0] in wanted else "has"
        raise ValueError(f"{WEIGHTS} {kind} {differing[0]}, unlike {CONFIG}")
    set_peft_model_state_dict(model, found)
