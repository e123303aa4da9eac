"""Looking at trained models and comparing them. Training imports nothing from here."""
