"""What is understood of a data set, before it is trained on: python scripts/check_data.py dataset.path=pairs.jsonl"""

from sysdpo.cli.commands import check_data

if __name__ == "__main__":
    check_data()
