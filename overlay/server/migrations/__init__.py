"""The registry's migrations, run by alembic when the server starts. A shipped one is never edited."""
