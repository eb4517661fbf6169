"""What alembic runs to migrate: on the connection that `overlay.server.registry` hands over, inside its transaction."""

from alembic import context

from overlay.server.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by making it anew
)
with context.begin_transaction():
    context.run_migrations()
