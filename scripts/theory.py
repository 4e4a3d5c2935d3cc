"""The paper's theory checked exactly on systems of tables: python scripts/theory.py"""

from functools import partial

from sysdpo.cli.command import command


@partial(command, config_name="theory")
def main(config):  # type: ignore[no-untyped-def]
    from pathlib import Path

    from omegaconf import OmegaConf

    from sysdpo.tasks.theory import TheorySettings, run_theory

    settings = OmegaConf.to_container(config, resolve=True)
    folder = Path(settings.pop("outputs")) / "theory" / "report"
    print(run_theory(TheorySettings(**settings), folder).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
