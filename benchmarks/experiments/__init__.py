"""One file per experiment, or per few that share their rows: what is measured, over `training.evaluation`."""
