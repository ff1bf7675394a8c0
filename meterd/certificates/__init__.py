"""The certificates of a street: a root that stays offline, and one certificate for each device.

A broker lets in whom the root has signed for, and calls it by the name in its certificate. So the
root signs for a name only, `a-z 0-9 -`: `+`, `#` and `/` mean something in a topic. Keys are made
where they are used and never leave: a device sends a request, and gets a certificate back.

The folder of the root holds

    root.key      0600; whoever has it, and its passphrase, can be every device of the street
    root.crt      what devices and broker trust
    root.crl      what the broker refuses, written anew with each revocation
    index         one line for each certificate and each revocation; lines are only ever added
    issued/       every certificate, as it was sent

A certificate is issued once its line is in the index, and not before; it is revoked likewise. If
power fails in between, the index says more than the files beside it, and never less: the same
command again completes them. Whoever can write the index can hide a revocation from the next list,
and cannot make a certificate.

Keys are ECDSA P-256. Ed25519 works with mosquitto, OpenSSL 3 and Python as well, but not with every
broker that a city may choose, nor with the secure elements that could keep a device's key.
"""

from __future__ import annotations

from meterd.errors import AbsentError

try:  # an extra: only where certificates are made is this package imported
    from cryptography import x509  # noqa: F401 - asked for once, for all modules here
except ImportError as missing:
    raise AbsentError(
        "certificates need the package cryptography",
        hint="install meterd with its extra: `pip install 'meterd[ca]'`",
    ) from missing
