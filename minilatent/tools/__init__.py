"""Programs beside training: speed, the base model, export."""
