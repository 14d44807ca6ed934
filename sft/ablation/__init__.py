"""Which options of training help: cells, runs, and the table over seeds."""
