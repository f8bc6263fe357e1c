"""The database: the only truth about what is to be done and what is done. SQLite and PostgreSQL alike."""
