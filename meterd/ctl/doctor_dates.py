r"""Reads the one date that `meterctl doctor` wants out of a file of a foreign format. Pure.

>>> revoked_made_s(b"SSHKRL\n\0" + bytes(4 + 8) + (1_800_000_000).to_bytes(8), 0.0)
1800000000
"""

from __future__ import annotations

import ssl

from meterd.errors import EncodingError

_KRL_MAGIC = b"SSHKRL\n\0"  # OpenSSH's PROTOCOL.krl: then format (4), number (8), made at (8)
_KRL_HEAD_BYTES = 28
_DER_SEQUENCE, _DER_VERSION, _DER_TIMES = 0x30, 0xA0, (0x17, 0x18)


def certificate_ends_s(data: bytes) -> int:
    """Return until when a certificate is good (RFC 5280 section 4.1), Unix seconds.

    Raises:
        EncodingError: It is not a certificate in PEM.
    """
    try:
        begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
        text = data[data.index(begin) : data.index(end) + len(end)].decode("ascii")
        der = ssl.PEM_cert_to_DER_cert(text)
        fields = _der(_der(_der(der)[0][1])[0][1])
        if fields[0][0] == _DER_VERSION:
            fields = fields[1:]
        _, last = _der(fields[3][1])  # serial, algorithm, issuer, validity
        kind, value = last
        if fields[3][0] != _DER_SEQUENCE or kind not in _DER_TIMES:
            raise EncodingError("no validity where a certificate has it")
        digits = value.decode("ascii")
        if kind == _DER_TIMES[0]:  # two digits of the year: until 2049
            digits = f"{'20' if digits < '5' else '19'}{digits}"
        from datetime import UTC, datetime

        return int(datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp())
    except (ValueError, IndexError) as error:
        raise EncodingError(f"not a certificate: {error}") from error


def _der(data: bytes) -> list[tuple[int, bytes]]:
    """Return the items of a sequence's content (X.690): tag and content of each."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size]), at + size
        found.append((tag, data[at : at + length]))
        at += length
    return found


def revoked_made_s(data: bytes, written_s: float) -> int:
    """Return when a revocation list was made: it says so itself, else its file does."""
    if data.startswith(_KRL_MAGIC) and len(data) >= _KRL_HEAD_BYTES:
        return int.from_bytes(data[20:_KRL_HEAD_BYTES])
    return int(written_s)
