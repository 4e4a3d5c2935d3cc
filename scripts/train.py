"""One row of a table, or with -m several: python scripts/train.py -m experiment=table2 seed=0,1,2"""

from sysdpo.cli.command import command


@command
def main(config):  # type: ignore[no-untyped-def]
    from sysdpo.experiment.run import run

    run(config)


if __name__ == "__main__":
    main()
