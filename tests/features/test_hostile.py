"""Hostile shards: refused with a reason, in bounded memory; nothing is run, nothing written.

A byte that is wrong can't be seen inside the content of a member, in the zeros that pad it to a
block, in a checksum field that still says the same number, and in an extended header's text, which
no checksum covers. Anywhere else it is found, or the scan would lose samples in silence.
"""

import os
import tarfile
import time
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askance.features import shards
from askance.features.shards import MAX_TEXT, scan
from askance.features.sources.selection import parse
from askance.features.sources.sets import unite
from askance.features.sources.shards import Shards

END = bytes(1024)
GIB = 1 << 30


def header(name="a.jpg", size=0, kind=tarfile.REGTYPE, target=""):
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.linkname = size, kind, target
    return entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def member(name="a.jpg", data=b"", kind=tarfile.REGTYPE):
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


def record(keyword, value):
    """Write a pax record: its own length, `keyword`=`value`, a line's end."""
    rest = b" %b=%b\n" % (keyword.encode(), value if isinstance(value, bytes) else value.encode())
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def pax(text, kind=tarfile.XHDTYPE):
    return member("././@PaxHeader", text, kind)


def samples(path, read=()):
    return [
        (key, [(m.extension, m.offset, m.size) for m in members])
        for key, members in scan(str(path), read)
    ]


@pytest.fixture
def write(tmp_path):
    def write(*parts):
        (tmp_path / "x.tar").write_bytes(b"".join(parts))
        return str(tmp_path / "x.tar")

    return write


# ---- members


UNSAFE = [
    "../x.jpg", "..", "a/../x.jpg", "a/..", "/etc/x.jpg", "//x.jpg", "..\\x.jpg", "a\\x.jpg",
    "C:/x.jpg", "c:x.jpg",
]  # fmt: skip
STRANGE = ["a\nb.jpg", "\x1b[2Ja.jpg", "caf\udce9.jpg", "n" * 5000 + ".jpg", "/" * 5000, ""]


@pytest.mark.parametrize("name", UNSAFE + STRANGE)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_a_name_that_is_not_safe_is_refused(write, name, kind):
    path = write(member("ok.jpg"), header(name, kind=kind), END)
    with pytest.raises(ValueError, match=r"plain files inside their own folder, got .* of .*x.tar"):
        samples(path)


@pytest.mark.parametrize("name", [b"../x.jpg", b"/x.jpg", b"a\0/../x.jpg", b"caf\xe9.jpg", b"a/"])
def test_a_name_that_an_extended_header_gives_is_not_trusted_either(write, name):
    path = write(pax(record("path", name)), header("ok.jpg"), END)
    with pytest.raises(ValueError, match="plain files inside their own folder"):
        samples(path)


def test_names_with_dots_and_spaces_are_fine(write):
    names = ["a..b/c..jpg", "..a/b.jpg", "a../b.jpg", ".../b.jpg", "./d e.jpg", "n02:1.jpg"]
    assert len(samples(write(*(member(name) for name in names), END))) == len(names)


# Links, devices, a pipe, GNU's sparse files and long links, others of Solaris and GNU.
@pytest.mark.parametrize("kind", [bytes([kind]) for kind in b"12346SKXM"])
def test_what_is_no_file_is_refused(write, kind):
    path = write(member("ok.jpg"), header(kind=kind, target="/etc/passwd"), END)
    with pytest.raises(ValueError, match=r"plain files .*, got the member 'a.jpg' of .* \(type b'"):
        samples(path)


@pytest.mark.parametrize(
    "text",
    [
        record("GNU.sparse.map", "0,1"),
        record("GNU.sparse.size", "99") + record("GNU.sparse.offset", "0"),
        record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0"),
        record("GNU.sparse.realsize", "99"),
    ],
)
def test_a_sparse_member_is_refused(write, text):
    with pytest.raises(ValueError, match=r"plain files .* \(type b'S'"):
        samples(write(pax(text), member(data=b"1"), END))


@pytest.mark.parametrize(
    "name", ["a.pkl", "a/b.PKL", "a.pickle", "a.pyd", "a.x.pkl", "a.pkl.gz", "a.pth", ".pkl"]
)
def test_a_pickle_is_refused(write, name):
    with pytest.raises(ValueError, match=r"no pickle, got the member .* run code in other readers"):
        samples(write(member("a.jpg"), member(name, b"cos\nsystem\n."), END))


