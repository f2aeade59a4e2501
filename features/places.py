"""Places of shards: paths and URLs that do nothing but give bytes.

A place may come from a stranger's table or index: it is checked before anything is opened.
"""

import re
from pathlib import Path

# fsspec and webdataset know others, which run commands, read other files or chain (`a::b`).
PROTOCOLS = frozenset(
    {"abfs", "abfss", "az", "file", "gcs", "gs", "hdfs", "http", "https", "memory", "s3", "s3a"}
)
# Azure writes container@account. A secret may hold slashes; what follows a port is no secret.
CREDENTIALS = re.compile(
    r"(?<!abfs)(?<!abfss)(?<!az)://[^/?#]*@|://[^/?#@]*:(?![0-9]+[/?#])[^@]*@", re.IGNORECASE
)


def check_place(shard: str) -> None:
    """Check that a shard's place is a path or a URL that does nothing but give bytes.

    Raises:
        ValueError: a command (`pipe:`), another protocol than `PROTOCOLS`, a chain (`a::b`), a URL
            with credentials (the message doesn't repeat them), a folder or a device.
    """
    scheme = re.match(r"\s*([a-z][a-z0-9+.-]+)\s*:", shard.lower())
    if scheme and scheme[1] == "pipe":
        raise ValueError(
            "expected a path or URL of a shard, got a command (pipe:...): commands are never run;"
            " write its output to a file"
        )
    if CREDENTIALS.search(shard):
        raise ValueError(
            "expected a URL without credentials, got one with a user or password before its host:"
            " credentials come from the environment"
        )
    is_url = scheme or "://" in shard
    if is_url and re.search(r"[?].*=", shard):
        raise ValueError(
            "expected a URL without a query, which may hold a signature or a token, got one:"
            " credentials come from the environment"
        )
    if "::" in shard or (is_url and shard.partition("://")[0] not in PROTOCOLS):
        raise ValueError(
            f"expected a path, or a URL of {', '.join(sorted(PROTOCOLS))}, got {shard!r}: copy the"
            " shard to one of them (a file's own name with a colon needs ./ before it)"
        )
    if "://" not in shard and Path(shard).exists() and not Path(shard).is_file():
        raise ValueError(f"expected a tar, got a folder or device at {shard}: write {shard}/*.tar")
