"""The deprecated names of `weights`: they ask for the same, and are checked like it."""

import pytest

from command_line import run
from flashback.errors import SettingsError
from flashback.loading import load
from flashback.readers.old_weights import weights_of


@pytest.mark.parametrize(
    ("weights", "quantize", "decode_kernel", "expected"),
    [
        ("full", None, None, "full"),
        ("numba", None, None, "numba"),
        ("full", "int8", None, "int8"),
        ("full", None, "numba", "numba"),
        ("full", "none", "numba", "numba"),
        ("full", "int8", "pytorch", "int8"),
        ("int8", "int8", "pytorch", "int8"),
    ],
)
def test_they_ask_for_the_same(
    weights: str, quantize: str | None, decode_kernel: str | None, expected: str
) -> None:
    assert weights_of(weights, quantize, decode_kernel) == expected


@pytest.mark.parametrize(
    ("weights", "quantize", "decode_kernel", "message"),
    [
        ("full", "int8", "numba", "weights: expected one of them, found int8 and numba"),
        ("numba", "int8", None, "weights: expected one of them, found int8 and numba"),
        ("full", "int4", None, "quantize='int4': expected one of none, int8"),
        ("full", None, "cuda", "decode_kernel='cuda': expected one of pytorch, numba"),
        ("int4", "int8", None, "weights='int4': expected one of full, numba, int8"),
    ],
)
def test_unknown_and_different_weights_are_refused(
    weights: str, quantize: str | None, decode_kernel: str | None, message: str
) -> None:
    with pytest.raises(SettingsError, match=f"^{message}"):
        weights_of(weights, quantize, decode_kernel)
    with pytest.raises(SettingsError, match=f"^{message}"):
        load("no such model", weights=weights, quantize=quantize, decode_kernel=decode_kernel)


def test_the_command_line_refuses_different_weights() -> None:
    said = run("generate", "a", "--quantize", "int8", "--decode-kernel", "numba", code=2).err
    assert "--weights: expected one of them, found int8 and numba" in said
