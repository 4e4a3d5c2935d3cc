"""The paper scale from end to end, with everything small: python scripts/rehearse.py rehearsal=table2"""

from sysdpo.cli.commands import rehearse

if __name__ == "__main__":
    rehearse()
