"""Alembic's entry: migrates the connection that it is handed, or the database of the environment's settings."""

from alembic import context
from app.database.schema import metadata
from app.database.session import open_database
from app.settings import current_settings


def migrate(connection) -> None:
    """Run the migrations over one connection, in one transaction."""
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


if handed := context.config.attributes.get("connection"):
    migrate(handed)
elif context.config.cmd_opts is not None and context.config.cmd_opts.cmd[0].__name__ == "upgrade":
    open_database(current_settings()).dispose()  # it upgrades, under a lock
else:
    with open_database(current_settings()).connect() as connection:
        migrate(connection)
