"""Judge a checkpoint that a run has kept: python scripts/evaluate.py run=FOLDER step=55"""

from sysdpo.cli.commands import evaluate

if __name__ == "__main__":
    evaluate()
