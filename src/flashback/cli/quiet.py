"""The beginning of a command that loads a model: say so at once, and silence libraries."""

import sys
from logging import ERROR

from flashback.cli.console import is_main_process, notes


def begin_loading(name: str) -> None:
    """Say what is loaded before PyTorch is imported, which takes seconds."""
    if is_main_process():
        notes.print(f"loading {name}", style="dim", markup=False)
    quiet_transformers()


def quiet_transformers() -> None:
    """No weight-loading bars and no advice; errors are raised, not printed."""
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    hub_logging.set_verbosity(ERROR)  # it tells of every try to reach the hub
    logging.disable_progress_bar()
    if sys.stderr.isatty():  # a download takes long enough to be shown
        enable_progress_bars()
