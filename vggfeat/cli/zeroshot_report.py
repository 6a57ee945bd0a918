"""What the zero-shot commands print: lines for people, CSV, plain values for JSON."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from vggfeat.cli.terminal import table
from vggfeat.core.text import counted, duration, printable
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vggfeat.zeroshot.class_tree import TreeMistakes
    from vggfeat.zeroshot.evaluate import Evaluation, Figure, Generalised
    from vggfeat.zeroshot.fit import ZeroShotFitReport
    from vggfeat.zeroshot.predict import Predictions

_NAMES_SHOWN = 8


def one_form(*, as_json: bool, as_csv: bool) -> None:
    """Refuses two forms of the same output."""
    if as_json and as_csv:
        raise UsageError("--json and --csv are two forms of the same; give one of them")


def whole(text: str) -> tuple[int, ...]:
    """The numbers of `1,5`."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"top {text!r}: expected whole numbers such as 1,5")
    return tuple(int(word) for word in words)


def fitting_lines(done: ZeroShotFitReport) -> list[str]:
    """What a fit came to."""
    this_run = f"fitted in {duration(done.seconds)}" if done.anew else "fitted already"
    layers = printable(", ".join(done.layers))
    images = f"{counted(done.images, 'image')}, {done.held_out} held out for evaluate"
    what = f"{done.method} on {layers}, {counted(done.dims, 'number')} a class"
    lines = [
        f"{printable(done.out)}: {what}, {this_run}",
        f"  seen     {counted(len(done.seen), 'class')}, {images}",
        f"  unseen   {counted(len(done.unseen), 'class')}{_names(done.unseen)}",
    ]
    if done.calibration is not None:
        lines.append(f"  bias     {done.calibration:.4g} of seen classes, for --calibrate auto")
    return [*lines, *(f"  note     {printable(note)}" for note in done.notes)]


def _names(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return f": {printable(', '.join(names[:_NAMES_SHOWN]))}{more}"


def prediction_lines(found: Predictions, *, as_csv: bool) -> Iterator[str]:
    """A line an image; as CSV a line an image and class."""
    if as_csv:
        yield from _csv([("path", "rank", "class", "score")])
    else:
        classes = f"{counted(len(found.names), 'class')}{_names(found.names)}"
        yield f"{counted(len(found.paths), 'image')}, each one of {classes}"
    for position, path in enumerate(found.paths):
        pairs = found.of(position)
        if as_csv:
            yield from _csv(
                (path, rank, name, f"{score:.7g}") for rank, (name, score) in enumerate(pairs, 1)
            )
        else:
            answers = ", ".join(f"{printable(name)} {score:.3f}" for name, score in pairs)
            yield f"  {printable(path)}: {answers}"


def predictions_plain(found: Predictions) -> dict[str, Any]:
    """Ready for JSON."""
    return {
        "model": found.model,
        "classes": list(found.names),
        "bias": found.bias,
        "images": [
            {
                "path": path,
                "classes": [{"name": name, "score": score} for name, score in found.of(position)],
            }
            for position, path in enumerate(found.paths)
        ],
        "failures": [{"path": one.path, "reason": one.reason} for one in found.failures],
    }


def _csv(rows: Iterable[Sequence[object]]) -> list[str]:
    r"""Lines of CSV (RFC 4180) without their ends; bytes that are no UTF-8 as `\xNN`."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    plain = text.getvalue().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return plain.split("\r\n")[:-1]


_HEAD = ("images", "among", "top", "accuracy", "chance", "majority", "class mean")


def evaluation_lines(found: Evaluation) -> list[str]:
    """Tables of accuracies, of the generalised task, and of the tree."""
    cells = [_HEAD, *(_cells(figure) for figure in found.figures)]
    both = (found.generalised, found.calibrated)
    seen = f"{counted(found.seen_images, 'image')} of {counted(found.seen_classes, 'seen class')}"
    unseen = f"{found.unseen_images} of {counted(found.unseen_classes, 'unseen one')}"
    lines = [
        f"{printable(found.model)} on {printable(found.cache)}, accuracy averaged over classes",
        f"  {seen}, {unseen}",
        *(f"  {line}" for line in table(cells, "llrrrrr")),
        *(_generalised(one) for one in both if one is not None),
    ]
    if found.area is not None:
        lines.append(f"  area under seen over unseen accuracy, all biases: {found.area:.3f}")
    if found.mistakes:
        lines += ["", *(f"  {line}" for line in _tree_lines(found.mistakes))]
    return [*lines, *(f"  note: {printable(note)}" for note in found.notes)]


def _cells(figure: Figure) -> tuple[str, ...]:
    shares = (figure.accuracy, figure.chance, figure.majority, figure.class_mean)
    return (
        figure.of,
        figure.among,
        str(figure.top),
        *("-" if share is None else f"{share:.3f}" for share in shares),
    )


def _generalised(one: Generalised) -> str:
    bias = f" with bias {one.bias:.4g}" if one.bias else ""
    return (
        f"  among all{bias}: seen {one.seen:.3f}, unseen {one.unseen:.3f}, harmonic mean H "
        f"{one.harmonic:.3f}"
    )


def _tree_lines(mistakes: Sequence[TreeMistakes]) -> list[str]:
    head = ("images", "among", "hops", "guessed", "of mistakes", "height", "images by hops")
    rows = [
        (
            one.of,
            one.among,
            f"{one.hops:.2f}",
            f"{one.hops_guessed:.2f}",
            "-" if one.hops_of_mistakes is None else f"{one.hops_of_mistakes:.2f}",
            "-" if one.height_of_mistakes is None else f"{one.height_of_mistakes:.2f}",
            " ".join(f"{hops}:{count}" for hops, count in enumerate(one.histogram) if count),
        )
        for one in mistakes
    ]
    return ["distance in the class tree of the first answer", *table([head, *rows], "llrrrrl")]


def evaluation_csv(found: Evaluation) -> list[str]:
    """A line a figure."""
    rows: list[Sequence[object]] = [("figure", "images", "among", "top", "bias", "value")]
    for one in found.figures:
        values = {
            "accuracy": one.accuracy,
            "chance": one.chance,
            "majority": one.majority,
            "class mean": one.class_mean,
        }
        rows += [
            (name, one.of, one.among, one.top, 0.0, f"{value:.6f}")
            for name, value in values.items()
            if value is not None
        ]
    for both in (found.generalised, found.calibrated):
        if both is not None:
            named = {"seen": both.seen, "unseen": both.unseen, "harmonic mean": both.harmonic}
            rows += [(name, "", "all", 1, both.bias, f"{v:.6f}") for name, v in named.items()]
    if found.area is not None:
        rows.append(("area", "", "all", 1, "", f"{found.area:.6f}"))
    rows += [("hops", one.of, one.among, 1, 0.0, f"{one.hops:.6f}") for one in found.mistakes]
    return _csv(rows)