def test_what_only_looks_like_a_pickle_is_none(write):
    names = ["pkl", "a.pkl.d/b.jpg", "a.pkl2", "pkl.jpg"]
    assert len(samples(write(*(member(name) for name in names), END))) == 3


def test_the_pickles_refused_are_those_that_webdataset_would_load():
    from webdataset.autodecode import decoders

    loads = {name for name, load in decoders.items() if "pickl" in load.__name__}
    assert loads | {"pth"} == {name for name in decoders if shards.PICKLE.search(f"a.{name}")}


# ---- how many, and how large


def test_too_many_members_of_a_shard_are_refused(write, monkeypatch):
    monkeypatch.setattr(shards, "MAX_MEMBERS", 20)
    members = [member(f"{n}.jpg") for n in range(21)]
    assert len(samples(write(*members[:20], END))) == 20
    with pytest.raises(ValueError, match=r"at most 20 members, got more in .*x.tar: .* smaller"):
        samples(write(*members, END))


def test_too_many_members_of_a_sample_are_refused(write):
    members = [member(f"a.{n}") for n in range(shards.MAX_SAMPLE + 1)]
    assert len(samples(write(*members[:-1], END))) == 1
    with pytest.raises(
        ValueError, match="at most 64 members, each .* in the sample 'a' of .*x.tar"
    ):
        samples(write(*members, END))


@pytest.mark.parametrize("names", [("a.jpg", "a.jpg"), ("a.jpg", "a.JPG")])
def test_two_members_of_a_sample_with_one_extension_are_refused(write, names):
    with pytest.raises(
        ValueError, match="its own extension, in the sample 'a' of .* another 'jpg'"
    ):
        samples(write(*(member(name) for name in names), END))


def test_a_key_that_comes_again_later_in_a_shard_is_refused(write):
    parts = [member(f"{key}.{kind}", b"1") for key in "aba" for kind in ("jpg", "cls")]
    with pytest.raises(ValueError, match=r"one sample per key, got 2 .* 'a': .*sample 0.*sample 2"):
        unite([parse(f"shards path={write(*parts, END)}")])


def peak(path):
    tracemalloc.start()
    try:
        for _ in scan(path):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_members(write):
    one = b"".join(member(f"{n}.jpg", b"1") for n in range(500))
    short, long = peak(write(one, END)), peak(write(one * 10, END))
    assert long < short + 10_000


def test_a_member_that_claims_more_than_the_file_holds_is_cut(write):
    path = write(member("ok.jpg"), header("a.jpg", 20 * GIB), END)
    with pytest.raises(ValueError, match=r"cut within the member 'a.jpg' .*behind 'ok.jpg'"):
        samples(path)


def test_a_member_of_20_gb_is_skipped_unread(write):
    """The reader refuses the row of an image that is too large: the others are fine."""
    path = write(header("a.jpg", 20 * GIB))
    os.truncate(path, 512 + 20 * GIB)
    with open(path, "ab") as file:  # noqa: PTH123 - a path as text, as scan takes it
        file.write(member("b.jpg", b"1") + END)
    assert samples(path) == [
        ("a", [("jpg", 512, 20 * GIB)]),
        ("b", [("jpg", 1024 + 20 * GIB, 1)]),
    ]
    assert peak(path) < 100_000


# ---- extended headers

NAMED = record("path", "b")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [4 * GIB, MAX_TEXT + 1, 2**80, -512, 0])
def test_an_extended_header_of_a_strange_size_is_not_read(write, kind, size):
    path = write(header("././@PaxHeader", size, kind))
    os.truncate(path, 5 * GIB)
    with pytest.raises(ValueError, match="an extended header of .* bytes at byte 0"):
        samples(path)
    assert peak_until_refused(path) < 100_000


def peak_until_refused(path):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            samples(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "one",
    [
        pax(record("mtime", "1")),
        pax(record("comment", "x"), tarfile.XGLTYPE),
        pax(record("path", "b.jpg")),
        member("././@LongLink", b"b.jpg\0", tarfile.GNUTYPE_LONGNAME),
    ],
)
def test_a_chain_of_extended_headers_is_refused(write, one):
    """tarfile follows it until Python's stack is full."""
    path = write(one * 1500, member(), END)
    with pytest.raises(RecursionError), tarfile.open(path) as tar:
        tar.getmembers()
    with pytest.raises(ValueError, match=r"a chain of 4 extended headers|a second, or a global"):
        samples(path)


