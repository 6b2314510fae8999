"""The parser of `tta-jax`."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from tta_jax._internal.version import VERSION
from tta_jax.config import Config

_EXAMPLES = """examples:
  tta-jax demo
  tta-jax choose --data photos/ --encoders installed --out choice
  tta-jax predict choice --data new-photos/ --out predictions.csv
  tta-jax extract --data photos/ --encoder efficientnet-lite0 --out photos.npz
  tta-jax analyze --source photos.npz --target scans.npz
  tta-jax analyze --source a.npz --target b.npz --head h.npz --folds 4 --out result
  tta-jax scan --sources sources/ --targets targets/ --out scan
  tta-jax rank scan --target t
  tta-jax metrics --features b.npz && tta-jax evaluate --features features/
  tta-jax report result && tta-jax info b.npz

Files: .npz, .safetensors or .parquet with `features` (n, d), `labels` (n,),
optional `class_names`, `groups`, `labelled`; .npy as `extract` writes it, or a
pair FEATURES.npy,LABELS.npy (or .csv, .jsonl, .parquet with a column of labels); a
folder of parts NAME_0.npy, NAME_1.npy, or of img_emb/ and metadata/. A .parquet
may hold several columns: --column, --label-column. Items whose label is
missing, or -1 beside class indices, are unlabelled. A head is an .npz with
`weight` (K, d) and `bias` (K,).
"""


_EXTRACT = """examples:
  tta-jax data prepare 20newsgroups-sci
  tta-jax extract --data 20newsgroups-sci --split train --encoder minilm \\
    --out sci.npz
  tta-jax extract --data photos/ --encoder efficientnet-lite0 --out photos.npz \\
    --on-error skip
  tta-jax extract --data photos/ --encoder timm:resnet50.a1_in1k --out photos.npz
  tta-jax extract --data photos/ --out photos.npz \\
    --encoder 'onnx:net.onnx#output=features,preprocess=imagenet'
  tta-jax extract --data reviews.csv --column review --label-column stars \\
    --group-column author --encoder minilm --out reviews.parquet
  tta-jax extract --data 'shards-{000..012}.tar' --encoder squeezenet --out s.npz
  tta-jax extract --data hf:dair-ai/emotion#split --split test --encoder minilm \\
    --out emotion.npz
"""

_CHOOSE = """examples:
  tta-jax choose --data photos/ --encoders installed --out choice
  tta-jax choose --data photos/ --out choice --budget 10min \\
    --encoders efficientnet-lite0,squeezenet,timm:resnet50.a1_in1k
  tta-jax choose --data reviews.csv --encoders minilm,word-vectors --until sure
  tta-jax choose --features features/    # features/ENCODER/TASK.npz, or one file each
  tta-jax predict choice --data new-photos/ --out predictions.csv

A round looks at twice as many items as were seen before, 200 in the first one. Its
items are predicted by classifiers that learned from the items before. Figures are
those of linear classifiers on frozen features, on these items.
"""

_PREDICT = """examples:
  tta-jax predict choice --data new-photos/ --out predictions.csv
  tta-jax predict choice/choice.tta --data reviews.csv --column text --probabilities
"""

_SCAN = """examples:
  # every pair; the best 3 of each target in full
  tta-jax scan --sources sources/ --targets targets/ --out scan
  # what it would take
  tta-jax scan --sources a.npz b.npz --targets t.npz --out scan --dry-run
  tta-jax scan --sources f/ --out s3://bucket/scan \\
    --coordinator host0:1234 --processes 4 --process-id 0
  tta-jax rank scan --target t

Rerun the same command to resume. Rows are Parquet below DIR/pairs, for pandas,
Polars or DuckDB.
"""

_METRICS = """examples:
  # all that need nothing of a source
  tta-jax metrics --features scans.npz
  tta-jax metrics --features scans.npz --source photos.npz --head photos_head.npz
  tta-jax metrics --features features/ --metrics logme leep knn --out scores.csv
  # what each needs, costs and comes from
  tta-jax metrics --list

