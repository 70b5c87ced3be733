"""Unpack bodies that come in a content coding (RFC 9110, section 8.4.1), a bounded piece at a time.

Providers are asked for `identity`; some compress all the same, and some say so of a body that they did not compress.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator

import brotli
from urllib3.exceptions import DecodeError

#: The most bytes that one step unpacks.
PIECE = 64 * 1024
#: Codings that may lie over each other; none is known to use more than two.
MOST_CODINGS = 3
GZIP = b"\x1f\x8b"
#: How an answer begins that is not compressed: an object, or a stream of events. No coding makes such bytes.
PLAIN = re.compile(rb"[ \t\r\n]*\{|(?:data|event|id|retry):|: ")

Unpack = Callable[[Iterator[bytes]], Iterator[bytes]]


def unpacked(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yield a body without the codings that its Content-Encoding names, in pieces of bounded size.

    A body that is not in its coding, or in an unknown one, is yielded as it is. Raises DecodeError for one that breaks
    off, or is damaged.
    """
    named = [name.strip().lower() for name in encoding.split(",")]
    codings = [name for name in named if name not in ("", "identity")]
    if len(codings) > MOST_CODINGS:
        raise DecodeError("too many content codings")
    for coding in reversed(codings):
        pieces = _without(coding, pieces)
    return pieces


def _without(coding: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    start = b""
    for piece in pieces:
        start += piece
        if len(start) > 1:
            break
    unpack = _unpacking(coding, start)
    rest = _joined(start, pieces)
    yield from unpack(rest) if unpack else rest


def _joined(start: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield start
    yield from pieces


def _unpacking(coding: str, start: bytes) -> Unpack | None:
    """Choose by the label and the first bytes: the label alone is not to be trusted, and "deflate" means two things."""
    if coding in ("gzip", "x-gzip", "deflate"):
        if start.startswith(GZIP) or _is_zlib(start):
            return lambda pieces: _inflated(pieces, zlib.MAX_WBITS + 32)  # either, by its header
        if coding == "deflate" and not PLAIN.match(start):
            return lambda pieces: _inflated(pieces, -zlib.MAX_WBITS)
        return None
    return _unbrotlied if coding == "br" and not PLAIN.match(start) else None


def _is_zlib(start: bytes) -> bool:
    """Return whether bytes begin with zlib's header (RFC 1950, section 2.2)."""
    return len(start) > 1 and start[0] & 0x0F == zlib.DEFLATED and int.from_bytes(start[:2], "big") % 31 == 0


def _inflated(pieces: Iterator[bytes], wbits: int) -> Iterator[bytes]:
    """Yield the bytes of gzip's members, or of zlib's one stream; what follows the end is left out."""
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
        raise DecodeError("damaged") from error
    if not inflater.eof:
        raise DecodeError("broken off")


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
        raise DecodeError("damaged") from error
    if not unpacker.is_finished():
        raise DecodeError("broken off")
