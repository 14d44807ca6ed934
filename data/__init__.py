"""Records in, examples out: the EMR schema and its readers, prompts, answers, splits, submissions, the simulated ward."""
