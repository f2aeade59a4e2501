"""Search a head's hyperparameters with Optuna, a DVC experiment per trial.

python docs/search.py HEAD TRIALS

What is maximised is R-AUROC on `seen`, held-out images of the upstream classes: whoever chooses by
the zero-shot sets has none left. The study goes on where it stopped (results/search.db), and every
trial stands in `dvc exp show`. params.yaml is left as the last trial had it: `git checkout` it.
Needs the extra `search`.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import optuna


def r_auroc(head: str, trial: optuna.Trial) -> float:
    """Train the head with what the trial suggests, and return its R-AUROC on `seen`."""
    settings = {
        "heads": f"[{head}]",
        "lr": trial.suggest_float("lr", 1e-5, 1e-2, log=True),
        "steps": trial.suggest_int("steps", 100, 1600, log=True),
        "batch": trial.suggest_categorical("batch", [128, 256, 512]),
    }
    options = [word for name, value in settings.items() for word in ("-S", f"train.{name}={value}")]
    subprocess.run(["dvc", "exp", "run", "evaluate", *options], check=True)
    found = json.loads(Path("results/metrics.json").read_text())["r_auroc"][head]["seen"]
    return math.nan if found is None else found  # undefined: Optuna counts the trial as failed


def main() -> None:
    """Run the trials and print the best."""
    head, trials = sys.argv[1], int(sys.argv[2])
    study = optuna.create_study(
        study_name=head,
        storage="sqlite:///results/search.db",
        sampler=optuna.samplers.TPESampler(seed=0),
        direction="maximize",
        load_if_exists=True,
    )
    study.optimize(lambda trial: r_auroc(head, trial), n_trials=trials)
    print(f"best of {len(study.trials)}: {study.best_value:.4f} with {study.best_params}")


if __name__ == "__main__":
    main()
