"""The ``xmix`` command: convert, pair, report, train, inspect, cache, doctor, bench, demo.

An error is one line that says what, where and what to do, with exit status 2; ``--debug`` gives
the traceback. A command returns its result as words and as plain values, and `main` prints one of
the two. Work is imported when a command needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from xmix_data.commands import bench, cache, convert, demo, doctor, inspect, pair, report, train
from xmix_data.commands.answer import Answer
from xmix_data.errors import PreemptedError, XMixError
from xmix_data.progress import printable

__all__ = ["main"]


_ERROR, _INTERRUPTED, _UNREAD, _TERMINATED = 2, 130, 141, 143
"""Exit statuses of an error, of Ctrl-C, of an output that nobody reads, and of SIGTERM.

The last three are those that a shell reports of a process that SIGINT, SIGPIPE or SIGTERM ended.
"""

COMMANDS = (convert, pair, report, train, inspect, cache, doctor, bench, demo)
"""Modules of the commands, in the order in which the help lists them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Arguments of the command line; default those of this process.

    Returns:
        The exit status: 0, 2 after an error, 130 after Ctrl-C, 141 where nobody reads the output,
        143 after SIGTERM; a training goes on from its checkpoint.
    """
    # Without colours to begin with, and numba's would write an escape sequence at the very end.
    os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
    _escape_what_cannot_be_printed()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(_BEGIN)
        return _flushed(0)
    try:
        options = _parsed(arguments)
    except SystemExit as stop:  # of --help, --version and what cannot be parsed
        stop.code = _flushed(_ERROR if stop.code else 0)
        raise
    _log_to_stderr()
    try:
        status = _flushed(_status(options))
    except BaseException:  # with --debug
        _exit_alone(_ERROR, traceback.format_exc())
        raise
    if status:
        _exit_alone(status)
    return status


def _exit_alone(status: int, last_words: str = "") -> None:
    if "torch" in sys.modules:  # other commands do without
        from xmix_data.ranks import exit_alone

        exit_alone(status, last_words)


def _escape_what_cannot_be_printed() -> None:
    """Have a terminal of few characters show the others as escapes: λ, names of classes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it is None where the shell closed it
            stream.reconfigure(errors="backslashreplace")


def _flushed(status: int) -> int:
    """Write out all output, and return the exit status: an error's where that fails."""
    try:
        if sys.stdout is not None:  # it is None where the shell closed it
            sys.stdout.flush()
    except OSError as error:
        status = status or _failed(OSError(error.errno, error.strerror, "standard output"))
        # What could not be written would be tried, and complained about, once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status


def _status(options: argparse.Namespace) -> int:
    # `xmix bench --json FILE` writes a file, and prints words.
    as_json = options.json is True
    try:
        # Libraries print as they like; with --json nothing but the document goes to stdout.
        aside: contextlib.AbstractContextManager[object] = (
            contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        )
        # A training listens itself: all its processes end after the same step.
        listens = options.run is train.run
        with aside, contextlib.nullcontext() if listens else _unwound_by_sigterm():
            answer: Answer | None = options.run(options)
        if answer is not None:
            _print(answer, as_json=as_json)
    except KeyboardInterrupt as interruption:
        terminated = isinstance(interruption, _Terminated)
        what = "ended by SIGTERM" if terminated else "interrupted"
        print(f"xmix: {what}; nothing was left half-written", file=sys.stderr)
        return _TERMINATED if terminated else _INTERRUPTED
    except Exception as error:
        if options.debug:
            raise
        status = _failed(error)
        return _TERMINATED if isinstance(error, PreemptedError) else status
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which is taken for Ctrl-C wherever something is to be cleaned up."""


@contextlib.contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end a block by an exception: temporary folders go, what was summed up is kept.

    Python handles signals in the main thread, and a handler that is there already is the caller's.
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would end the cleaning up
        raise _Terminated

    alone = threading.current_thread() is not threading.main_thread()
    if alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _print(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer.document, indent=1, allow_nan=False))
    else:
        for line in answer.lines:
            print(printable(line))
    if answer.problem:
        raise XMixError(answer.problem)


def _failed(error: Exception) -> int:
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        return _UNREAD
    print(f"xmix: {_one_line(error)}", file=sys.stderr)
    return _ERROR


def _nobody_reads() -> bool:
    """Return whether the reader of stdout has gone, as `head` does.

    No other pipe breaks without a fault.
    """
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _log_to_stderr() -> None:
    """Show the log messages of this library on stderr, and of no other library."""
    log = logging.getLogger("xmix_data")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Printable("xmix: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    expected = isinstance(error, (XMixError, ValueError, OSError))
    text = printable(" ".join((text or "").split()))
    return text if expected and text else f"{type(error).__name__}: {text} (--debug shows where)"


_STEPS = """\
From two folders of photographs, each with a folder for each class, to a trained network:
  xmix convert flowers/train target.beton
  xmix convert imagenet/train source.beton
  xmix pair --target target.beton --source source.beton --model resnet50 -o pairing.json
  xmix report pairing.json --target target.beton --source source.beton -o report.html
  xmix train --method xmixup --target target.beton --source source.beton \\
             --pairing pairing.json --model resnet50 --output run
"""

_BEGIN = f"""\
Fine-tuning on few images with the help of many, at the cost of plain fine-tuning.

Begin here:
  xmix demo      the whole way in about a minute; needs no data
  xmix doctor    what is installed, and what is missing

{_STEPS}
xmix --help lists all commands, and xmix COMMAND --help explains one."""
"""What `xmix` alone says."""

_EPILOG = f"""\
{_STEPS}
xmix COMMAND --help explains each command.
Exit status: 0 done, 2 an error, 130 Ctrl-C, 141 nobody reads the output,
143 SIGTERM; a training goes on when it is run again."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print the error as one line, without the usage: its twenty lines would hide it."""
        text = printable(f"{self.prog}: {message}; see `{self.prog} --help`")
        self.exit(_ERROR, text + "\n")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Convert a text; refuse an empty one, which would mean this folder, or any name at all."""
        # A command's name comes with all its arguments, which the command's own parser sees.
        if not arg_string.removeprefix("file://") and action.nargs != argparse.PARSER:
            raise argparse.ArgumentError(
                action, "the text is empty; give a value (is a variable of the shell not set?)"
            )
        return super()._get_value(action, arg_string)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:  # the command's parser says so, and where the command's help is
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = _Parser(
        prog="xmix",
        description="Cross-domain mixup (XMixup) at the cost of plain fine-tuning.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        made = commands.add_parser(
            command.__name__.rpartition(".")[2],
            parents=[common],
            help=command.HELP,
            description=f"{command.HELP}.",
            epilog="\n".join(f"Example: {example}" for example in command.EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(made)
        made.set_defaults(run=command.run, parser=made)
    return parser


class _Version(argparse.Action):
    """Action of ``--version``, which looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        import xmix_data

        print(f"xmix_data {xmix_data.__version__}")
        parser.exit()
