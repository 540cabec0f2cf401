"""The configuration: what a person wrote, checked once and made into frozen dataclasses (the lowest layer)."""
