"""The simulated ward: patients, visits, records and the true cause of every drug, from tables that a clinician can read."""
