"""`klab`: containers from a shell, in docker's words where docker has one."""

import signal
import sys

import click

from kernel_lab.cli import containers, running, stats, tools
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.refusals import CommandError

FAILED = 125  # docker's own: the runtime has failed, not the command


@click.group(context_settings={"help_option_names": ["--help"], "max_content_width": 120})
def klab() -> None:
    """Containers, built from system calls."""


for module in (running, containers, stats, tools):
    for command in module.COMMANDS:
        klab.add_command(command)


def main(argv: list[str] | None = None) -> None:
    """The command line; ends the process."""
    # Whoever has started this may ignore it, and would have exit codes thrown away here too (wait(2)).
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        sys.exit(klab.main(argv, prog_name="klab", standalone_mode=False) or 0)
    except CommandError as error:
        code, text = error.code, str(error)
    except click.exceptions.Abort:  # click's word for an interrupt
        code, text = 130, "interrupted"
    except (UsageError, KernelError, OSError, RuntimeError) as error:
        code, text = FAILED, str(error)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    print(f"klab: {text}", file=sys.stderr)
    sys.exit(code)
