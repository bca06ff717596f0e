"""Asks a peer's gRPC health service whether it serves: exit code 0 if so, else 1 and a sentence.

    python -I -S health.py [HOST:PORT]

Importing grpc for one question every few seconds makes a loaded machine slower than the question does good, so this speaks as much HTTP/2
(RFC 9113) as one unary call takes: the preface, HEADERS in a fixed HPACK encoding (RFC 7541) without dynamic table or Huffman code, the
empty request; then frames are skipped until the one message of the answer. Flow control never bites: nothing here is near 64 KiB.
"""

from __future__ import annotations

import _socket  # the module `socket` is a wrapper round it whose import takes twice as long as Python takes to start
import struct
import sys
import time

SECONDS = 4.0  # for all of it
MOST_BYTES = 65536  # of an answer that is no answer
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
SERVING = b"\x00\x00\x00\x00\x02\x08\x01"  # not compressed, two bytes: HealthCheckResponse(status=SERVING)


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def word(text: bytes) -> bytes:
    """A string literal of HPACK, shorter than 127 bytes."""
    return bytes([len(text)]) + text


def request(authority: bytes) -> bytes:
    """All that is sent."""
    fields = (
        b"\x83\x86"  # :method POST, :scheme http
        + (b"\x04" + word(b"/grpc.health.v1.Health/Check"))  # :path
        + (b"\x01" + word(authority))  # :authority
        + (b"\x0f\x10" + word(b"application/grpc"))  # content-type
        + (b"\x00" + word(b"te") + word(b"trailers"))
    )
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(SETTINGS, 0, 0)
        + frame(HEADERS, END_HEADERS, 1, fields)
        + frame(DATA, END_STREAM, 1, bytes(5))  # HealthCheckRequest(): the server as a whole
    )


def check(host: str, port: int, seconds: float = SECONDS) -> str:
    """What is wrong, "" if nothing is. host: an IPv4 address."""
    connection = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect((host, port))
        connection.sendall(request(f"{host}:{port}".encode()))
        return verdict(connection, time.monotonic() + seconds)
    except TimeoutError:
        return f"did not answer within {seconds:g} s"
    except OSError as error:
        return f"can't be reached: {error.strerror or error}"
    finally:
        connection.close()


def verdict(connection: _socket.socket, until: float) -> str:
    """Reads frames until the answer is there. Raises OSError."""
    received, message = b"", b""
    while len(received) < MOST_BYTES:
        connection.settimeout(max(until - time.monotonic(), 0.001))
        some = connection.recv(4096)
        if not some:
            return "hung up without an answer"
        received += some
        while len(received) >= 9 and len(received) >= 9 + (size := int.from_bytes(received[:3], "big")):
            kind, flags, stream = struct.unpack(">BBI", received[3:9])
            body, received = received[9 : 9 + size], received[9 + size :]
            if kind in (SETTINGS, PING) and not flags & ACK:
                connection.sendall(frame(kind, ACK, 0, body if kind == PING else b""))
            elif kind in (RST_STREAM, GOAWAY):
                return "refused the call"
            elif stream == 1:
                message += body if kind == DATA else b""
                if message == SERVING:
                    return ""
                if flags & END_STREAM:
                    return "does not serve" if message else "has no health service"
    return "does not speak HTTP/2"


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7000"
    wrong = check(address.rpartition(":")[0], int(address.rpartition(":")[2]))
    if wrong:
        print(f"{address} {wrong}", file=sys.stderr)
        sys.exit(1)
