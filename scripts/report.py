"""The table, the figures and the page of the runs that exist: python scripts/report.py experiment=table2"""

from sysdpo.cli.commands import report

if __name__ == "__main__":
    report()
