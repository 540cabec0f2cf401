"""Identity of an agent: which user it becomes, and which paths it may follow."""
