import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askance.features.sources import SOURCES
from askance.features.sources.emoji import Emoji
from askance.features.sources.folder import Folder
from askance.features.sources.selection import Filter, lots, parse


def table_of(*classes, split=None, count=1):
    """List `count` samples of each class in each split: `name-0`, ..."""
    found = [(c, s, n) for c in classes for s in split or [""] for n in range(count)]
    keys = [f"{c}-{s}-{n}" for c, s, n in found]
    names = [c for c, _, _ in found]
    return pa.table({"key": keys, "class": names, "name": names, "split": [s for _, s, _ in found]})


CLASSES = st.lists(st.text("abc019", min_size=1, max_size=3), min_size=1, max_size=20, unique=True)


@given(classes=CLASSES, folds=st.integers(1, 5))
def test_folds_part_the_classes(classes, folds):
    table = table_of(*classes, count=2)
    parts = [Filter(folds=folds, fold=str(fold)).apply(table) for fold in range(folds)]
    found = [set(part["class"].to_pylist()) for part in parts]
    assert sum(map(len, found)) == len(classes)
    assert set().union(*found) == set(classes)
    both = Filter(folds=folds, fold=",".join(map(str, range(folds)))).apply(table)
    assert both.equals(table)


@given(classes=CLASSES, folds=st.integers(1, 5))
def test_the_fold_of_a_class_does_not_depend_on_the_other_classes(classes, folds):
    for fold in range(folds):
        chosen = Filter(folds=folds, fold=str(fold))
        whole = set(chosen.apply(table_of(*classes))["class"].to_pylist())
        fewer = (
            set(chosen.apply(table_of(*classes[1:]))["class"].to_pylist()) if classes[1:] else set()
        )
        assert fewer == whole - {classes[0]}


def test_folds_are_of_about_one_size():
    table = table_of(*map(str, range(1000)))
    counts = [len(Filter(folds=4, fold=str(fold)).apply(table)) for fold in range(4)]
    assert 200 < min(counts) <= max(counts) < 300


@given(classes=CLASSES, folds=st.integers(1, 4), limit=st.integers(0, 3), data=st.data())
def test_a_filter_commutes_with_the_split(classes, folds, limit, data):
    table = table_of(*classes, split=["train", "test"], count=3)
    fold = str(data.draw(st.integers(0, folds - 1)))
    at_once = Filter(split="test", folds=folds, fold=fold, limit=limit).apply(table)
    by_hand = Filter(folds=folds, fold=fold).apply(table)
    by_hand = by_hand.filter(pc.equal(by_hand["split"], "test"))
    assert at_once.equals(Filter(limit=limit).apply(by_hand))


@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    limit=st.integers(1, 7),
    data=st.data(),
)
def test_a_limit_takes_the_same_images_in_any_order(counts, limit, data):
    table = pa.concat_tables([table_of(f"c{n}", count=count) for n, count in enumerate(counts)])
    limited = Filter(limit=limit).apply(table)
    assert [limited["class"].to_pylist().count(f"c{n}") for n in range(len(counts))] == [
        min(count, limit) for count in counts
    ]
    order = data.draw(st.permutations(range(len(table))))
    shuffled = Filter(limit=limit).apply(table.take(order))
    assert sorted(shuffled["key"].to_pylist()) == sorted(limited["key"].to_pylist())
    kept = [key for key in table["key"].to_pylist() if key in set(limited["key"].to_pylist())]
    assert limited["key"].to_pylist() == kept
    fewer = set(Filter(limit=max(1, limit - 1)).apply(table)["key"].to_pylist())
    assert fewer <= set(kept)


def test_a_limit_does_not_take_the_first_images():
    taken = Filter(limit=3).apply(table_of("a", count=30))["key"].to_pylist()
    assert taken != ["a--0", "a--1", "a--2"]


def test_lots_are_the_same_everywhere_and_differ_by_purpose():
    golden = [
        5422022243568032121,
        6934215150401224029,
    ]  # made by the first version; they decide which images a limit takes
    assert lots("limit", ["a", "b"]).tolist() == golden
    assert lots("order", ["a"]).tolist() != golden[:1]


def test_classes_are_taken_by_pattern():
    table = table_of("cat", "cow", "dog")
    taken = Filter(classes="c*,dog").apply(table)["class"].to_pylist()
    assert taken == ["cat", "cow", "dog"]
    assert Filter(classes="?o?").apply(table)["class"].to_pylist() == ["cow", "dog"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (Filter(classes="cat,bird"), "expected a class like 'bird', got cat, dog"),
        (Filter(split="val"), "expected the split val, got test, train"),
        (Filter(folds=2), "folds=N and fold= with numbers from 0 to N - 1, got folds=2 fold=$"),
        (Filter(fold="0"), "got folds=0 fold=0"),
        (Filter(folds=2, fold="0,2"), "got folds=2 fold=0,2"),
        (Filter(folds=2, fold="a"), "got folds=2 fold=a"),
    ],
)
def test_a_filter_that_asks_for_what_is_not_there_is_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        chosen.apply(table_of("cat", "dog", split=["train", "test"]))


def test_a_split_of_a_source_without_splits_is_refused():
    with pytest.raises(ValueError, match="expected the split train, got a source without splits"):
        Filter(split="train").apply(table_of("cat"))


# ---- specs


def test_a_line_names_source_options_and_filter():
    selection = parse('emoji sets=5 split=train "classes=a b,c" folds=4 fold=1,2 limit=9 prefix=x')
    assert selection.source == Emoji(sets=5)
    assert selection.filter == Filter("train", "a b,c", 4, "1,2", 9)
    assert selection.prefix == "x"
    assert parse('folder "path=my photos"').source == Folder("my photos")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cifar", f"expected one of the sources {', '.join(SOURCES)}, got 'cifar'"),
        ("", f"expected one of the sources {', '.join(SOURCES)}, got ''"),
        ("emoji 'x", 'expected NAME option=value ..., got "emoji \'x": No closing quotation'),
        (
            "emoji colour=1",
            "of sets, size, split, classes, folds, fold, limit, prefix, got 'colour=1'",
        ),
        ("emoji sets", "got 'sets' in the source 'emoji sets'"),
        ("emoji sets=1 sets=2", "each option once, of sets, .* got 'sets=2' in the source"),
        ("emoji sets=many", "expected a whole number for sets=, got 'many' in 'emoji sets=many'"),
        ("emoji limit=-1", "expected a whole number for limit=, got '-1'"),
        ("shards", "expected the option path= in the source 'shards'"),
    ],
)
def test_a_bad_line_is_explained(line, message):
    with pytest.raises(ValueError, match=message):
        parse(line)


def test_a_pattern_after_an_exclamation_mark_takes_its_classes_out():
    table = table_of("cat", "dog", "dog-face", "ship")
    left = Filter(classes="!dog*").apply(table)["class"].to_pylist()
    assert left == ["cat", "ship"]
    left = Filter(classes="dog*,!dog-face").apply(table)["class"].to_pylist()
    assert left == ["dog"]
    with pytest.raises(ValueError, match="expected a class like '!bird', got cat, dog"):
        Filter(classes="!bird").apply(table)
