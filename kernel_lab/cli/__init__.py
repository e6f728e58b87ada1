"""`klab`: containers from a shell, in docker's words where docker has one."""

import signal
import sys

import click

from kernel_lab.cli.lazy import Lazy
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.refusals import CommandError

FAILED = 125  # docker's own: the runtime has failed, not the command
MODULES = {
    "running": "run program exec",
    "containers": "ps logs stop kill wait rm",
    "changes": "inspect diff commit",
    "images": "image images rmi tag history",
    "archives": "save load import export",
    "remote": "pull push login logout",
    "registry": "registry",
    "stats": "stats",
    "build": "build",
    "tools": "doctor cleanup bench version",
}


@click.group(cls=Lazy, modules=MODULES, context_settings={"help_option_names": ["--help"], "max_content_width": 120})
def klab() -> None:
    """Containers, built from system calls."""


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
