"""From arguments to an exit code: parsing, messages, signals.

=====  =======================================================================================
0      done; of `verify`, `claim`, `audit`: derived; of `trace`: a recipient is named
1      of these four: not shown
2      usage: an argument, data, or a place to write to is wrong
3      a suspect, an encoder or a key failed; of `audit`: forged or damaged
4      refused: the null cannot support this alpha; of `audit`: not checkable
70     a fault in this program; `SSLGUARD_DEBUG=1` shows its traceback
130    interrupted by ^C, 143 by SIGTERM; the message says what can be resumed
=====  =======================================================================================
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from inspect import BoundArguments
from pathlib import Path
from types import FrameType
from typing import Any

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter

from sslguard import __version__
from sslguard.cli import attack, bench, claim, doctor, lineage, make, measure, plan, prove, serve, trace
from sslguard.cli.again import run_of
from sslguard.cli.config import options_from_file
from sslguard.cli.options import Output
from sslguard.cli.output import Result, say, show, show_json
from sslguard.errors import SslguardError
from sslguard.files import located

# The last collection of garbage would walk through all of torch, for more than a second, to free what ends anyway.
atexit.register(gc.freeze)

FAULT = 70
INTERRUPTED = 130
TERMINATED = 143

HELP = """Watermarks for pre-trained encoders, and evidence that a suspect was derived from one.

Exit codes: 0 done or derived, 1 not shown, 2 usage, 3 suspect, encoder or key failed, 4 refused: the null cannot \
support this alpha. 70 is a fault in this program (SSLGUARD_DEBUG=1 shows its traceback), 130 an interruption."""

COMMANDS: tuple[Callable[..., Result], ...] = (
    doctor.doctor,
    plan.plan,
    make.pretrain,
    make.watermark,
    lineage.release,
    make.steal,
    *attack.COMMANDS,
    measure.embed,
    measure.probe,
    measure.power,
    prove.queries,
    prove.verify,
    trace.trace,
    *trace.COMMANDS,
    prove.controls,
    lineage.lineage,
    *claim.COMMANDS,
    *serve.COMMANDS,
    *bench.COMMANDS,
    prove.demo,
)

REPEATABLE = (
    *(make.pretrain, make.watermark, make.steal, *attack.COMMANDS, lineage.release),
    *(measure.embed, prove.queries, claim.claim, serve.export),
)
"""What writes `out` and need not do so twice."""

# No --no-json, no --empty-control.
STYLE: dict[str, Any] = {"help_format": "plaintext", "default_parameter": Parameter(negative=())}
app = App(
    name="sslguard",
    help=HELP,
    version=__version__,
    version_flags=["--version", "-V"],
    config=options_from_file,
    **STYLE,
)
app.register_install_completion_command(
    help="Let the shell complete commands and options: bash, zsh, fish, PowerShell."
)
attacks = App(name="attack", help=attack.HELP, sort_key=COMMANDS.index(attack.COMMANDS[0]), **STYLE)
benches = App(name="bench", help=bench.HELP, sort_key=COMMANDS.index(bench.COMMANDS[0]), **STYLE)
app.command(attacks)
recipients = App(name="recipients", help=trace.HELP, sort_key=COMMANDS.index(trace.COMMANDS[0]), **STYLE)
app.command(benches)
app.command(recipients)
for number, command in enumerate(COMMANDS):
    groups = {attack.COMMANDS: attacks, bench.COMMANDS: benches, trace.COMMANDS: recipients}
    group = next((one for some, one in groups.items() if command in some), app)
    group.command(command, sort_key=number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (by default the process's own arguments) names; returns the exit code.

    With `--json` standard output holds exactly one JSON object, also when the command fails.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    as_json = any(token.partition("=")[0] == "--json" for token in tokens)
    keep_freed_memory()
    _wait_without_spinning()
    with _sigterm_as_interrupt() as terminated:
        try:
            return _run(tokens)
        except KeyboardInterrupt as error:
            # Processes stop together; a code other than 0 would have the launcher kill the first one as it reports.
            code = (TERMINATED if terminated.is_set() else INTERRUPTED) if _is_first() else 0
            return _failed(str(error) or "interrupted; nothing was written", "Interrupted", code, as_json)
        except CycloptsError as error:
            page = " ".join(["sslguard", *(error.command_chain or ()), "--help"])
            return _failed(f"{_of_arguments(error)} See {page}", "UsageError", 2, as_json)
        except SslguardError as error:
            return _failed(str(error), type(error).__name__, error.exit_code, as_json)
        except BrokenPipeError:  # whoever read has seen enough
            return _unread()
        except OSError as error:
            return _failed(_of_system(error), "OutputError", 2, as_json)
        except MemoryError:
            message = "there is not enough memory for this: give less data, or a smaller --batch-size"
            return _failed(message, "OutOfMemoryError", 2, as_json)
        # A library's own panic is no Exception, and one that ends the program would make exit code 1, not shown, of it.
        except BaseException as error:
            if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
                return _unread()  # rich has met it, and would end the program
            said = " ".join(str(error).split())[:2000]
            message = f"this is a fault in sslguard: {type(error).__name__}: {said}; SSLGUARD_DEBUG=1 shows where"
            return _failed(message, type(error).__name__, FAULT, as_json)


def _unread() -> int:
    """Let nothing more be written to a pipe that is closed, and return the exit code of a plain end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _run(tokens: Sequence[str]) -> int:
    command, bound, _ = app.parse_args(tokens, print_error=False, exit_on_error=False)
    if command not in COMMANDS:  # --help, --version, --install-completion
        command(*bound.args, **bound.kwargs)
        return 0
    output: Output = bound.arguments.get("output", Output())
    # What libraries print must not get between the braces.
    with _log(output.verbose), redirect_stdout(sys.stderr):
        if output.factory is not None:
            from sslguard.encoders.own import confirm

            confirm(output.factory)
        for name, value in bound.arguments.items():
            if isinstance(value, Path):
                bound.arguments[name] = Path(located(str(value)))
        result = _result(command, bound, output)
    _leave_process_group()
    if _is_first():
        show(result, as_json=output.json, quiet=output.quiet)
    return result.exit_code


