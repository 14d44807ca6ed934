"""Why each drug is there: counterfactual evidence in the record, and how faithful it is."""
