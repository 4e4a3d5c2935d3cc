"""The paper's theory checked exactly on systems of tables: python scripts/theory.py"""

from sysdpo.cli.commands import theory

if __name__ == "__main__":
    theory()
