"""Why a model of a name is not to be had from the Hugging Face hub, in one line."""

from collections.abc import Iterator

_EXPECTED = "expected a model's folder, a GGUF file, a hub model, or a name of `flashback models`"


def hub_reason(name: str, part: str, error: Exception) -> str | None:
    """What a user can do about an error of the hub's client; None: it is no such error.

    Args:
        name: that no folder on this machine has.
        part: of the model, that was looked for: its weights.
        error: of a library that called the client; its causes count.
    """
    from huggingface_hub import errors

    causes = list(_causes(error))

    def is_one_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_one_of(errors.GatedRepoError):
        return (
            f"found it on the hub, where its authors give access on request; ask for it at "
            f"https://huggingface.co/{name}, then log in with `hf auth login`"
        )
    if is_one_of(errors.RepositoryNotFoundError):
        return (
            f"found no such folder, and no such model on the hub; {_EXPECTED}; a private one needs "
            "`hf auth login`"
        )
    if is_one_of(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        return (
            f"found no such folder, no downloaded {part} of that name, and no connection to the "
            f"hub; {_EXPECTED}; is the name right, and this machine online?"
        )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
