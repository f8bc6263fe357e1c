"""Alembic's entry: migrates the connection that it is handed, or the database of the environment's settings."""

from alembic import context
from app.database.connection import open_database
from app.database.revision import one_at_a_time
from app.database.schema import metadata
from app.settings import current_settings


def migrate(connection) -> None:
    """Run the migrations over one connection, in one transaction."""
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


if handed := context.config.attributes.get("connection"):
    migrate(handed)
else:
    # `alembic upgrade head`: not by open_database's own upgrade, as one run of Alembic cannot hold another.
    engine = open_database(current_settings(), migrate=False)
    with one_at_a_time(engine), engine.connect() as connection:
        migrate(connection)
    engine.dispose()
