"""What one row would take, before anything is downloaded: python scripts/plan.py experiment=table2 scale=paper"""

from functools import partial

from sysdpo.cli.command import command


@partial(command, config_name="plan")
def main(config):  # type: ignore[no-untyped-def]
    from sysdpo.planning.estimate import check_plan, make_plan, render

    check_plan(config)
    print(render(make_plan(config)))


if __name__ == "__main__":
    main()
