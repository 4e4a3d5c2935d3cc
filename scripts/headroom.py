"""What could a component still gain? python scripts/headroom.py run=outputs/table1/laptop/before/seed=0"""

from sysdpo.cli.commands import headroom

if __name__ == "__main__":
    headroom()