Larger means better transfer. A metric that cannot be computed is blank with a
reason. Folders below DIR name the encoders of files that do not tell theirs:
features/minilm/reviews.npz, features/wordllama/reviews.npz.
"""

_EVALUATE = """examples:
  # scores of all files, and linear probes of them as the truth
  tta-jax evaluate --features features/
  tta-jax evaluate --features train/ --test test/ --by knn --per-target
  # columns encoder,target,metric,value and encoder,target,accuracy
  tta-jax evaluate scores.csv --truth finetuned.csv
  tta-jax evaluate scan/ --truth finetuned.csv --out evaluation

Tables are long (a row for each metric) or wide (a column for each). Mean
accuracy elsewhere, the number of parameters and k-NN are always in the table: a
score has to beat them. Of losses, bounds and errors lower is better.
"""

_REPORT = """examples:
  # what analyze --out wrote; result/report.html
  tta-jax report result/
  # with figures of the features, too
  tta-jax report result/analysis.tta --source a.npz --target b.npz
  # several analyses compared
  tta-jax report tta_demo --out demo.html
  # of a scan of any size the best 50 pairs and targets
  tta-jax report scan --top 50
  tta-jax report evaluation --title "Which score for our encoders?"

The page is one file: open it in any browser, send it, print it. Headers of
tables sort; nothing is fetched from anywhere. An analysis does not hold the
features: --source and --target give those that were analysed.
"""

_DATA_DIR = (
    "where TFDS data sets are prepared (default: $TFDS_DATA_DIR or "
    "~/tensorflow_datasets)"
)


class _Parser(argparse.ArgumentParser):
    """Errors are one line and exit status 2."""

    def error(self, message: str):
        print(f"{self.prog}: {message} (try {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _seed(text: str) -> int:
    # JAX takes 32 bits: larger seeds would repeat smaller ones.
    if not (
        text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**32
    ):
        raise argparse.ArgumentTypeError(
            f"found {text[:40]!r}; give a whole number from 0 to {2**32 - 1}"
        )
    return int(text)


def _number_or_all(text: str) -> int | str:
    if text == "all":
        return text
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(
            f"found {text[:40]!r}; give a whole number, or all"
        )
    return int(text)


def _add_config(command: argparse.ArgumentParser) -> None:
    options = command.add_argument_group("configuration (docs/configuration.md)")
    for field in dataclasses.fields(Config):
        flag, says = field.name.replace("_", "-"), field.metadata["says"]
        if isinstance(field.default, bool):
            options.add_argument(
                f"--no-{flag}" if field.default else f"--{flag}",
                dest=field.name,
                action="store_false" if field.default else "store_true",
                default=None,
                help=f"do not {says}" if field.default else says,
            )
            continue
        if field.metadata["choices"]:
            says += f"; one of {', '.join(field.metadata['choices'])}"
        if field.default is not None:
            says += f" (default {field.default})"
        kinds = {"int": int, "float": float, "str": str}
        options.add_argument(
            f"--{flag}",
            type=kinds[field.type.split()[0]],
            metavar=field.metadata["metavar"],
            help=says.replace("%", "%%"),
        )


def _add_columns(command: argparse.ArgumentParser) -> None:
    """Which columns of a table are features and labels."""
    command.add_argument(
        "--column",
        metavar="NAME",
        help="of the features in .parquet files: of lists of numbers, or what f0, f1, "
        '... begin with (default: "features", or the only such one)',
    )
    command.add_argument(
        "--label-column",
        metavar="NAME",
        help="of the labels in .parquet files and other tables (default: "
        '"labels" or "label")',
    )
    command.add_argument(
        "--group-column",
        metavar="NAME",
        help="of groups in the same tables, e.g. patients; items of one group stay "
        'together in splits (default: "groups" in .parquet)',
    )
    _add_text_format(command, "labels in .csv, .tsv and .jsonl files")


def _add_text_format(command: argparse.ArgumentParser, what: str) -> None:
    """How texts are stored in tables."""
    command.add_argument(
        "--separator",
        metavar="CHARACTER",
        help=f'of {what}: one character, or "tab" (default: "," in .csv)',
    )
    command.add_argument(
        "--encoding",
        metavar="NAME",
        help=f"of {what}, e.g. latin-1, cp1252, utf-16 (default: utf-8)",
    )


def _add_raw_data(command: argparse.ArgumentParser, required: bool) -> None:
    """Where raw data are, and which columns of them count."""
    command.add_argument(
        "--data",
        required=required,
        metavar="NAME|DIR|FILE",
        help="a task (tta-jax data list), a TFDS data set by name or folder, "
        "hf:OWNER/NAME[#CONFIG] of the Hugging Face hub, a folder that save_to_disk of "
        "datasets wrote, a folder with one sub-folder of pictures for each class, a "
        "table (.csv, .tsv, .parquet, .arrow, .feather, .jsonl) or a folder of its "
        "shards, or WebDataset shards such as 'shards-{000..012}.tar'",
    )
    command.add_argument(
        "--split",
        metavar="SPLIT",
        help=(
            "e.g. test, or train[:500] of TFDS data; a sub-folder; a value of a "
            "column 'split'"
        ),
    )
    command.add_argument(
        "--column",
        metavar="NAME",
        help="of texts or pictures (default: text or image); of WebDataset shards the "
        "suffix of a member, e.g. txt",
    )
    command.add_argument(
        "--label-column",
        metavar="NAME",
        help="of labels (default: label, where there is one); of WebDataset shards a "
        "field of .json (default: .cls)",
    )
    command.add_argument(
        "--id-column",
        metavar="NAME",
        help="what to call items in messages and in the record of skipped ones",
    )
    command.add_argument(
        "--group-column",
        metavar="NAME",
        help="of groups, e.g. patients: items of one group stay together in splits",
    )
    _add_text_format(command, "texts in .csv, .tsv and .jsonl files")
    command.add_argument("--data-dir", metavar="DIR", help=_DATA_DIR)


def _add_models(command: argparse.ArgumentParser) -> None:
    """How encoders of other libraries run."""
    models = command.add_argument_group("models of other libraries")
    models.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda, cuda:1 or mps (default: the best that there is)",
    )
    models.add_argument(
        "--precision",
        default="float32",
        metavar="NAME",
        help="of weights and activations: float32, float16 or bfloat16 (default: "
        "%(default)s)",
    )
    models.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let Python code that comes with a model run; read it before",
    )


def _add_extraction(command: argparse.ArgumentParser) -> None:
    """How items are encoded and kept."""
    command.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="items a call (default: the encoder's)",
    )
    command.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help=(
            "an item that cannot be read: stop, or leave it out and record it "
            "(default: %(default)s)"
        ),
    )
    command.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        help="keep nothing, read nothing kept",
    )


def _add_formats(command: argparse.ArgumentParser, *names: str) -> None:
    shape = command.add_mutually_exclusive_group()
    for name in names:
        said = "Markdown" if name == "markdown" else name.upper()
        shape.add_argument(f"--{name}", action="store_true", help=f"print as {said}")


def _add_scores(command: argparse.ArgumentParser) -> None:
    _add_columns(command)
    command.add_argument(
        "--source",
        nargs="+",
        metavar="FILE|DIR",
        help="source features of the same encoders, for LEEP, OTDD ...",
    )
    command.add_argument(
        "--head",
        nargs="+",
        metavar="FILE.npz",
        help=(
            "source classifiers on raw features: one, or SOURCE.npz or ENCODER.npz "
            "for each"
        ),
    )
    command.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="only these (default: all; see tta-jax metrics --list)",
    )


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tta-jax",
        description=(
            "Will a pre-trained classifier transfer to a new task, and why? "
            "Bounds before any fine-tuning."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tta-jax {VERSION}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", parser_class=_Parser
    )

    demo = commands.add_parser(
        "demo", help="train a small encoder on handwritten digits and rank target tasks"
    )
    demo.add_argument(
        "--out",
        default="tta_demo",
        metavar="DIR",
        help="where the figure and results go (default: %(default)s)",
    )
    demo.add_argument(
        "--seed",
        type=_seed,
        default=0,
        help="of training and splits (default: %(default)s)",
    )
    demo.add_argument("--json", action="store_true", help="print the table as JSON")

    analyze = commands.add_parser(
        "analyze",
        help="bound the target loss of one source and one target",
        description=(
            "Bound the target loss of the transformed source classifier, and "
            "explain it."
        ),
        epilog="files:" + _EXAMPLES.split("Files:")[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    analyze.add_argument(
        "--source", required=True, metavar="FILE", help="labelled source features"
    )
    analyze.add_argument(
        "--target",
        required=True,
        metavar="FILE",
        help="target features, with all, some or no labels",
    )
    _add_columns(analyze)
    analyze.add_argument(
        "--head",
        metavar="FILE",
        help="source classifier on raw features; fitted when left out",
    )
    analyze.add_argument(
        "--subdivide",
        type=int,
        metavar="N",
        help="divide source classes by their features until there are N; for a source "
        "with fewer classes than the target (twice "
        "the target's are a good N), not with --head",
    )
    analyze.add_argument(
        "--out",
        metavar="DIR",
        help="write analysis.tta, result.json, summary.txt and figure.png there",
    )
    analyze.add_argument("--json", action="store_true", help="print the result as JSON")
    analyze.add_argument(
        "--seed",
        type=_seed,
        default=0,
        help="of splits and starts (default: %(default)s)",
    )
    _add_config(analyze)

    scan = commands.add_parser(
        "scan",
        help="every pair of many sources and targets, resumable, on all devices",
        description="Screen every pair of sources and targets and refine the best "
        "sources of each target. Names are those of the "
        "files; files of different encoders are not paired.",
        epilog=_SCAN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    scan.add_argument(
        "--sources",
        required=True,
        nargs="+",
        metavar="FILE|DIR",
        help="files of features, or folders of them",
    )
    scan.add_argument(
        "--targets",
        nargs="+",
        metavar="FILE|DIR",
        help="the same (default: the sources)",
    )
    _add_columns(scan)
    scan.add_argument(
        "--out",
        metavar="DIR|URI",
        help="where the rows go; an earlier scan there is continued",
    )
    scan.add_argument(
        "--pairs", metavar="FILE.csv", help="only these pairs: columns source,target"
    )
    scan.add_argument(
        "--refine",
        type=_number_or_all,
        default=3,
        metavar="N|all",
        help="sources of each target to refine (default: %(default)s)",
    )
    scan.add_argument(
        "--heads",
        metavar="DIR",
        help="source classifiers on raw features, SOURCE.npz; others are fitted",
    )
    scan.add_argument(
        "--arrays",
        action="store_true",
        help="also write assignment, class prior and label mixing of every pair",
    )
    scan.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="to use on each device (default: what is free)",
    )
    scan.add_argument(
        "--seed", type=_seed, default=0, help="of splits (default: %(default)s)"
    )
    scan.add_argument(
        "--dry-run",
        action="store_true",
        help="print pairs, shapes, compilations, memory and time, and stop",
    )
    scan.add_argument(
        "--json", action="store_true", help="print the summary as JSON, and no progress"
    )
    several = scan.add_argument_group(
        "several hosts: the same command on each, with a folder that all of them see"
    )
    several.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of the first process"
    )
    several.add_argument(
        "--processes", type=int, metavar="N", help="how many there are"
    )
    several.add_argument("--process-id", type=int, metavar="K", help="this one, from 0")
    several.add_argument(
        "--distributed",
        action="store_true",
        help="as TPU pods and Slurm tell, without the three above",
    )
    _add_config(scan)

    rank = commands.add_parser(
        "rank", help="the best sources and encoders for a target, from a scan"
    )
    rank.add_argument("folder", metavar="DIR|URI", help="what scan wrote")
    rank.add_argument(
        "--target", metavar="NAME", help="the best sources and encoders for it"
    )
    rank.add_argument("--source", metavar="NAME", help="the targets it serves best")
    rank.add_argument(
        "--by",
        default="score",
        metavar="FIGURE",
        help="e.g. relatedness, tight, target_loss (default: %(default)s)",
    )
    rank.add_argument(
        "--top",
        type=int,
        default=10,
        metavar="N",
        help="rows (default: %(default)s; 0 for all)",
    )
    _add_formats(rank, "json", "csv", "markdown")

    metrics = commands.add_parser(
        "metrics",
        help="published transferability scores of features",
        description=(
            "Every published score of target features: LEEP, LogME, H-score, "
            "TransRate, OTDD and others."
        ),
        epilog=_METRICS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    metrics.add_argument(
        "--features",
        nargs="+",
        metavar="FILE|DIR",
        help="target features, or folders of them",
    )
    _add_scores(metrics)
    metrics.add_argument(
        "--out",
        metavar="FILE",
        help="write the rows there, .csv or .parquet; replaced if it exists",
    )
    metrics.add_argument(
        "--list",
        action="store_true",
        help="what each metric needs, costs and comes from",
    )
    metrics.add_argument(
        "--seed",
        type=_seed,
        default=0,
        help="of folds and starts (default: %(default)s)",
    )
    _add_formats(metrics, "json", "csv")

    evaluate = commands.add_parser(
        "evaluate",
        help=(
            "which score to trust: all of them against fine-tuned or probed accuracies"
        ),
        description=(
            "How well scores rank models, with intervals, against baselines "
            "that are always in the table."
        ),
        epilog=_EVALUATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument(
        "scores",
        nargs="*",
        metavar="SCAN|FILE",
        help="a scan, or tables of scores, .csv or .parquet",
    )
    evaluate.add_argument(
        "--truth",
        metavar="FILE",
        help="encoder[,source],target,accuracy (default: the probes of the scan)",
    )
    evaluate.add_argument(
        "--truth-column",
        metavar="NAME",
        help="which column of it (default: accuracy, truth or value)",
    )
    evaluate.add_argument(
        "--features",
        nargs="+",
        metavar="FILE|DIR",
        help="compute scores and truth of these files, a quarter of each held out",
    )
    evaluate.add_argument(
        "--test",
        nargs="+",
        metavar="FILE|DIR",
        help="files of the same names to judge the probes on",
    )
    evaluate.add_argument(
        "--by",
        choices=("linear_probe", "knn"),
        default="linear_probe",
        help="which probe is the truth (default: %(default)s)",
    )
    _add_scores(evaluate)
    evaluate.add_argument(
        "--parameters",
        metavar="FILE.csv",
        help="encoder,parameters: ranks by size (default: known encoders)",
    )
    evaluate.add_argument(
        "--statistic",
        default="weighted_tau",
        metavar="NAME",
        help="pearson, spearman, kendall, weighted_tau (default; SciPy's), "
        "weighted_tau_by_score, weighted_tau_by_truth, regret_1, "
        "regret_3, relative_accuracy",
    )
    evaluate.add_argument(
        "--target", metavar="NAME", help="the table of this target alone"
    )
    evaluate.add_argument(
        "--per-target", action="store_true", help="a column for each target"
    )
    evaluate.add_argument(
        "--over",
        choices=("both", "targets", "models"),
        default="both",
        help="what the bootstrap draws (default: %(default)s)",
    )
    evaluate.add_argument(
        "--replicates",
        type=int,
        default=1000,
        metavar="N",
        help="of the bootstrap (default: %(default)s)",
    )
    evaluate.add_argument(
        "--interval",
        type=float,
        default=0.95,
        metavar="LEVEL",
        help="(default: %(default)s)",
    )
    evaluate.add_argument(
        "--seed",
        type=_seed,
        default=0,
        help="of splits and draws (default: %(default)s)",
    )
    evaluate.add_argument(
        "--out",
        metavar="DIR",
        help="write evaluation.tta, tables, summary.txt and figure.png there",
    )
    _add_formats(evaluate, "json", "csv", "markdown")

    report = commands.add_parser(
        "report",
        help="one HTML page of an analysis, several, a scan or an evaluation",
        description=(
            "Figures and tables of what other commands wrote, as one "
            "self-contained HTML file."
        ),
        epilog=_REPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_argument(
        "path",
        metavar="FILE|DIR",
        help=(
            "a .tta file, a folder of them, or what scan or evaluate wrote (a scan's "
            "URI, too)"
        ),
    )
    report.add_argument(
        "--out",
        metavar="FILE.html",
        help=(
            "the page (default: report.html in the folder, or beside the file); "
            "replaced if it exists"
        ),
    )
    report.add_argument(
        "--source",
        metavar="FILE",
        help="source features of the analysis, for figures of features and classes",
    )
    report.add_argument("--target", metavar="FILE", help="target features likewise")
    report.add_argument(
        "--title", metavar="TEXT", help="of the page (default: names the tasks)"
    )
    report.add_argument(
        "--top",
        type=int,
        default=20,
        metavar="N",
        help=(
            "pairs or targets that long tables and figures show (default: %(default)s)"
        ),
    )
    report.add_argument(
        "--json", action="store_true", help="print what was written as JSON"
    )

    extract = commands.add_parser(
        "extract",
        help="features of pictures or texts under a pre-trained encoder",
        description=(
            "Features of raw data under an encoder, for `analyze`. Work is "
            "kept: an interrupted call goes on where it was."
        ),
        epilog=_EXTRACT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_raw_data(extract, required=True)
    extract.add_argument(
        "--encoder",
        required=True,
        metavar="NAME",
        help="one of tta-jax data list, or a model of another library: timm:NAME, "
        "hf:REPO|DIR, st:REPO|DIR, torchvision:NAME, onnx:FILE, keras:FILE, "
        "module:FILE.py:FUNCTION; settings follow after #",
    )
    extract.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=".npz, .npy, .safetensors or .parquet; replaced if it exists",
    )
    extract.add_argument(
        "--limit", type=int, metavar="N", help="at most N items, drawn at random"
    )
    extract.add_argument(
        "--seed", type=_seed, default=0, help="of --limit (default: %(default)s)"
    )
    extract.add_argument(
        "--weights",
        metavar="FILE|DIR",
        help="weights in place of the encoder's own; the checkpoint of a module",
    )
    _add_models(extract)
    _add_extraction(extract)
    extract.add_argument(
        "--head", metavar="FILE.npz", help="write the encoder's own classifier there"
    )
    extract.add_argument(
        "--json", action="store_true", help="print what was written as JSON"
    )

    choose = commands.add_parser(
        "choose",
        help="which of several encoders to take, how good it will be, how sure that is",
        description=(
            "Race encoders on growing parts of labelled data: the one on which a "
            "linear classifier does best, without encoding everything with all of "
            "them. Work is kept: an interrupted call goes on where it was."
        ),
        epilog=_CHOOSE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_raw_data(choose, required=False)
    choose.add_argument(
        "--encoders",
        metavar="NAME,NAME|installed",
        help="as --encoder of tta-jax extract, several between commas; installed: all "
        "that are ready",
    )
    choose.add_argument(
        "--features",
        nargs="+",
        metavar="FILE|DIR",
        help="choose among ready features of the same items, a file for each encoder",
    )
    choose.add_argument(
        "--budget",
        metavar="LIMIT",
        help="a time, e.g. 90s, 10min or 2h, or a number of encoded items, e.g. "
        "5000items",
    )
    choose.add_argument(
        "--measure",
        choices=("loss", "accuracy"),
        default="loss",
        help="what is compared: loss in shares of guessing's, or accuracy above chance "
        "(default: %(default)s)",
    )
    choose.add_argument(
        "--margin",
        type=float,
        metavar="X",
        help="a difference that does not matter (default: 0.02 of loss, 0.01 of "
        "accuracy)",
    )
    choose.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="LEVEL",
        help="with which the best one is never said to be worse (default: %(default)s)",
    )
    choose.add_argument(
        "--until",
        choices=("enough", "sure"),
        default="enough",
        help="enough: stop where a wrong choice is expected to cost less than a "
        "quarter of the margin; sure: go on until all others are worse, or equal "
        "within the margin (default: %(default)s)",
    )
    _add_models(choose)
    _add_extraction(choose)
    choose.add_argument(
        "--seed",
        type=_seed,
        default=0,
        help="of the order of the items (default: %(default)s)",
    )
    choose.add_argument(
        "--out",
        metavar="DIR",
        help="write choice.tta (with the classifier, see tta-jax predict), "
        "choice.json, table.csv, summary.txt and figure.png there",
    )
    _add_formats(choose, "json", "csv", "markdown")

    predict = commands.add_parser(
        "predict",
        help="classes of new items, by the classifier that choose has made",
        description=(
            "Predict the class of every item with the encoder that was chosen and the "
            "classifier fitted on it. Where items have labels, the share that is right "
            "is said, too."
        ),
        epilog=_PREDICT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predict.add_argument(
        "classifier",
        metavar="FILE|DIR",
        help="a .tta of choose, or the folder that it lies in",
    )
    _add_raw_data(predict, required=True)
    _add_extraction(predict)
    predict.add_argument(
        "--probabilities",
        action="store_true",
        help="write the probability of every class, too",
    )
    predict.add_argument(
        "--out",
        metavar="FILE",
        help="write the rows there, .csv or .parquet (default: print them as CSV)",
    )
    predict.add_argument("--json", action="store_true", help="print rows as JSON")

    doctor = commands.add_parser(
        "doctor",
        help="what is installed and ready: packages, devices, caches, encoders, tasks",
        description="Show what is installed and ready, in one page: the first thing "
        "to look at, and to send with a question, when something does not work.",
    )
    doctor.add_argument("--data-dir", metavar="DIR", help=_DATA_DIR)
    doctor.add_argument("--json", action="store_true", help="print it as JSON")

    data = commands.add_parser(
        "data", help="real tasks that ordinary packages hold: list, prepare"
    )
    actions = data.add_subparsers(
        dest="action", metavar="ACTION", parser_class=_Parser, required=True
    )
    listing = actions.add_parser(
        "list", help="tasks and encoders, their licences, and what is installed"
    )
    prepare = actions.add_parser(
        "prepare", help="write a task as a TFDS data set, once"
    )
    prepare.add_argument("name", metavar="NAME", help="see: tta-jax data list")
    prepare.add_argument(
        "--from",
        dest="source",
        metavar="FILE|DIR",
        help="a Debian package, or the folder it was unpacked in",
    )
    for action in (listing, prepare):
        action.add_argument("--data-dir", metavar="DIR", help=_DATA_DIR)
        action.add_argument("--json", action="store_true", help="print as JSON")

    info = commands.add_parser(
        "info", help="what a file of features, or a saved analysis, holds"
    )
    info.add_argument(
        "file",
        metavar="FILE",
        help=(
            "features in any format that extract writes, FEATURES.npy,LABELS.npy, or "
            "a saved analysis"
        ),
    )
    _add_columns(info)
    info.add_argument("--json", action="store_true", help="print as JSON")
    return parser
