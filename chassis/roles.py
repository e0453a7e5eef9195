"""
What a database needs before the first migration: a schema, a history, roles.

A room has an owner, who migrates, and a role, which serves.

Neither logs in: the login of DATABASE_URL is made a member of both, and every
connection of a service acts as its room's role alone.
"""

from chassis.postgres import Connection


def role_of(room: str) -> str:
    """Returns the role a room's service acts as."""
    return f"finity_{room}"


def owner_of(room: str) -> str:
    """Returns the role that owns a room's tables."""
    return f"finity_{room}_owner"


async def create_schema(conn: Connection) -> None:
    """Creates the connection's schema if there is none of its name, as Prisma does."""
    # Asked first: a login that may not create schemas needs not, where there is one.
    if await conn.fetchval("SELECT current_schema() IS NULL"):
        await conn.execute(_CREATE_SCHEMA)


async def create_roles(conn: Connection, room: str) -> None:
    """Creates what is missing of a room's roles and lets them use the schema."""
    await conn.execute(_CREATE_ROLES.format(room=room))


async def create_history(conn: Connection) -> None:
    """Creates the table of what was migrated; everybody may read it."""
    await conn.execute(_CREATE_HISTORY)


_CREATE_SCHEMA = """
DO $$ BEGIN
    EXECUTE 'CREATE SCHEMA IF NOT EXISTS ' || current_setting('search_path');
END $$;
"""

# Roles belong to the whole server: another database's migration may create them at this moment.
_CREATE_ROLES = """
DO $$
DECLARE role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['finity_{room}_owner', 'finity_{room}'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
            END;
        END IF;
        IF NOT pg_has_role(current_user, role, 'USAGE') THEN
            EXECUTE format('GRANT %I TO %I', role, current_user);
        END IF;
    END LOOP;
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO finity_{room}_owner', current_schema());
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO finity_{room}', current_schema());
END $$;
"""

_CREATE_HISTORY = """
CREATE TABLE IF NOT EXISTS finity_migrations (
    room text NOT NULL,
    version int NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (room, version)
);
GRANT SELECT ON finity_migrations TO PUBLIC;
"""
