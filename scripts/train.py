"""One row of a table, or with -m several: python scripts/train.py -m experiment=table2 seed=0,1,2"""

from sysdpo.cli.commands import train

if __name__ == "__main__":
    train()
