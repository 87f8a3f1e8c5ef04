"""The command line: help, exit codes, one-line errors, pure JSON, Ctrl-C."""

import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from uino_deploy import cli
from uino_deploy.cli._console import Output, table_lines
from uino_deploy.cli._options import DATASETS, ByteSize, debug_option, output_options
from uino_deploy.errors import (
    BuildError,
    BundleError,
    CheckFailed,
    Degraded,
    DependencyError,
    InputError,
    OutputExists,
)

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ["torch", "triton", "onnx", "onnxscript", "onnxruntime", "tensorrt", "openvino", "numpy"]


def uino_deploy(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run the command in a child process."""
    return subprocess.run(
        [sys.executable, "-m", "uino_deploy", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        **options,
    )


def run_main(monkeypatch, command, *arguments: str) -> int:
    """Run `main` with one extra command called "probe"; return the exit code."""
    monkeypatch.setattr(cli.cli, "get_command", lambda _ctx, _name: command)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["probe", *arguments])
    return stopped.value.code


def raising(error: BaseException):
    @click.command()
    @output_options
    def probe(output):
        raise error

    return probe


def test_every_module_is_a_listed_command():
    folder = ROOT / "uino_deploy" / "cli"
    modules = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    targets = {target.split(":")[0].rsplit(".", 1)[1] for target in cli.COMMANDS.values()}
    assert targets == modules


def leaves() -> dict[str, click.Command]:
    """Return every command by its full name, such as "kernels build"."""
    found = {}
    for name in cli.COMMANDS:
        command = cli.cli.get_command(click.Context(cli.cli), name)
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": leaf for inner, leaf in command.commands.items()}
        else:
            found[name] = command
    return found


@pytest.mark.parametrize("name", leaves())
def test_help_has_an_example_and_the_shared_options(name):
    done = CliRunner().invoke(cli.cli, [*name.split(), "--help"])
    assert done.exit_code == 0, done.output
    assert f"  uino-deploy {name}" in done.output, "no example"
    options = leaves()[name].params
    flags = {flag for option in options for flag in option.opts + option.secondary_opts}
    assert {"--json", "--quiet", "--debug"} <= flags
    assert not {flag for flag in flags if "_" in flag and flag.startswith("-")}


def test_help_and_version_import_nothing_heavy():
    block = f"import sys\nfor name in {HEAVY!r}: sys.modules[name] = None\n"
    for arguments in (["--help"], ["--version"], *[[*name.split(), "--help"] for name in leaves()]):
        code = f"{block}from uino_deploy.cli import main\nmain({arguments!r})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == 0, (arguments, done.stderr)


def test_version_names_what_matters():
    done = uino_deploy("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("uino-deploy 0.")
    assert "numpy " in done.stdout


def test_unknown_command_is_one_line_and_usage():
    done = uino_deploy("exprot")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "exprot" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("exprot", "export"), ("kernels repotr", "report"), ("frobnicate", None)],
)
def test_a_mistyped_command_is_answered_with_the_nearest(capsys, typed, meant):
    with pytest.raises(SystemExit) as stopped:
        cli.main(typed.split())
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: no command {typed.split()[-1]!r}; ")
    assert ("did you mean" in said) == (meant is not None)
    assert meant is None or f"did you mean {meant!r}? See 'uino-deploy" in said


SOURCES = {
    "bash": 'eval "$(_UINO_DEPLOY_COMPLETE=bash_source uino-deploy)"',
    "zsh": 'eval "$(_UINO_DEPLOY_COMPLETE=zsh_source uino-deploy)"',
    "fish": "_UINO_DEPLOY_COMPLETE=fish_source uino-deploy | source",
}


@pytest.mark.parametrize("shell", SOURCES)
def test_the_documented_completion_is_the_shells(shell):
    page = (ROOT / "docs" / "completion.md").read_text(encoding="utf-8")
    assert SOURCES[shell] in page
    words = {"COMP_WORDS": "uino-deploy ker", "COMP_CWORD": "1"}
    words |= {"COMP_CWORD": "ker"} if shell == "fish" else {}
    for asked, expected in ((f"{shell}_source", "uino-deploy"), (f"{shell}_complete", "kernels")):
        done = uino_deploy(env={**os.environ, **words, "_UINO_DEPLOY_COMPLETE": asked})
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_a_command_as_documented(tmp_path):
    program = tmp_path / "uino-deploy"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m uino_deploy "$@"\n')
    program.chmod(0o755)
    script = (
        SOURCES["bash"]
        + """
COMP_WORDS=(uino-deploy kernels rep); COMP_CWORD=2
_uino_deploy_completion uino-deploy
echo "${COMPREPLY[@]}"
"""
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PATH": path},
    )
    assert done.stdout.strip() == "report", done.stderr


def on_a_terminal(*arguments: str, **variables: str) -> bytes:
    """Run the program with stdout and stderr on a terminal of 80 columns; return what it wrote."""
    ours, its = os.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | variables
    subprocess.run(
        [sys.executable, "-m", "uino_deploy", *arguments],
        stdout=its,
        stderr=its,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    os.close(its)
    written = b""
    # Linux answers the end of a terminal's output with an error.
    with contextlib.suppress(OSError):
        while chunk := os.read(ours, 1 << 16):
            written += chunk
    os.close(ours)
    return written


def test_errors_and_verdicts_are_coloured_on_a_terminal_alone():
    assert b"\x1b[31m\x1b[1merror:\x1b[0m no command" in on_a_terminal("exprot")
    assert b"\x1b" not in on_a_terminal("exprot", NO_COLOR="1")
    assert "\x1b" not in uino_deploy("exprot").stderr


@pytest.mark.parametrize(("failures", "word"), [([], "PASSED"), (["worse"], "FAILED")])
def test_the_verdict_is_coloured(monkeypatch, failures, word):
    monkeypatch.delenv("NO_COLOR", raising=False)

    @click.command()
    def probe():
        Output().verdict(failures)

    coloured = CliRunner().invoke(probe, color=True).output
    assert coloured.startswith(f"\x1b[{32 if word == 'PASSED' else 31}m\x1b[1m{word}\x1b[0m")
    monkeypatch.setenv("NO_COLOR", "1")
    assert CliRunner().invoke(probe, color=True).output.startswith(word)


def test_a_table_that_fits_is_a_line_a_row():
    lines = list(table_lines(["name", "count"], [["a", 1], ["bb", 22]], 80))
    assert lines == ["name  count", "----  -----", "a         1", "bb       22"]


def test_what_a_narrow_terminal_has_no_room_for_is_written_whole_below_its_row():
    columns = ["name", "kind", "size", "what to do"]
    rows = [["long-name", "x", "12", "pip install 'one' two three"], ["b", "y", "3", ""]]
    assert list(table_lines(columns, rows, 24)) == [
        "name       kind  size",
        "---------  ----  ----",
        "long-name  x       12",
        "    what to do: pip",
        "        install 'one'",
        "        two three",
        "b          y        3",
    ]
    wide = [["a", "b" * 40, "c" * 40, "d" * 40]]
    assert list(table_lines(columns, wide, 80))[2:] == [
        f"a     {'b' * 40}",
        f"    size: {'c' * 40}",
        f"    what to do: {'d' * 40}",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor"],
        ["inspect", "vitb14"],
        ["kernels", "report", "--load", "benchmarks/ledger/ledger.json"],
    ],
    ids=" ".join,
)
def test_no_table_is_wider_than_80_columns(arguments):
    done = uino_deploy(*arguments, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index("\n-") :]
    free = ("Operators", "ONNX Runtime providers")
    wide = [line for line in table.splitlines() if len(line) > 80 and not line.startswith(free)]
    assert not wide


def test_unknown_option_is_one_line_that_names_the_help():
    done = uino_deploy("doctor", "--jsn")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "uino-deploy doctor --help" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckFailed("the masks differ"), 1),
        (InputError("no such image: a.png", "check the path"), 2),
        (BundleError("manifest.json is not JSON"), 2),
        (OutputExists("x.uino exists", "use --force"), 2),
        (DependencyError("onnx is not installed", "pip install onnx"), 3),
        (OSError(errno.ENOSPC, "No space left on device", "x.uino"), 3),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2),
        (MemoryError(), 3),
        (BuildError("the parser refused node 7"), 4),
        (KeyboardInterrupt(), 130),
        (RuntimeError("two\nlines"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_errors_are_one_line_with_their_exit_code(monkeypatch, capsys, error, code):
    assert run_main(monkeypatch, raising(error)) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.strip().count("\n") == 0
    assert "Traceback" not in shown.err


def test_a_line_that_quotes_a_whole_file_is_shortened(monkeypatch, capsys):
    assert run_main(monkeypatch, raising(InputError("x" * 10**6, "take another file"))) == 2
    line = capsys.readouterr().err
    assert len(line) < 7000
    assert line.startswith("error: xxx")
    assert line.endswith("xxx; take another file\n")


def test_the_hint_is_part_of_the_line(monkeypatch, capsys):
    run_main(monkeypatch, raising(InputError("no such image: a.png", "check the path")))
    assert capsys.readouterr().err == "error: no such image: a.png; check the path\n"


@pytest.mark.parametrize("arguments", [["--debug"], []], ids=["debug", "plain"])
def test_traceback_only_with_debug(monkeypatch, arguments):
    monkeypatch.setattr(cli.cli, "get_command", lambda _ctx, _name: raising(InputError("bad")))
    expected = InputError if arguments else SystemExit
    with pytest.raises(expected):
        cli.main(["probe", *arguments])


def test_json_is_one_document_and_the_verdict_goes_to_stderr(monkeypatch, capsys):
    @click.command()
    @output_options
    def probe(output):
        output.text("for people")
        output.table(["a", "b"], [["x", 1]])
        output.log("working")
        output.document({"passed": False})
        output.verdict(["mIoU fell by 3.1"])

    assert run_main(monkeypatch, probe, "--json") == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"passed": False}
    assert shown.err == "working\nFAILED: mIoU fell by 3.1\n"

    assert run_main(monkeypatch, probe, "--quiet") == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "for people",
        "a  b",
        "-  -",
        "x  1",
        "FAILED: mIoU fell by 3.1",
    ]
    assert shown.err == ""


def test_progress_without_a_terminal_says_the_end(capsys):
    with Output().progress("segmenting", 3) as step:
        for _ in range(3):
            step()
    with Output(quiet=True).progress("segmenting", 3) as step:
        step()
    assert capsys.readouterr().err == "segmenting: 3/3\n"


def test_interrupt_while_running_exits_with_130():
    code = (
        "import click, signal, time\nfrom uino_deploy import cli\n"
        # A shell that starts the tests in the background has them ignore SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "@click.command()\ndef probe():\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "cli.cli.get_command = lambda ctx, name: probe\ncli.main(['probe'])\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with running:
        assert running.stdout.readline() == "ready\n"
        time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=20)
    assert running.returncode == 130
    assert err.strip() == "interrupted"


def test_a_reader_that_leaves_is_no_error():
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m uino_deploy doctor | true"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(tmp_path, number):
    code = f"""
import sys, tempfile, time
import click
from uino_deploy import cli

@click.command()
def nap():
    with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):
        print("ready", flush=True)
        time.sleep(60)