def _result(command: Callable[..., Result], bound: BoundArguments, output: Output) -> Result:
    """Run a command, unless it was run before and its output stands."""
    given = {name: value for name, value in bound.arguments.items() if name != "output"}
    repeatable = command in REPEATABLE and output.factory is None
    run = run_of(f"{command.__module__}.{command.__name__}", given) if repeatable else None
    if run is not None and (found := run.earlier()) is not None:
        if not output.quiet:
            say(f"already done: {run.out} stands as this command made it; remove it to have it made again")
        return found
    started = time.perf_counter()
    result = command(*bound.args, **bound.kwargs).took(time.perf_counter() - started)
    if run is not None and _is_first():
        run.keep(result)
    return result


def _failed(message: str, kind: str, code: int, as_json: bool) -> int:
    """Report a failure in one sentence; never raises, so that the exit code stands."""
    if os.environ.get("SSLGUARD_DEBUG") == "1":
        traceback.print_exc()
    first = _is_first()
    with suppress(OSError):
        if code:
            say(message if first else f"process {os.environ.get('LOCAL_RANK')}: {message}")
        if as_json and first:
            show_json({"error": message, "kind": kind, "exit_code": code})
    if isinstance(sys.exception(), OSError):
        _abandon_stdout()
    return code


def _of_arguments(error: CycloptsError) -> str:
    if not isinstance(error, MissingArgumentError) or error.argument is None:
        return str(error)
    name = error.argument.name
    return f"{name} is missing: add it to the command." if error.keyword is None else f"{name} needs a value behind it."


def _of_system(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else f"the system refused to read or write: {reason}"


def _abandon_stdout() -> None:
    """After a failed write: the interpreter must not try again at exit and turn the exit code into its own."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _is_first() -> bool:
    """Whether this process reports. Without torch there is only one."""
    if "torch" not in sys.modules:
        return True
    from sslguard.training.processes import is_first_process

    return is_first_process()


def _leave_process_group() -> None:
    processes: Any = sys.modules.get("sslguard.training.processes")
    if processes is not None:
        processes.leave()


def keep_freed_memory() -> None:
    """Ask glibc to keep what is freed instead of returning it to the system.

    Training frees and takes the same large tensors at every step; fresh pages each time cost 1.6 times the run on
    a CPU. A server embeds in a thread of its own, whose own heaps would be handed back all the same: all threads share
    one. Elsewhere than on glibc nothing happens.
    """
    trim, mmap, arenas, most = -1, -3, -8, 2**31 - 1  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX, largest int
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(trim, most)
    mallopt(arenas, 1)
    # Some versions take no more than half a heap.
    threshold = next((size for size in (1 << 30, 1 << 25) if mallopt(mmap, size)), None)
    # Worker processes do not come by here: they read it from their environment.
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(most))
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    if threshold is not None:
        os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(threshold))


def _wait_without_spinning() -> None:
    """Let threads of torch, NumPy and SciPy sleep while they wait for each other. It is read when they are imported.

    Threads that spin take the core from the very thread that they wait for, once another program keeps a core busy.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # GNU's library, in the published torch
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # Intel's and LLVM's
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # NumPy's and SciPy's: 2^4 cycles, the least


@contextmanager
def _log(verbose: bool) -> Iterator[None]:
    """Write the program's own log, from INFO on, to standard error."""
    if not verbose:
        yield
        return
    logger, handler = logging.getLogger("sslguard"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[threading.Event]:
    """Let a scheduler's SIGTERM end a run as ^C does, checkpoint included; the event tells them apart."""
    terminated = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield terminated
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        terminated.set()
        # Training puts its own handler there, which ends the step first. In the background SIGINT may be ignored.
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, previous)
