"""The figures of the runs that exist: python scripts/figures.py experiment=table2"""

from sysdpo.cli import CONFIG, command


@command
def main(config):  # type: ignore[no-untyped-def]
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from sysdpo.reporting.figures import write_figures

    resolved = OmegaConf.to_container(config, resolve=True)
    print(write_figures(resolved, CONFIG / "method", tuple(HydraConfig.get().overrides.task)))


if __name__ == "__main__":
    main()
