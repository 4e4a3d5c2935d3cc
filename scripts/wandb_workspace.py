"""Save a ready W&B workspace for an experiment's runs: python scripts/wandb_workspace.py experiment=table2"""

from sysdpo.cli.commands import workspace

if __name__ == "__main__":
    workspace()
