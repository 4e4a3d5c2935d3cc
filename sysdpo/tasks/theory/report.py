"""All checks of the theory at once: `make reproduce-theory`."""

from dataclasses import asdict
from pathlib import Path

from sysdpo.reporting.theory import write_theory_report
from sysdpo.runs.folder import write_json
from sysdpo.tasks.theory.alignment import check_joint_against_separate, check_perfect_alignment
from sysdpo.tasks.theory.approximation import approximation_error
from sysdpo.tasks.theory.estimators import error_by_samples, signal_by_length
from sysdpo.tasks.theory.rlhf import check_rlhf
from sysdpo.tasks.theory.settings import TheorySettings


def run_theory(settings: TheorySettings, folder: Path) -> Path:
    """Every check, as `folder/table.json` and what is drawn from it."""
    content = {
        "perfect_alignment": check_perfect_alignment(settings.betas),
        "rlhf": check_rlhf(settings.betas, settings.seed),
        "joint_against_separate": [
            {"seed": seed, **check_joint_against_separate(0.5, seed)}
            for seed in range(settings.seed, settings.seed + 3)
        ],
        "approximation": approximation_error(settings),
        "estimators": error_by_samples(settings),
        "draft_length": signal_by_length(settings),
        "settings": asdict(settings),
    }
    write_json(folder / "table.json", content)
    return write_theory_report(folder)
