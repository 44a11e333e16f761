"""Ctrl-C in the first moments of a command, while it is still being imported."""

import subprocess
import sys

import pytest

# Press Ctrl-C just when `click` is looked for, then run the module as `python -m` does.
INTERRUPTED_IMPORT = """
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "click": os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
signal.signal(signal.SIGINT, signal.{handler})
sys.argv = ["command", "--help"]
runpy.run_module("{module}", run_name="__main__", alter_sys=True)
"""
COMMANDS = ("tetriserve", "scheduler", "executor", "bench")


def start(module: str, handler: str) -> subprocess.CompletedProcess[str]:
    code = INTERRUPTED_IMPORT.format(module=module, handler=handler)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", COMMANDS)
def test_an_interrupt_while_importing_ends_a_command_without_a_word(module: str):
    done = start(module, "default_int_handler")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_ignored_interrupt_stays_ignored():
    done = start("executor", "SIG_IGN")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: python -m executor")
