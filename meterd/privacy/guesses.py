"""Slows down whoever guesses passphrases: each mistake about a person doubles the wait.

>>> guesses = Guesses()
>>> [guesses.wrong("s-17", now_ms=0) for _ in range(4)]
[0, 0, 8000, 16000]
>>> guesses.wait_ms("s-17", now_ms=15_000), guesses.wait_ms("s-18", now_ms=15_000)
(1000, 0)
"""

from __future__ import annotations

FREE = 2  # mistakes that cost nothing: everybody mistypes
FIRST_MS = 8_000
WAIT_MS_MAX = 900_000  # a hundred guesses a day, and who forgot is not kept out for longer


class Guesses:
    """Who has been guessed at, how often, and until when nobody is listened to.

    It holds no more names than it is told of: ask it about those only whom the vault knows.
    """

    def __init__(self) -> None:
        """Begin without any mistake."""
        self._wrong: dict[str, tuple[int, int]] = {}

    def wait_ms(self, name: str, now_ms: int) -> int:
        """Return how long no passphrase for `name` is looked at, the right one neither."""
        return max(0, self._wrong.get(name, (0, now_ms))[1] - now_ms)

    def wrong(self, name: str, now_ms: int) -> int:
        """Note a mistake; return the wait that follows."""
        mistakes = self._wrong.get(name, (0, 0))[0] + 1
        wait_ms = 0
        if mistakes > FREE:
            wait_ms = min(FIRST_MS << min(mistakes - FREE - 1, 20), WAIT_MS_MAX)
        self._wrong[name] = (mistakes, now_ms + wait_ms)
        return wait_ms

    def right(self, name: str) -> None:
        """Forget the mistakes about `name`."""
        self._wrong.pop(name, None)
