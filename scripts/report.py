"""The table, the figures and the page of the runs that exist: python scripts/report.py experiment=table2"""

from sysdpo.cli.command import command
from sysdpo.paths import CONF


@command
def main(config):  # type: ignore[no-untyped-def]
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from sysdpo.reporting.page import write_report

    resolved = OmegaConf.to_container(config, resolve=True)
    print(write_report(resolved, CONF / "method", tuple(HydraConfig.get().overrides.task)))


if __name__ == "__main__":
    main()
