"""A table's own setting, measured beside what `make plan` predicts for it.

    make benchmark-table EXPERIMENT=table2 SCALE=paper ARGS="llm.weights=random training.micro_batch_size=2"

Does one unit of each phase of the plan for real, on made-up pairs of the plan's lengths (`plan.tokens`): loads the
system, trains a few updates, writes and reads a checkpoint, draws a batch by each component. Writes
`<experiment>_<scale>_<device>.json` into `benchmark.results`.
"""

from functools import partial

from sysdpo.cli.command import command


@partial(command, config_name="benchmark")
def main(config):  # type: ignore[no-untyped-def]
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig

    from sysdpo.benchmark.table import benchmark, render
    from sysdpo.runs.folder import write_json

    result = {"overrides": list(HydraConfig.get().overrides.task), **benchmark(config)}
    device = result["device"].lower().replace(" ", "-")
    path = Path(config.benchmark.results) / f"{config.experiment}_{config.scale}_{device}.json"
    write_json(path, result)
    print(render(result))
    print(path)


if __name__ == "__main__":
    main()
