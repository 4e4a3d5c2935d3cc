"""What could a component still gain? python scripts/headroom.py run=outputs/table1/laptop/before/seed=0"""

import sys
from functools import partial

from sysdpo.cli.command import as_text, command


@partial(command, config_name="headroom")
def main(config):  # type: ignore[no-untyped-def]
    from sysdpo.experiment.headroom import headroom

    print(headroom(config))


if __name__ == "__main__":
    sys.argv = as_text(sys.argv, ("run",))
    main()
