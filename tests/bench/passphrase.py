"""What a guess at a passphrase costs: Argon2id as the vault has it, against one SHA-256."""

from __future__ import annotations

from hashlib import sha256

from meterd.device.vault import MEMORY_KIB, PASSES, new_passphrase, passphrase_key
from tests.bench.measure import median_cpu_s, tell

HASHES = 100_000
RATIO_MIN = 100_000  # what makes a dictionary of a day one of three centuries


def main() -> None:
    """Tell the ratio."""
    how, text = new_passphrase(), b"four words by dice"

    def hashes() -> None:
        for _ in range(HASHES):
            sha256(text).digest()

    many_s, one_s = median_cpu_s([hashes, lambda: passphrase_key(text.decode(), how)])
    ratio = one_s / (many_s / HASHES)
    tell(f"Argon2id, {MEMORY_KIB // 1024} MB, {PASSES} passes", f"{one_s * 1000:.0f} ms")
    tell("a guess / SHA-256", f"{ratio:,.0f}", f"≥ {RATIO_MIN:,}", met=ratio >= RATIO_MIN)