def test_a_global_header_may_comment_and_no_more(write):
    """As in `git archive`."""
    comment = pax(record("comment", "abc"), tarfile.XGLTYPE)
    mtime = pax(record("mtime", "1.5") + record("path", "b.jpg"))
    assert samples(write(comment, mtime, member(), END)) == [("b", [("jpg", 2560, 0)])]
    for keyword in ("path", "size", "GNU.sparse.major"):
        other = pax(record(keyword, "1"), tarfile.XGLTYPE)
        with pytest.raises(ValueError, match="a second, or a global, header that sets a name or"):
            samples(write(other, member(), END))


@pytest.mark.parametrize("size", ["-1", "9" * 5000, "9" * 20, " 1", "1_0", "x", "", "\uff11"])
def test_a_size_that_is_none_is_refused(write, size):
    path = write(pax(record("size", size)), member(data=b"1"), END)
    with pytest.raises(ValueError, match=r"a size of '|-1 bytes|cut within the member 'a.jpg'"):
        samples(path)


@pytest.mark.parametrize("size", [-1, -512, 2**70])
def test_a_binary_size_that_is_none_is_refused(write, size):
    with pytest.raises(ValueError, match=r"plain files .* -|cut within the member 'a.jpg'"):
        samples(write(header("a.jpg", size), END))


@pytest.mark.parametrize("one", [pax(NAMED), member("x", b"b\0", tarfile.GNUTYPE_LONGNAME)])
def test_a_member_with_two_names_is_refused(write, one):
    """Which one counts, others may see in another way."""
    with pytest.raises(ValueError, match="a second, or a global, header that sets a name or size"):
        samples(write(pax(record("path", "c.jpg")), one, member(), END))


def test_a_folder_has_no_content_whatever_size_it_claims(write):
    path = write(header("a", 600, tarfile.DIRTYPE), member("a/b.jpg"), END)
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["a", "a/b.jpg"]
    assert samples(path) == [("a/b", [("jpg", 1024, 0)])]


def test_a_size_in_an_extended_header_counts(write):
    path = write(pax(record("size", "600")), header("a.jpg", 0), bytes(1024), member("b.jpg"), END)
    assert samples(path) == [("a", [("jpg", 1536, 600)]), ("b", [("jpg", 3072, 0)])]


DAMAGED = [b"0 path=x\n", b"7 path=b\n", b"99 path=b\n", b"9999999999 path=b\n", b" path=b\n"]


@pytest.mark.parametrize(
    "text",
    [*DAMAGED, b"9 path=bx", b"9 pathxb\n", NAMED + b"\0", NAMED + b"0 size=1\n", b"9" * 5000],
)
def test_a_damaged_extended_header_is_refused(write, text):
    with pytest.raises(ValueError, match="a damaged extended header at byte 0"):
        samples(write(pax(text), member(), END))


def test_an_extended_header_without_its_member_is_refused(write):
    with pytest.raises(ValueError, match="end of file header"):
        samples(write(member("ok.jpg"), pax(record("path", "b.jpg")), END))


@pytest.mark.parametrize("part", ["/", "a/", ".", ".pkl/", ".pklx", "a", "../"])
def test_any_name_is_judged_in_linear_time(part):
    """A rule that tries every start and every end would need 10^9 steps for each of these."""
    name = part * (50_000 // len(part)) + "\0"
    start = time.perf_counter()
    shards.UNSAFE.search(name)
    shards.NAME.fullmatch(name)
    shards.PICKLE.search(name)
    assert time.perf_counter() - start < 0.5


# ---- labels and votes


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.cls", b"1" * 5000, "a number or a name as the label of the sample 'a'"),
        ("a.cls", b"9999999999", "use up to 9 digits"),
        ("a.cls", b"n" * 1001, "use up to 9 digits or 1000 characters"),
        ("a.votes", b"[" * 100_000, "a JSON list of counts as the votes of the sample 'a'"),
        ("a.votes", b"[1" + b"0" * 5000 + b"]", "a JSON list of counts"),
        ("a.votes", b"[2147483648]", "a JSON list of counts"),
        ("a.votes", b"[1e999, NaN, true]", "a JSON list of counts"),
    ],
)
def test_a_hostile_label_or_vote_is_named(write, name, text, message):
    given = {"a.jpg": b"1", "a.cls": b"1", "a.votes": b"[1]"} | {name: text}
    path = write(*(member(name, data) for name, data in given.items()), END)
    with pytest.raises(ValueError, match=message):
        Shards(path, votes="votes").samples()


