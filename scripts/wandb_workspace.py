"""Save a ready W&B workspace for an experiment's runs: python scripts/wandb_workspace.py experiment=table2"""

from sysdpo.cli.command import command


@command
def main(config):  # type: ignore[no-untyped-def]
    import os

    from sysdpo.runs.wandb_workspace import save_workspace

    titles = config.get("metric_titles") or {}
    metrics = {name: titles.get(name, name) for name in config.metrics}
    project = config.logger.get("project") or "sysdpo"
    name = f"{config.experiment}: results and training"
    print(save_workspace(os.environ.get("WANDB_ENTITY"), project, name, metrics, list(config.system.components)))


if __name__ == "__main__":
    main()
