"""The command `sysdpo`: the first word says what to do, the rest are Hydra's overrides.

sysdpo train experiment=table2 scale=smoke
sysdpo train -m experiment=table2 seed=0,1,2
sysdpo report experiment=table2 scale=smoke
"""

import sys

from sysdpo import __version__
from sysdpo.cli import commands
from sysdpo.errors import nearest

COMMANDS = {
    "train": commands.train,
    "report": commands.report,
    "evaluate": commands.evaluate,
    "plan": commands.plan,
    "fetch": commands.fetch,
    "rehearse": commands.rehearse,
    "check-data": commands.check_data,
    "demo": commands.demo,
    "theory": commands.theory,
    "headroom": commands.headroom,
    "workspace": commands.workspace,
}


def usage() -> str:
    lines = [
        f"sysdpo {__version__}: system-level DPO for compound AI systems",
        "",
        "  sysdpo COMMAND [key=value …]",
        "",
    ]
    lines += [f"  {name:<11} {(function.__doc__ or '').splitlines()[0]}" for name, function in COMMANDS.items()]
    return "\n".join([*lines, "", "sysdpo train --help lists every setting."])


def main() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name in ("-V", "--version", "version"):
        print(__version__)
    elif name in COMMANDS:
        sys.argv = [f"sysdpo {name}", *arguments]
        COMMANDS[name]()
    else:
        print(f"error: sysdpo: {nearest(name, COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
