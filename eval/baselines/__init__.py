"""What a system is held against: frequency, last visit, neighbours, logistic regression, trees; one interface, one tuning."""
