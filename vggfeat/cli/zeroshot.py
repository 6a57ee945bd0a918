"""`vggfeat zeroshot fit`, `predict` and `evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vggfeat.cli.terminal import exit_codes, print_json, set_up_logging

zeroshot = typer.Typer(
    name="zeroshot",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Tell classes apart of which there is no image, by vectors of their names.",
)

Model = Annotated[str, typer.Argument(help="A model of vggfeat zeroshot fit.", metavar="MODEL.h5")]
Cache = Annotated[str, typer.Argument(help="A cache with the layers.", metavar="FILE.h5")]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Classes of the images: a CSV file of path,label. [default: the folder an image lies "
        "in]",
        metavar="FILE.csv",
        show_default=False,
    ),
]
Tree = Annotated[
    str | None,
    typer.Option(
        help="Tree over the classes: a CSV file of child,parent.",
        metavar="FILE.csv",
        show_default=False,
    ),
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:N or mps; only where torch is needed.")
]
Json = Annotated[bool, typer.Option("--json", help="The outcome as JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="The outcome as CSV.")]


@zeroshot.command()
def fit(
    cache: Cache,
    *,
    vectors: Annotated[
        str,
        typer.Option(
            help="Vectors of the classes: word2vec (text or binary) or GloVe, also .gz; or a table "
            "such as attributes, .csv, .tsv, .npz, att_splits.mat, predicate-matrix-*.txt.",
            metavar="FILE",
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="The model file to make.", metavar="MODEL.h5")
    ],
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            "--layer",
            help="Layers of the cache, joined. [default: all that are vectors]",
            metavar="NAME,...",
            show_default=False,
        ),
    ] = None,
    labels: Labels = None,
    seen: Annotated[
        str | None,
        typer.Option(
            help="Classes to learn from: a file with one a line, or names separated by commas; "
            "the others are unseen.",
            metavar="FILE|NAME,...",
        ),
    ] = None,
    unseen: Annotated[
        str | None,
        typer.Option(
            help="Classes to leave out, likewise; they need no images. Without --seen and --unseen "
            "all are learnt from.",
            metavar="FILE|NAME,...",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="eszsl, in closed form, or devise, trained with a ranking loss.", metavar="METHOD"
        ),
    ] = "eszsl",
    attention: Annotated[
        bool,
        typer.Option("--attention", help="Learn weights of the layers, each image its own."),
    ] = False,
    norm: Annotated[
        str,
        typer.Option(
            help="Of each layer: standard (mean 0, deviation 1), l2 (unit length) or ssr (signed "
            "root before).",
            metavar="NORM",
        ),
    ] = "standard",
    gamma: Annotated[
        float | None,
        typer.Option(
            help="Of eszsl: regulariser of the features' side. [default: chosen on classes held "
            "out]",
            metavar="X",
            show_default=False,
        ),
    ] = None,
    lambda_: Annotated[
        float | None,
        typer.Option(
            "--lambda",
            help="Of eszsl: regulariser of the class vectors' side. [default: likewise]",
            metavar="X",
            show_default=False,
        ),
    ] = None,
    margin: Annotated[float, typer.Option(help="Of devise's loss.", metavar="X")] = 0.1,
    tree: Tree = None,
    beta: Annotated[
        float,
        typer.Option(
            help="With --tree: how sharply the cost of a mistake grows with the height of what the "
            "classes have in common; with a large one all cost the same.",
            metavar="X",
        ),
    ] = 4.0,
    held_out: Annotated[
        float,
        typer.Option(help="Share of each seen class's images kept for evaluate.", metavar="SHARE"),
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.", metavar="N")] = 0,
    device: Device = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Fit again, whatever is there.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No notices, only errors.")] = False,
) -> None:
    """Learn from images of seen classes how images and class vectors belong together.

    The model file appears whole or not at all. The same command again finds it done.
    """
    with exit_codes():
        set_up_logging(quiet=quiet or as_json, verbose=False)
        from vggfeat.cli.zeroshot_report import fitting_lines
        from vggfeat.zeroshot.fit import fit_zeroshot
        from vggfeat.zeroshot.settings import ZeroShotSettings

        given: dict[str, Any] = {
            "layers": layers,
            "labels": labels,
            "seen": seen,
            "unseen": unseen,
            "method": method,
            "attention": attention,
            "norm": norm,
            "gamma": gamma,
            "lambda_": lambda_,
            "margin": margin,
            "tree": tree,
            "beta": beta,
            "held_out": held_out,
            "seed": seed,
            "device": device,
        }
        done = fit_zeroshot(cache, vectors, out, ZeroShotSettings(**given), fresh=fresh)
        if as_json:
            print_json(done)
        elif not quiet:
            typer.echo("\n".join(fitting_lines(done)))


@zeroshot.command()
def predict(
    model: Model,
    cache: Annotated[
        str,
        typer.Argument(
            help="A cache: its images are told, or it says how the images given are to be taken.",
            metavar="FILE.h5",
        ),
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders or archives instead.", metavar="[IMAGE...]"),
    ] = None,
    *,
    classes: Annotated[
        str,
        typer.Option(
            help="To choose from: all, seen or unseen of the model's; or a file with one a line, "
            "or names separated by commas.",
            metavar="WHICH",
        ),
    ] = "all",
    vectors: Annotated[
        str | None,
        typer.Option(
            help="Vectors of those of --classes that the model does not know yet.",
            metavar="FILE",
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Classes an image.", metavar="K")] = 5,
    calibrate: Annotated[
        str,
        typer.Option(
            help="Take a bias from the scores of seen classes: a number, or auto, found when the "
            "model was fitted.",
            metavar="X|auto",
        ),
    ] = "0",
    device: Device = "auto",
    model_weights: Annotated[
        str | None,
        typer.Option(
            help="For images: the network's weights, where they are not found as the cache names "
            "them.",
            metavar="FILE",
        ),
    ] = None,
    use: Annotated[
        list[str] | None,
        typer.Option(
            help="For images: what fuse or reduce fitted when they made the cache; by default the "
            "file beside it, FILE.model.h5. Several times for a cache made in several steps.",
            metavar="MODEL.h5",
        ),
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Tell the classes of a cache's images, or of others, best first.

    Classes need no image: the vector of a new one is enough (--classes with --vectors).
    """
    with exit_codes():
        set_up_logging(quiet=as_json or as_csv, verbose=False)
        from vggfeat.cli.zeroshot_report import one_form, prediction_lines, predictions_plain
        from vggfeat.zeroshot.predict import predict_zeroshot

        one_form(as_json=as_json, as_csv=as_csv)
        found = predict_zeroshot(
            model, cache, images or (), classes=classes, vectors=vectors, top=top,
            calibrate=calibrate, device=device, model_weights=model_weights, use=use or (),
        )  # fmt: skip
        for failure in found.failures:
            typer.echo(f"vggfeat: warning: image {failure.path}: {failure.reason}", err=True)
        if as_json:
            print_json(predictions_plain(found))
        else:
            for line in prediction_lines(found, as_csv=as_csv):
                typer.echo(line)


@zeroshot.command()
def evaluate(
    model: Model,
    cache: Cache,
    *,
    labels: Labels = None,
    tree: Tree = None,
    top: Annotated[
        str, typer.Option(help="Numbers of classes that may be answered.", metavar="K,...")
    ] = "1,5",
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Also with a bias taken from the scores of seen classes: a number, or auto, found "
            "when the model was fitted.",
            metavar="X|auto",
        ),
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Judge a model by images that it has not learnt from, beside chance and other baselines.

    Accuracies are averaged over classes: of unseen classes among themselves, and of both kinds
    among all with their harmonic mean H. With a tree, how far off mistakes are.
    """
    with exit_codes():
        set_up_logging(quiet=as_json or as_csv, verbose=False)
        from vggfeat.cli.zeroshot_report import evaluation_csv, evaluation_lines, one_form, whole
        from vggfeat.zeroshot.evaluate import evaluate_zeroshot

        one_form(as_json=as_json, as_csv=as_csv)
        found = evaluate_zeroshot(
            model, cache, labels=labels, tree=tree, top=whole(top), calibrate=calibrate
        )
        if as_json:
            print_json(found)
        else:
            lines = evaluation_csv(found) if as_csv else evaluation_lines(found)
            typer.echo("\n".join(lines))
