"""The emulator of GCS without three of its faults.

It takes a carriage return at the end of an object for the end of a line, and drops it. It refuses
connections when more than five wait. With each object it writes, it writes a list of all of them,
which only another emulator would read.
"""

import sys
from http.server import HTTPServer

from gcp_storage_emulator import server, storage
from gcp_storage_emulator.__main__ import main

decode, read = server._decode_raw_data, server._read_data


def _decode(raw, handler):
    handler.raw = decode(raw, handler)
    return handler.raw


def _read(handler, query):
    found = read(handler, query)
    # gcsfs separates parts by "\n", so that a "\r" before it belongs to the object.
    if (handler.headers.get("Content-Type") or "").startswith("multipart/related"):
        part = handler.raw.rpartition(b"\n--")[0]
        if handler.raw.startswith(b"--==0==\n") and part.endswith(found["content"] + b"\r"):
            found["content"] += b"\r"
    return found


if __name__ == "__main__":
    server._decode_raw_data, server._read_data = _decode, _read
    storage.Storage._write_config_to_file = lambda self: None
    HTTPServer.request_queue_size = 128
    sys.exit(main())
