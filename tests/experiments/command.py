"""`sae-diff` as a user runs it."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from experiments import cli


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def sae_diff(*options: str) -> Done:
    """The entry point of the console script, in this process: importing torch takes longer than most commands."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["sae-diff", *options]
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
        finally:
            sys.argv = argv
    return Done(code, out.getvalue(), err.getvalue())
