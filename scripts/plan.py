"""What one row would take, before anything is downloaded: python scripts/plan.py experiment=table2 scale=paper"""

from sysdpo.cli.commands import plan

if __name__ == "__main__":
    plan()
