"""Verifies COSE_Sign1 messages with the library cwt, which shares no code with meterd.

Reads lines of `public key, external_aad, message` in hex, and of a fourth, the payload, where that
does not travel within the message; prints for each the payload in hex, or `refused: ` and why. Runs
in an environment of its own, `.venv-oracles`.
"""

from __future__ import annotations

import sys
from hashlib import sha256

OKP, ED25519, ALG_ED25519 = 1, 6, -19


def main() -> None:
    from cwt import COSE, COSEKey, CWTError  # type: ignore[import-not-found]  # only there

    for line in sys.stdin:
        key, external_aad, message, *rest = map(bytes.fromhex, line.rstrip("\n").split(" "))
        (detached,) = rest or (None,)
        kid = sha256(key).digest()[:8]
        public = COSEKey.new({1: OKP, 2: kid, 3: ALG_ED25519, -1: ED25519, -2: key})
        try:
            payload = COSE.new().decode(
                message, public, external_aad=external_aad, detached_payload=detached
            )
        except (CWTError, ValueError) as error:
            print("refused:", error)
        else:
            print(payload.hex())


if __name__ == "__main__":
    main()
