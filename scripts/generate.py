"""An aligned run on a prompt of your own, before and after: python scripts/generate.py run=FOLDER ask="…" """

from sysdpo.cli.commands import demo

if __name__ == "__main__":
    demo()
