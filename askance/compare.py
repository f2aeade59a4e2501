"""The `askance compare` command: what experiments do better or worse, on the same queries.

Comes in: names of experiments. Goes out: one page that needs nothing beside it, and its main
numbers in the terminal.
"""

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jinja2
import typer

from askance import stages
from askance.pipeline.artifacts import atomic
from askance.pipeline.command import command

if TYPE_CHECKING:
    from askance.differences import Comparison, Contrast
    from askance.experiments import Experiment

PAGE = jinja2.Environment(
    loader=jinja2.FileSystemLoader([Path(__file__).parent, *stages.__path__]),  # and report.css
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def run(
    names: Annotated[
        list[str],
        typer.Argument(metavar="EXP...", help="experiments, git revisions, or workspace"),
    ],
    *,
    baseline: Annotated[str, typer.Option(help="to compare with; default: the first EXP")] = "",
    head: Annotated[
        list[str], typer.Option(help="to compare; repeat for more; default: all that both have")
    ] = [],  # noqa: B006 - typer copies it
    out: Annotated[Path, typer.Option(help="the page to write")] = Path("results/compare.html"),
) -> None:
    """Compare experiments: parameters, code, and how well their heads foretold errors."""
    asked = list(dict.fromkeys([*filter(None, [baseline]), *names]))
    if len(asked) < 2:
        raise typer.BadParameter(
            f"expected two experiments or more, got {asked[0]} alone: name another, or a --baseline"
            " such as HEAD"
        )
    from askance.differences import compare
    from askance.experiments import read

    experiments = read(asked)
    comparisons = compare(experiments, heads(experiments, head))
    text = page(experiments, comparisons)
    with atomic(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    for each in comparisons:
        print("\n".join(lines(each)), end="\n\n")
    print(out)


def heads(experiments: Sequence["Experiment"], wanted: Sequence[str]) -> list[str]:
    """Return the heads to compare: those wanted, or all of the first experiment.

    Raises:
        ValueError: an experiment lacks one that is wanted, or has none of the first's.
    """
    first, *others = experiments
    for each in experiments:
        if missing := [head for head in wanted if head not in each.heads]:
            raise ValueError(
                f"expected head {missing[0]} in {each.name}, got {', '.join(each.heads)}"
            )
    own = [head for head, about in first.heads.items() if not about.get("reference")]
    for other in others:
        if not set(own) & set(other.heads):
            raise ValueError(
                f"expected a head that both have, got {', '.join(own)} in {first.name} and"
                f" {', '.join(other.heads)} in {other.name}: leave one out"
            )
    return list(wanted or first.heads)


def changes(experiments: Sequence["Experiment"]) -> list[tuple[str, list[str]]]:
    """Return which parameters and code differ, each with how it is in every experiment.

    Of code these are the lines added to and taken from the first experiment's.
    """
    from askance.experiments import code_changes

    first, *others = experiments
    names = dict.fromkeys(name for each in experiments for name in each.params)
    params = [(name, [_value(each.params, name) for each in experiments]) for name in names]
    changed = [code_changes(first, other) for other in others]
    paths = dict.fromkeys(path for each in changed for path in each)
    code = [(path, ["", *(each.get(path, "") for each in changed)]) for path in paths]
    return [(name, values) for name, values in params if len(set(values)) > 1] + code


def _value(params: dict[str, Any], name: str) -> str:
    value = params.get(name, "")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def lines(comparison: "Comparison") -> Iterator[str]:
    """Yield what the terminal shows of a comparison: all but AURC."""
    from askance.differences import METRICS

    first, other = comparison.first, comparison.other
    yield f"{_titled(other)} against {_titled(first)}"
    rows = changes([first, other])
    wide = max((len(name) for name, _ in rows), default=0)
    for name, values in rows:
        yield f"  {name:{wide}}  {' > '.join(map(_short, filter(None, values)))}"
    if not rows:
        yield "  no parameter and no code differs"
    names = labels([comparison])
    wide = max(map(len, names.values()))
    sets = max(len(cell.set) for cell in comparison.found)
    for metric in ("r_auroc", "r1"):
        for each in comparison.of(metric):
            yield (
                f"  {METRICS[metric]:7}  {names[each.cell.head]:{wide}}  {each.cell.set:{sets}}"
                f"  {each.before:.3f} > {each.after:.3f}  {_interval(each)}  {each.marked}"
            )
        if same := comparison.same(metric):
            yield f"  {METRICS[metric]:7}  equal: {', '.join(names[head] for head in same)}"
    yield from (f"  {note}" for note in comparison.notes())


def labels(comparisons: Sequence["Comparison"]) -> dict[str, str]:
    """Return the heads that are compared, with their names as they are shown."""
    from askance.eval.figures import marked

    about = comparisons[0].first.heads
    heads = dict.fromkeys(cell.head for each in comparisons for cell in each.found)
    return {head: marked(about[head]) if head in about else head for head in heads}


def _titled(experiment: "Experiment") -> str:
    about = experiment.commit[:8], experiment.created
    return f"{experiment.name} ({', '.join(filter(None, about))})"


def _short(text: str) -> str:
    return textwrap.shorten(text, 60, placeholder=" ...")


def _interval(each: "Contrast") -> str:
    number = each.difference
    if each.equal or math.isnan(number):
        return " " * len("+0.000 [+0.000, +0.000]")
    return f"{number:+.3f} [{number.lower:+.3f}, {number.upper:+.3f}]"


def page(experiments: Sequence["Experiment"], comparisons: Sequence["Comparison"]) -> str:
    """Compose the page; every text in it is escaped."""
    from askance.differences import METRICS, Cell
    from askance.eval.figures import MARKS
    from askance.eval.summary import AVERAGE

    names = labels(comparisons)
    sets = dict.fromkeys(cell.set for each in comparisons for cell in each.found)
    reach = _reach([each for one in comparisons for each in one.of("r_auroc")])
    return PAGE.get_template("compare.html").render(
        first=experiments[0],
        experiments=experiments,
        comparisons=comparisons,
        changes=changes(experiments),
        names=names,
        metrics=METRICS,
        columns=sorted(sets, key=lambda name: name != AVERAGE),
        average=AVERAGE,
        cell=Cell,
        reach=reach,
        step=_step(reach),
        marks={mark: said for mark, said in MARKS.items() if mark in "".join(names.values())},
    )


def _reach(found: Sequence["Contrast"]) -> float:
    """Return how far from 0 the widest interval goes, and a bit more."""
    ends = [abs(end) for c in found for end in (c.difference.lower, c.difference.upper)]
    return 1.08 * max([0.005, *filter(math.isfinite, ends)])


def _step(reach: float) -> float:
    """Return the largest round number below a reach: 1, 2 or 5 of a power of ten.

    Example:
        >>> _step(0.037), _step(0.5)
        (0.02, 0.2)
    """
    power = 10.0 ** math.floor(math.log10(reach))
    return max(round(n * power, 9) for n in (0.5, 1, 2, 5) if n * power < reach)


main = command(run)

if __name__ == "__main__":
    typer.run(main)
