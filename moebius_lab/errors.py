"""The one door of every command: what a person can act on becomes one line on standard error and an exit code.

Only small modules of Python's own are imported here, so that `watch_process` is in force before the imports that take seconds.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from . import LabError

UNUSABLE = 2  # exit code: the input, the machine or the network does not allow it
STOPPED = {"SIGINT": "stopped", "SIGTERM": "ended from outside", "SIGHUP": "the terminal was closed"}
"""Signals that end a command in order, with exit code 128 + number, and how that is said."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMEDIES = {
    errno.ENOENT: "there is no such file or folder; check the path",
    errno.ENOTDIR: "a part of this path is a file, not a folder; name another path",
    errno.EISDIR: "this is a folder; name a file",
    errno.EEXIST: "this already exists; name another or remove it",
    errno.ENOTEMPTY: "this folder is not empty; name another or empty it",
    errno.EACCES: "no permission; change its permissions or name another place",
    errno.EPERM: "no permission; change its permissions or name another place",
    errno.EROFS: "this disk is read-only; name another place",
    errno.ENAMETOOLONG: "this name is too long for the disk; shorten it",
    errno.ELOOP: "its symbolic links form a loop; name the file itself",
    errno.EMFILE: "too many open files; raise the limit with `ulimit -n 4096`",
    errno.ENFILE: "too many open files on this machine; close some programs",
    errno.ENOMEM: "not enough memory; close other programs or use a smaller picture",
    errno.EIO: "the disk cannot be read or written here; copy what can still be read to another one",
} | dict.fromkeys(NO_ROOM, "the disk is full; free some space or name another place")
"""What to do about an error of the system, by its number."""

OUT_OF_MEMORY = ("out of memory", "allocate memory", "bad allocation", "bad_alloc")
"""Words by which libraries in C++ say what is MemoryError in Python."""

BROKEN_PIPE = 128 + 13  # exit code: SIGPIPE, which is how a shell tells that the output's reader has gone


def run(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; an error that a person can act on is said in one line on standard error.

    The code is then 2, or 128 + n for signal n. A reader of the output that has gone, as `head` does, is no error: 141, and no
    word. Any other exception is a fault of ours and passes through, with its traceback.
    """
    try:
        code = command()
        _flush_output()
        return code
    except BaseException as error:
        number = _signal_behind(error)
        line = f"{STOPPED[signal.Signals(number).name]}; what was finished is kept" if number else explain(error)
        if line is None:
            raise
        if not _let_go_of_output() and isinstance(error, BrokenPipeError):
            return BROKEN_PIPE
        print(f"moebius_lab: {line}", file=sys.stderr)
        return 128 + number if number else UNUSABLE


def explain(error: BaseException) -> str | None:
    """What is wrong and what to do about it, in one line; None for an exception that only a fault of ours can raise."""
    if isinstance(error, LabError):
        return str(error)
    if is_out_of_memory(error):
        return "not enough memory; close other programs, or use a smaller network or picture"
    if isinstance(error, OSError):
        return explain_os_error(error)
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object!a} contains characters that cannot be used here ({error.reason}); rename the file or folder"
    if isinstance(error, UnicodeDecodeError):
        return f"a file that should be text contains other bytes ({error.encoding}: {error.reason}); save it as UTF-8"
    if isinstance(error, OverflowError):
        return f"a number is out of range ({first_line(error)}); use one closer to the default"
    if isinstance(error, FloatingPointError):
        return f"{first_line(error)}; use settings closer to the defaults"
    if isinstance(error, ValueError) and (misread := _misread_variable(error)):
        return misread
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != __package__:
        return f"the package {error.name!r} is not installed here; `pip install` it, or recreate the environment"
    return None


def _misread_variable(error: ValueError) -> str:
    """What to do about a number in the environment that a library could not read while it was imported; empty for anything else."""
    modules = [
        frame.f_globals["__name__"]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "<module>"
    ]
    library = modules[-1].partition(".")[0] if modules else __package__
    variables = [f"{name}={value}" for name, value in os.environ.items() if value and str(error).endswith(f": {value!r}")]
    if library in (__package__, "__main__") or not variables:
        return ""
    return f"{' or '.join(variables)}: {library} expects another number there; correct it or unset it"


def explain_os_error(error: OSError) -> str:
    """An error of the system in one line: the file if it is known, what is wrong, and what to do where we know that."""
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    of_the_system = type(error).__module__ == "builtins"  # an error of ssl has numbers of its own
    words = (of_the_system and REMEDIES.get(error.errno)) or first_line(error.strerror or error)
    return f"{' and '.join(files)}: {words}" if files else words


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, in the words of Python, PyTorch or ONNX Runtime."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and any(words in said for words in OUT_OF_MEMORY))


def first_line(error: object) -> str:
    """The first line of what an error says; of one that says nothing its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _flush_output() -> None:
    if sys.stdout:  # None where it was closed before Python started
        sys.stdout.flush()


def _let_go_of_output() -> bool:
    """Write what is still to be written to standard output; False if it cannot be, and then Python does not try again."""
    try:
        _flush_output()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


# -- the process -------------------------------------------------------------------------------------------------------

_came = 0  # the signal that is ending this process


def watch_process() -> None:
    """From now on the signals of `STOPPED` end this process in order, and printing a file's name never fails.

    While the program is importing what it needs, nothing has begun: the process ends at once. An exception might be lost there in
    a library that catches it. Later KeyboardInterrupt is raised, so that nothing is left behind. A signal that is ignored already,
    as under nohup, stays so.
    """
    for name in STOPPED:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    codecs.register_error("as_it_is", _as_it_is)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="as_it_is")


def leave(code: int) -> None:
    """End the process; a signal that comes now ends it without a word, and without the traceback of Python's own end."""
    for name in STOPPED:
        if signal.getsignal(getattr(signal, name, signal.SIGINT)) == _stop:
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    sys.exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    global _came
    _came = number
    if _only_imports(frame):
        os.write(2, f"moebius_lab: {STOPPED[signal.Signals(number).name]}; nothing had started\n".encode())
        os._exit(128 + number)
    raise KeyboardInterrupt


def _signal_behind(error: BaseException) -> int:
    """The signal that an exception comes from, whatever a library has made of it on its way; 0 if there was none."""
    return _came or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0)


def _only_imports(frame: FrameType | None) -> bool:
    """Whether it is the program itself that imports, and not something that it called."""
    within = ""
    while frame and frame.f_globals.get("__name__") != "__main__":
        within, frame = frame.f_code.co_filename, frame.f_back
    return within.startswith("<frozen importlib")


def _as_it_is(error: UnicodeError) -> tuple[bytes, int]:
    """How characters are written that the encoding lacks: bytes of a file's name as they are, all others as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    pieces = []
    for character in error.object[error.start : error.end]:
        is_byte = 0xDC80 <= ord(character) <= 0xDCFF  # as os.fsdecode makes of what is no text
        pieces.append(bytes([ord(character) - 0xDC00]) if is_byte else character.encode("ascii", "backslashreplace"))
    return b"".join(pieces), error.end


def reasons(missing: dict[str, str]) -> str:
    """What is missing and why, in one line without a last full stop: those that share a reason together."""
    by_reason: dict[str, list[str]] = {}
    for what, reason in missing.items():
        by_reason.setdefault(reason, []).append(what)
    return ". ".join(f"{'; '.join(names)} ({reason})" for reason, names in by_reason.items())
