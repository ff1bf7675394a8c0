"""A timestamp authority with a CA made up for the test: `openssl ts` behind a small HTTP server.

`python -m tests.tsa FOLDER PORT` serves one whose files `make_authority` has put there.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = """\
[tsa]
default_tsa = test
[test]
serial = {folder}/serial
crypto_device = builtin
signer_cert = {folder}/tsa.pem
certs = {folder}/root.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
ordering = yes
tsa_name = yes
ess_cert_id_chain = no
ess_cert_id_alg = sha256
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, {usage}
[req]
distinguished_name = name
[name]
"""


def openssl(*arguments: str | Path) -> bytes:
    command = ["openssl", *(str(argument) for argument in arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def make_authority(folder: Path, *, usage: str = "timeStamping") -> Path:
    """Make a root and an authority below it; return the file of the root's certificate."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "openssl.cnf"
    settings.write_text(SETTINGS.format(folder=folder, usage=usage))
    (folder / "serial").write_text("01\n")
    new = ("req", "-new", "-newkey", "rsa:2048", "-nodes", "-config", settings)
    root = ("-keyout", folder / "root.key", "-out", folder / "root.pem")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=root", "-extensions", "root", *root)
    leaf = ("-keyout", folder / "tsa.key", "-out", folder / "tsa.csr")
    openssl(*new, "-subj", "/CN=authority", *leaf)
    openssl(
        *("x509", "-req", "-days", "2", "-in", folder / "tsa.csr", "-out", folder / "tsa.pem"),
        *("-CA", folder / "root.pem", "-CAkey", folder / "root.key", "-CAcreateserial"),
        *("-extfile", settings, "-extensions", "leaf"),
    )
    return folder / "root.pem"


class Authority:
    """What the server answers.

    Attributes:
        folder: Of `make_authority`.
        asked: Each request as it came.
        answer: In the place of what the authority would say; None for that.
        status: Of HTTP.
        kind: Of content.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[bytes] = []
        self.answer: bytes | None = None
        self.status = 200
        self.kind = "application/timestamp-reply"

    def reply(self, request: bytes) -> bytes:
        """Return what the authority says to a request."""
        self.asked.append(request)
        if self.answer is not None:
            return self.answer
        asked = self.folder / f"asked-{len(self.asked)}"
        asked.write_bytes(request)
        settings = self.folder / "openssl.cnf"
        command = ["openssl", "ts", "-reply", "-config", str(settings), "-queryfile", str(asked)]
        return subprocess.run(command, check=False, capture_output=True).stdout


@contextmanager
def serving(authority: Authority, port: int = 0) -> Iterator[str]:
    """Serve it on loopback; yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = authority.reply(body)
            self.send_response(authority.status)
            self.send_header("Content-Type", authority.kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/tsr"
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with serving(Authority(Path(sys.argv[1])), int(sys.argv[2])):
        print("ready", flush=True)
        threading.Event().wait()
