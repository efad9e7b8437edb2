"""Turn off what libraries print on their own; our messages say what matters."""


def quiet_transformers() -> None:
    """No weight-loading bars and no advice; errors are raised, not printed."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
