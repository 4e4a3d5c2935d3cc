"""The models and the data set of a run, for a machine without a network: python scripts/fetch.py scale=paper"""

from sysdpo.cli.commands import fetch

if __name__ == "__main__":
    fetch()