cli.COMMANDS["nap"] = "__main__:nap"
cli.main(["nap"])
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert list(tmp_path.iterdir())
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert not list(tmp_path.iterdir())


PROBE = """
import click, sys
from uino_deploy import cli
from uino_deploy.cli._console import Output
@click.command()
def probe():
    Output().log("working")
    file = open(sys.argv[1], "w")
    Output().text("done")
    sys.stdout.flush()
    file.write("result")
    file.close()
cli.cli.get_command = lambda ctx, name: probe
cli.main(["probe"])
"""


@pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_without_streams_the_work_is_done_and_nothing_lands_in_its_files(tmp_path, closed):
    result = tmp_path / "result"
    command = f'exec {sys.executable} -c "$0" {result} {closed}'
    done = subprocess.run(
        ["bash", "-c", command, PROBE], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0
    assert result.read_text() == "result"
    assert done.stdout == ("" if ">&-" in closed.replace("2>&-", "") else "done\n")
    assert done.stderr == ("" if "2>" in closed else "working\n")


def test_names_cannot_move_the_terminals_cursor(monkeypatch, capsys):
    evil = "a\x1b]0;title\x07\r\x9b2Jb\u202egnp.\udce9"
    harmless = "a\\x1b]0;title\\x07\\r\\x9b2Jb\\u202egnp.\\udce9"

    @click.command()
    @output_options
    def probe(output):
        output.text(evil)
        output.table(["name"], [[evil + "\n"]])
        output.log(evil)
        output.warn(evil)
        output.verdict([evil])

    assert run_main(monkeypatch, probe) == 1
    out, err = capsys.readouterr()
    lines = [*out.splitlines(), *err.splitlines()]
    assert lines[0] == harmless
    assert f"{harmless}\\n" in lines
    assert lines[-3:] == [f"FAILED: {harmless}", harmless, f"warning: {harmless}"]
    assert run_main(monkeypatch, raising(InputError(f"no {evil}"))) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_libraries_warn_with_debug_alone_and_we_on_one_line(monkeypatch, capsys):
    @click.command()
    @debug_option
    def probe():
        warnings.warn("a library's", UserWarning, stacklevel=1)
        logging.getLogger("library").warning("its log")
        warnings.warn("no locks\nhere", Degraded, stacklevel=1)
        raise InputError("bad")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(sys, "warnoptions", [])
        assert run_main(monkeypatch, probe) == 2
        assert capsys.readouterr().err == "warning: no locks here\nerror: bad\n"
        monkeypatch.setattr(cli.cli, "get_command", lambda _ctx, _name: probe)
        with pytest.raises(InputError), pytest.warns(UserWarning, match="a library's"):
            cli.main(["probe", "--debug"])


@pytest.mark.parametrize("home", ["/dev/null", "/proc", None])
def test_a_page_is_drawn_without_a_home_and_with_a_notebooks_backend(tmp_path, home):
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    environment |= {"HOME": home} if home else {}
    environment |= {"MPLBACKEND": "module://no_such_notebook", "TMPDIR": str(tmp_path)}
    report = ["kernels", "report", "--load", "benchmarks/ledger/ledger.json"]
    done = uino_deploy(*report, "--html", str(tmp_path / "page.html"), env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert os.listdir(tmp_path) == ["page.html"]


def test_the_commands_offer_every_data_set():
    from uino_deploy.data import open as opening

    assert DATASETS == opening.DATASETS


def test_sizes_are_read():
    given = {"20GB": 20 * 10**9, "1.5 tb": 15 * 10**11, "0": 0, "7kB": 7000, "500MB": 5 * 10**8}
    assert {text: ByteSize().convert(text, None, None) for text in given} == given
    for wrong in ("20", "GB", "-1GB", "1e3MB", "20 GiB"):
        with pytest.raises(Exception, match="not a size"):
            ByteSize().convert(wrong, None, None)


def test_a_live_line_is_for_terminals_alone(monkeypatch, capsys):
    Output().live("step 1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    Output(quiet=True).live("step 2")
    Output().live("step 3")
    Output().live("")
    assert capsys.readouterr().err == "\r\x1b[Kstep 3\r\x1b[K"
