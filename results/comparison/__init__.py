"""The comparison of all methods with equal compute: what is trained (entries.py), how much of it (budget.py),
the runs (comparison.py), and what they say (claims.py, verdicts.py, figures.py)."""