# ---- damage

FILES = {
    "a/1.jpg": b"\xff\x00" * 350,
    "a/1.cls": b"7",
    "README": b"",
    "b/2.png": b"x" * 512,
    "b/2.cls": b"",
}
PLAIN = b"".join(member(name, data) for name, data in FILES.items()) + END
LONG = (
    pax(record("comment", "x"), tarfile.XGLTYPE)
    + pax(record("path", "c/" * 60 + "3.jpg") + record("size", "3"))
    + member("3.jpg", b"abc")
    + member("d/" * 60 + "4.cls", b"4")
)


def _regions():
    """Return what each byte of PLAIN belongs to."""
    regions = []
    for data in FILES.values():
        regions += ["header"] * 148 + ["checksum"] * 8 + ["header"] * 356
        regions += ["content"] * (len(data) + -len(data) % 512)
    return [*regions, *["end"] * len(END)]


REGIONS = _regions()


@given(st.integers(0, len(PLAIN) - 1), st.integers(1, 255))
def test_a_wrong_byte_is_found_or_changes_no_sample(tmp_path_factory, place, change):
    path = tmp_path_factory.getbasetemp() / "wrong.tar"
    path.write_bytes(PLAIN)
    expected = samples(path)
    damaged = bytearray(PLAIN)
    damaged[place] ^= change
    path.write_bytes(damaged)
    if REGIONS[place] == "content":
        assert samples(path) == expected
        return
    try:
        found = samples(path)
    except ValueError:
        return
    assert REGIONS[place] == "checksum"
    assert found == expected


@given(st.integers(0, len(PLAIN)))
def test_a_cut_is_found_unless_only_zeros_of_the_end_are_lost(tmp_path_factory, length):
    path = tmp_path_factory.getbasetemp() / "cut.tar"
    path.write_bytes(PLAIN)
    expected = samples(path)
    path.write_bytes(PLAIN[:length])
    if length >= len(PLAIN) - 512:
        assert samples(path) == expected
    else:
        with pytest.raises(ValueError, match="expected a whole, uncompressed tar"):
            samples(path)


BLOCKS = (len(LONG + PLAIN)) // 512
PLACES = st.integers(0, len(LONG + PLAIN))
DAMAGE = st.one_of(
    st.tuples(st.just("change"), PLACES, st.binary(min_size=1, max_size=20)),
    st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=1500)),
    st.tuples(st.just("delete"), PLACES, st.integers(1, 1500).map(bytes)),
    st.tuples(st.just("swap"), st.integers(0, BLOCKS - 1), st.integers(0, BLOCKS - 1).map(bytes)),
)


def _damage(content, kind, place, what):
    if kind == "swap":
        blocks = [content[start:stop] for start, stop in pairwise(range(0, len(content) + 1, 512))]
        first, second = place % len(blocks), len(what) % len(blocks)
        blocks[first], blocks[second] = blocks[second], blocks[first]
        return b"".join(blocks)
    behind = {"change": len(what), "insert": 0, "delete": len(what)}[kind]
    return content[:place] + (b"" if kind == "delete" else what) + content[place + behind :]


@given(st.lists(DAMAGE, min_size=1, max_size=4))
def test_any_damage_is_refused_or_gives_members_inside_the_file(tmp_path_factory, damages):
    content = LONG + PLAIN
    for damage in damages:
        content = _damage(content, *damage)
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    path.write_bytes(content)
    found, refusal = [], ""
    try:
        found = samples(path, {"cls"})
    except ValueError as error:
        refusal = str(error)
    assert not refusal or refusal.startswith("expected ")
    for _, members in found:
        assert all(0 < offset <= offset + size <= len(content) for _, offset, size in members)
