"""The `uino-deploy` command: finds the subcommand, runs it, and turns errors into exit codes.

Subcommands are imported on demand, and each imports torch, onnx, triton or a runtime
inside its function, so `--help` and `--version` work without any of them installed.
"""

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import NoReturn, TextIO

import click

from uino_deploy.cli._console import note, notices, one_line, open_streams, paint
from uino_deploy.cli._group import SuggestingGroup
from uino_deploy.cli._options import Settings, debug_option
from uino_deploy.errors import Degraded, UinoDeployError

# Name -> "module:attribute", in the order of the help page.
COMMANDS = {
    "demo": "uino_deploy.cli.demo:demo",
    "export": "uino_deploy.cli.export:export",
    "verify": "uino_deploy.cli.verify:verify",
    "precision": "uino_deploy.cli.precision:precision",
    "enroll": "uino_deploy.cli.enroll:enroll",
    "predict": "uino_deploy.cli.predict:predict",
    "serve": "uino_deploy.cli.serve:serve",
    "triton-repository": "uino_deploy.cli.triton_repository:triton_repository",
    "build": "uino_deploy.cli.build:build",
    "evaluate": "uino_deploy.cli.evaluate:evaluate",
    "figure": "uino_deploy.cli.figure:figure",
    "distill": "uino_deploy.cli.distill:distill",
    "train": "uino_deploy.cli.train:train",
    "ablate": "uino_deploy.cli.ablate:ablate",
    "inspect": "uino_deploy.cli.inspect:inspect",
    "sign": "uino_deploy.cli.sign:sign",
    "sbom": "uino_deploy.cli.sbom:sbom",
    "benchmark": "uino_deploy.cli.benchmark:benchmark",
    "compare": "uino_deploy.cli.compare:compare",
    "kernels": "uino_deploy.cli.kernels:kernels",
    "selftest": "uino_deploy.cli.selftest:selftest",
    "doctor": "uino_deploy.cli.doctor:doctor",
}


class LazyGroup(SuggestingGroup):
    """A group that imports a subcommand's module when the subcommand is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a subcommand, or None if it does not exist."""
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, attribute = target.split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    """Print the versions of the package, Python and the installed libraries."""
    if not wanted or ctx.resilient_parsing:
        return
    from uino_deploy import __version__
    from uino_deploy.dependencies import library_versions

    python = ".".join(map(str, sys.version_info[:3]))
    click.echo(f"uino-deploy {__version__} (Python {python})")
    for name, version in library_versions().items():
        click.echo(f"{name} {version}")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 a check failed, 2 usage or input, 3 environment or missing "
    "dependency, 4 build failed, 129 hung up (SIGHUP), 130 interrupted, 143 terminated (SIGTERM).",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the versions of this package and its libraries, and exit.",
)
@debug_option
def cli() -> None:
    """Export, verify, run and measure UINO-FSS few-shot segmentation.

    \b
    Start here:
      uino-deploy doctor
      uino-deploy demo -o build/demo
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code.

    Args:
        arguments: the words after the program's name; `sys.argv` if None.
    """
    open_streams()
    # A notebook names its own backend, without which matplotlib is not even imported; ours draws
    # into files.
    os.environ.pop("MPLBACKEND", None)
    settings = Settings()
    # A closed terminal hangs up; `nohup` has that ignored already.
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminated)
    try:
        with _one_line_warnings(settings), notices():
            result = cli.main(
                list(arguments) if arguments is not None else None,
                prog_name="uino-deploy",
                standalone_mode=False,
                obj=settings,
            )
        # Inside the try: flushing the buffer can also hit a full disk or a closed pipe.
        sys.stdout.flush()
    except BaseException as error:
        if isinstance(error, SystemExit) or (settings.debug and isinstance(error, Exception)):
            raise
        sys.exit(_report(error))
    # Outside standalone mode click returns the code of `ctx.exit(code)`.
    sys.exit(result if isinstance(result, int) else 0)


@contextmanager
def _one_line_warnings(settings: Settings) -> Iterator[None]:
    """Write our own warnings on one line, and those of libraries with `--debug` alone.

    Python's own switches, -W and PYTHONWARNINGS, still show them.
    """

    class _Quiet(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if settings.debug and logging.lastResort is not None:
                logging.lastResort.handle(record)

    show, quiet = warnings.showwarning, _Quiet(logging.WARNING)

    def showwarning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, Degraded):
            note(f"warning: {' '.join(str(message).split())}")
        elif settings.debug or sys.warnoptions:
            show(message, category, filename, lineno, file, line)

    logging.getLogger().addHandler(quiet)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", Degraded)
            warnings.showwarning = showwarning
            yield
    finally:
        logging.getLogger().removeHandler(quiet)


def _terminated(number: int, _frame: object) -> NoReturn:
    """Leave as Ctrl-C would, so that nothing half-written stays behind."""
    sys.exit(128 + number)


def _report(error: BaseException) -> int:
    """Print one line about an error to stderr; return the exit code."""
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        note("interrupted")
        return 130
    if isinstance(error, click.UsageError):
        return _report_usage(error)
    if isinstance(error, BrokenPipeError):
        # The reader (`| head`) left: point stdout elsewhere, or Python complains when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    message, code = _describe(error)
    _say(message)
    return code


def _report_usage(error: click.UsageError) -> int:
    """Print a usage error, or the help if the command line is empty."""
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        click.echo(context.get_help(), err=True)
    else:
        path = context.command_path if context is not None else "uino-deploy"
        message = error.format_message().rstrip(".")
        _say(message + (" See" if message.endswith("?") else "; see") + f" '{path} --help'")
    return error.exit_code


def _say(message: str) -> None:
    """Write an error on exactly one line."""
    with suppress(OSError):  # nobody reads it: the exit code remains
        click.echo(f"{paint('error:', 'red')} {one_line(message)}", err=True)


def _describe(error: BaseException) -> tuple[str, int]:
    """Return an error's message and exit code."""
    if isinstance(error, UinoDeployError):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        hint = "; free some space and run it again" if error.errno == errno.ENOSPC else ""
        code = 2 if error.errno in {errno.ENAMETOOLONG, errno.ELOOP} else 3
        return f"{error.strerror or error}{where}{hint}", code
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller image size, batch or number of shots", 3
    return (
        f"unexpected {type(error).__name__}: {error}; "
        "this is a bug: run again with --debug for the traceback and report it"
    ), 1
