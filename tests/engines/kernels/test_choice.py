"""The products of a layer: the fastest of those measured, remembered, within a limit of memory."""

import json
from pathlib import Path

import pytest
import torch

from flashback.engines.kernels import choice
from flashback.engines.kernels.choice import Choice, Chooser, always, measure
from flashback.engines.kernels.products import COMPILED, INT8, PACKED, PLAIN, PackedProduct

LARGE = (768, 512)
"""Outputs and inputs of a weight that is worth being timed."""
FIGURES = {
    PLAIN: [1.0, 4.0, 40.0],
    PACKED: [2.0, 3.0, 30.0],
    COMPILED: [1.5],
}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is measured, with made-up results."""
    asked: list[list[str]] = []

    def found(names: list[str], *_: object) -> choice.Seconds:
        asked.append(list(names))
        return {name: FIGURES[name] for name in names if name in FIGURES}

    monkeypatch.setattr(choice, "measure", found)
    return asked


def test_one_layout_is_chosen_for_a_stride(measured: list[list[str]]) -> None:
    # 15 single rows and a pass of 144: 15 + 40 as it is, 30 + 30 packed, 22.5 + 30 with loops.
    chooser = Chooser([PACKED, PLAIN])
    chooser._spare = 0
    assert chooser(*LARGE, torch.float32) == (PLAIN, PLAIN, PLAIN)
    chooser = Chooser([PACKED, PLAIN, COMPILED])
    chooser._spare = 0
    assert chooser(*LARGE, torch.float32) == (COMPILED, PACKED, PACKED)
    assert str(chooser.chosen["768x512"]) == "compiled/packed/packed"


def test_a_second_layout_takes_memory_that_is_limited(measured: list[list[str]]) -> None:
    chooser = Chooser([PACKED, PLAIN])
    chooser._spare = 768 * 512 * 4
    assert chooser(*LARGE, torch.float32) == (PLAIN, PACKED, PACKED)
    assert chooser(*LARGE, torch.float32) == (PLAIN, PLAIN, PLAIN)


def test_many_rows_have_the_layout_that_is_fastest_for_them(measured: list[list[str]]) -> None:
    chooser = Chooser([PLAIN, PACKED])
    assert chooser.of_many(*LARGE, torch.float32) == PACKED
    assert chooser.of_many(64, 64, torch.float32) == PLAIN
    assert measured == [[PLAIN, PACKED]]


def test_small_weights_are_not_measured(measured: list[list[str]]) -> None:
    chooser = Chooser([PACKED, PLAIN])
    assert chooser(64, 64, torch.float32) == (PACKED, PACKED, PACKED)
    assert not measured
    assert not chooser.chosen


def test_what_was_measured_is_kept_for_the_same_machine(
    measured: list[list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "cache" / "products.json"
    for machine, times in (("one", 1), ("one", 1), ("another", 2), ("one", 2)):
        chooser = Chooser([PACKED, PLAIN], path, machine)
        chooser(*LARGE, torch.float32)
        chooser.keep()
        assert len(measured) == times
    assert json.loads(path.read_text()).keys() == {"one", "another"}
    Chooser([PACKED, PLAIN, COMPILED], path, "one")(*LARGE, torch.float32)
    assert measured[-1] == [COMPILED]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"one": 3}',
        '{"one": {"768x512 torch.float32": {"packed": [1, "x", 3]}}}',
        '{"one": {"768x512 torch.float32": {"packed": [1.0, 2.0], "plain": [-1.0, 2.0, 3.0]}}}',
    ],
)
def test_a_file_that_says_something_else_is_measured_anew(
    measured: list[list[str]], tmp_path: Path, text: str
) -> None:
    path = tmp_path / "products.json"
    path.write_text(text)
    chooser = Chooser([PACKED, PLAIN], path, "one")
    chooser(*LARGE, torch.float32)
    assert measured == [[PACKED, PLAIN]]
    chooser.keep()
    assert json.loads(path.read_text())["one"]


def test_a_folder_that_cannot_be_written_keeps_nothing(
    measured: list[list[str]], tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    chooser = Chooser([PACKED, PLAIN], blocked / "products.json", "one")
    assert chooser(*LARGE, torch.float32) == (PLAIN, PACKED, PACKED)
    chooser.keep()
    assert blocked.read_text() == ""


def test_products_are_measured_with_each_number_of_rows() -> None:
    found = measure([PACKED, PLAIN, INT8, COMPILED], 64, 32, torch.float32)
    assert COMPILED not in found  # nothing makes them
    assert {PLAIN} <= found.keys() <= {PACKED, PLAIN, INT8}
    assert all(len(times) == len(choice.ROWS) and min(times) > 0 for times in found.values())


def test_a_processor_without_an_operator_has_no_such_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(PackedProduct, "__init__", missing)
    assert measure([PACKED, PLAIN], 64, 32, torch.float32).keys() == {PLAIN}
    assert Chooser([PACKED, PLAIN])(*LARGE, torch.float32) == (PLAIN, PLAIN, PLAIN)


def test_one_product_for_everything() -> None:
    assert always(PLAIN)(1, 1, torch.float32) == Choice(PLAIN, PLAIN, PLAIN)
    assert always(COMPILED)(1, 1, torch.float32) == Choice(COMPILED, PACKED, PACKED)
