"""The probe's questions: scored, made by seed."""
