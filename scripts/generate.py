"""An aligned run on a prompt of your own, before and after: python scripts/generate.py run=FOLDER ask="…" """

import sys
from functools import partial

from sysdpo.cli.command import as_text, command


@partial(command, config_name="generate")
def main(config):  # type: ignore[no-untyped-def]
    from sysdpo.experiment.demo import demonstrate

    print(demonstrate(config))


if __name__ == "__main__":
    sys.argv = as_text(sys.argv, ("ask", "run", "folder"))
    main()
