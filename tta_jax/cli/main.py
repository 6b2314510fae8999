"""The entry point of `tta-jax`."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from tta_jax._internal.text import PrintableStream, one_line
from tta_jax.cli.parser import make_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files need not be text.
            stream.reconfigure(errors="backslashreplace")
    # Names of tasks, classes and files are not to steer the terminal.
    with (
        contextlib.redirect_stdout(PrintableStream(sys.stdout)),
        contextlib.redirect_stderr(PrintableStream(sys.stderr)),
    ):
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    parser = make_parser()
    try:
        args = parser.parse_args(argv)
        if args.command is None:
            parser.print_help()
            return 0
        # XLA warns, wrongly, of another processor when it reads compiled programs back.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if args.command == "scan":
            # OpenBLAS threads wait busily and take the cores from those of XLA.
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from tta_jax.cli import _terminal

        if args.command not in ("info", "data", "doctor", "rank"):
            _terminal.keep_compilations()
        command = importlib.import_module(f"tta_jax.cli.{args.command}")
        with _terminal.notes():
            return getattr(command, args.command)(args)
    except SystemExit as stop:
        return int(stop.code or 0)
    except BrokenPipeError:
        return 1
    except (ValueError, OSError) as error:
        print(f"tta-jax: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"tta-jax: {str(stop) or 'interrupted'}", file=sys.stderr)
        if argv is None:
            # Threads of XLA are still at work; a normal exit would wait for them.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        return 1
    except Exception as error:
        print(
            (
                f"tta-jax: the analysis failed: {type(error).__name__}: "
                f"{one_line(error)[:400]}"
            ),
            file=sys.stderr,
        )
        return 1
