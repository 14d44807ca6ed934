"""An adapter merged into its base, and the check that the merged model says the same."""
