"""The options that decide which reader runs and where, as one value."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.errors import FlashBackWarning
from flashback.readers.old_weights import weights_of
from flashback.readers.shipped import adapter_path
from flashback.readers.weight_settings import Weights

if TYPE_CHECKING:
    from flashback.readers.reader import Reader

Command = Callable[..., Any]


@dataclass(frozen=True)
class ReaderOptions:
    """The options of a command that choose its reader."""

    model: str
    device: str
    dtype: str
    trust_remote_code: bool
    window: int | None = None

    @property
    def placed(self) -> dict[str, Any]:
        """All but the name, as functions that load a reader take them."""
        return {name: getattr(self, name) for name in _NAMES if name != "model"}

    def load_plain(self) -> "Reader":
        """The reader, loaded anew, without an adapter.

        Raises:
            FlashBackError: it is missing or unusable.
            UnsupportedReader: padding and branches need attention that can be masked.
        """
        from flashback.engines.support import check_supported
        from flashback.readers.load import load_reader

        reader = load_reader(self.model, **self.placed)
        check_supported(reader.model)
        return reader


_NAMES = [field.name for field in fields(ReaderOptions)]


def reader_options(command: Command) -> Command:
    """The options for a model, where it runs, and with how many positions; given as `options`."""
    window = click.option("--window", type=int, help="Use fewer positions than the model has.")
    return _model_options(window(_gathered(command)))


def model_options(command: Command) -> Command:
    """The same without `--window`."""
    return _model_options(_gathered(command))


def adapter_option(command: Command) -> Command:
    """The adapter on it: a name for `load`, or None."""
    return click.option(
        "--adapter",
        default="auto",
        show_default=True,
        callback=lambda _, __, name: None if name == "none" else name,
        help="Adapter folder made by 'flashback train', or the name of one that ships; none; auto: "
        "what ships with the model for the pattern, if anything.",
    )(command)


def adapters_option(help: str) -> Callable[[Command], Command]:
    """Several adapters, given as `adapters`: their folders."""
    return click.option(
        "--adapter",
        "adapters",
        type=Path,
        multiple=True,
        callback=lambda _, __, given: tuple(map(adapter_path, given)),
        help=help,
    )


def weights_option(command: Command) -> Command:
    """How weights are kept, given as `weights`; the two deprecated options set it, too."""

    @functools.wraps(command)
    def run(weights: str, quantize: str | None, decode_kernel: str | None, **values: Any) -> Any:
        found = weights_of(weights, quantize, decode_kernel)
        for flag, old in (("--quantize", quantize), ("--decode-kernel", decode_kernel)):
            if old is not None:
                warnings.warn(
                    f"{flag} is deprecated; use --weights {found}", FlashBackWarning, stacklevel=2
                )
        return command(weights=found, **values)

    for option in (
        click.option("--decode-kernel", type=click.Choice(["pytorch", "numba"]), hidden=True),
        click.option("--quantize", type=click.Choice(["none", "int8"]), hidden=True),
        click.option(
            "--weights",
            type=click.Choice([str(value) for value in Weights]),
            default=str(Weights.FULL),
            show_default=True,
            help="On CPU: full: multiplied as is fastest, measured at load. numba: single tokens "
            "by numba's loops in any case. int8: linear layers with 8-bit weights; faster, not "
            "exact.",
        ),
    ):
        run = option(run)
    return run


def _gathered(command: Command) -> Command:
    @functools.wraps(command)
    def run(**values: Any) -> Any:
        given = {name: values.pop(name) for name in _NAMES if name in values}
        return command(options=ReaderOptions(**given), **values)

    return run


def _model_options(command: Command) -> Command:
    for option in (
        click.option("--trust-remote-code", is_flag=True, help="Run code of the model's folder."),
        click.option(
            "--dtype", default="auto", show_default=True, help="auto, float32 or bfloat16."
        ),
        click.option(
            "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
        ),
        click.option(
            "--model",
            default="flashback-mini",
            show_default=True,
            help="Hub name, folder or GGUF file of a decoder-only model, or a name that 'flashback "
            "models' lists.",
        ),
    ):
        command = option(command)
    return command
