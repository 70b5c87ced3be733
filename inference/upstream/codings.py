"""Content codings of an answer (RFC 9110, section 8.4.1), decoded in pieces of bounded size.

Providers are asked for `identity`, but some compress anyway, and some label an uncompressed body as compressed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from itertools import chain

import brotli

#: Most bytes that one step of decompression yields.
PIECE = 64 * 1024
#: Most codings of one body; no provider is known to use more than two.
MOST_CODINGS = 3
GZIP = b"\x1f\x8b"
#: The beginning of an uncompressed answer: an object, or a stream of events. No coding produces such bytes.
PLAIN = re.compile(rb"[ \t\r\n]*\{|(?:data|event|id|retry):|: ")


class DamagedBody(ValueError):
    """A body can't be decoded, or decodes to more bytes than may be read."""


def unpacked(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yield a body decoded by its Content-Encoding, in pieces of bounded size.

    A body that is not in the named coding, or in an unknown one, is yielded unchanged. Raises DamagedBody for a
    truncated or damaged body.
    """
    named = [name.strip().lower() for name in encoding.split(",")]
    codings = [name for name in named if name not in ("", "identity")]
    if len(codings) > MOST_CODINGS:
        raise DamagedBody("too many content codings")
    for coding in reversed(codings):
        pieces = _decoded(coding, pieces)
    return pieces


def _decoded(coding: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decode one coding by its label and the first bytes: labels may be wrong, and "deflate" has two meanings."""
    start = b""
    for piece in pieces:
        start += piece
        if len(start) > 1:
            break
    body: Iterator[bytes] = chain([start], pieces)
    # zlib's header: RFC 1950, section 2.2
    is_zlib = len(start) > 1 and start[0] & 0x0F == zlib.DEFLATED and int.from_bytes(start[:2], "big") % 31 == 0
    if coding in ("gzip", "x-gzip", "deflate") and (is_zlib or start.startswith(GZIP)):
        body = _inflated(body, zlib.MAX_WBITS + 32)  # gzip or zlib, by its header
    elif coding in ("deflate", "br") and not PLAIN.match(start):
        body = _inflated(body, -zlib.MAX_WBITS) if coding == "deflate" else _unbrotlied(body)
    yield from body


def _inflated(pieces: Iterator[bytes], wbits: int) -> Iterator[bytes]:
    """Yield the bytes of all gzip members, or of the one zlib stream; trailing bytes are left out."""
    inflater = zlib.decompressobj(wbits)
    try:
        for piece in pieces:
            data = piece
            while data:
                if inflater.eof:
                    if data[0] != GZIP[0]:  # no further member
                        break
                    inflater = zlib.decompressobj(wbits)
                yield inflater.decompress(data, PIECE)
                data = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
        yield inflater.flush()
    except zlib.error as error:
        raise DamagedBody("damaged") from error
    if not inflater.eof:
        raise DamagedBody("broken off")


def _unbrotlied(pieces: Iterator[bytes]) -> Iterator[bytes]:
    unpacker = brotli.Decompressor()
    try:
        for piece in pieces:
            data = piece
            while not unpacker.is_finished():
                unpacked_piece = unpacker.process(data, output_buffer_limit=PIECE)
                data = b""
                yield unpacked_piece
                if not unpacked_piece and unpacker.can_accept_more_data():
                    break
    except brotli.error as error:
        raise DamagedBody("damaged") from error
    if not unpacker.is_finished():
        raise DamagedBody("broken off")
