"""Which user an agent becomes, and which paths it may follow."""
