"""One error class for each decision that a caller takes; the cause is in the message.

Exit codes are those of sysexits(3), as far as outside scripts rely on them.

>>> raise ConfigError("2 mistakes in meterd.toml", hint="run `meterctl config check FILE`")
Traceback (most recent call last):
    ...
meterd.errors.ConfigError: 2 mistakes in meterd.toml
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class MeterdError(Exception):
    """Whatever meterd itself refuses or finds wrong.

    Attributes:
        hint: What the reader can do about it, a clause without a full stop; may be empty.
    """

    exit_code = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Keep `message` (lower case: what was expected, what came) and `hint`."""
        super().__init__(message)
        self.hint = hint


class UsageError(MeterdError):
    """The command was put wrongly: show the right form."""

    exit_code = 64


class AbsentError(MeterdError):
    """A thing that is needed is not there (port, broker, package): provide it, then try again."""

    exit_code = 69


class StorageError(MeterdError):
    """The card or the port failed, or the card is full: end the process, start afresh."""

    exit_code = 74


class BusyError(MeterdError):
    """Another process holds the port or the account: find it."""

    exit_code = 75


class DeniedError(MeterdError):
    """The operating system does not let us: mend the permission."""

    exit_code = 77


class ConfigError(MeterdError):
    """Settings, key and account do not fit each other: mend the settings."""

    exit_code = 78


class EncodingError(MeterdError):
    """Bytes from outside are not the one spelling of a message: refuse them."""

    exit_code = 65


class BlockRejectedError(MeterdError):
    """A block does not follow the head, or its seal is not the meter's: refuse it."""

    exit_code = 65


class LedgerDamagedError(MeterdError):
    """The meter's own account does not verify: stop, and let a technician look."""

    exit_code = 74


class AccountRefusedError(LedgerDamagedError):
    """The meter does not start on a damaged account, and starting it again does not help."""

    exit_code = 65


class VaultRefusedError(MeterdError):
    """The vault is not this device's, is older, was changed, or stays shut: refuse it."""

    exit_code = 77


class WrongPassphraseError(VaultRefusedError):
    """It is not this person's passphrase: count it, and let the next try wait."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield what failed, out of the groups that task groups make of it."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
