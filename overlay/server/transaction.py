"""The registry's queries, inside one transaction. Knows tables and records, and no policy."""

from collections.abc import Collection, Iterable, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Table, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from overlay.daemon.state import corrupt
from overlay.server.schema import (
    DnsRecord,
    ExposureRecord,
    InviteRecord,
    NetworkRecord,
    NodeRecord,
    TokenRecord,
    UsageRecord,
    exposure_table,
    invite_table,
    network_table,
    node_table,
    record_table,
    record_values,
    token_table,
    usage_table,
)

R = TypeVar("R", bound=msgspec.Struct)


class Transaction:
    """Reads raise `UserError` ("state-corrupt") for a row that is not what this program wrote."""

    def __init__(self, connection: AsyncConnection, path: Path) -> None:
        self._connection = connection
        self._path = path

    # the network

    async def network(self) -> NetworkRecord | None:
        rows = await self._rows(NetworkRecord, network_table)
        return rows[0] if rows else None

    async def add_network(self, record: NetworkRecord) -> None:
        await self._connection.execute(insert(network_table).values(id=1, **record_values(record)))

    async def set_network(
        self,
        *,
        domain: str | None = None,
        next_number: int | None = None,
        last_host: int | None = None,
        map_version: int | None = None,
    ) -> None:
        given = {
            "domain": domain,
            "next_number": next_number,
            "last_host": last_host,
            "map_version": map_version,
        }
        values = {name: value for name, value in given.items() if value is not None}
        await self._connection.execute(update(network_table).values(**values))

    # nodes

    async def nodes(self) -> list[NodeRecord]:
        """All of them, by number."""
        return await self._rows(NodeRecord, node_table, order=node_table.c.number)

    async def node_with_key(self, key: bytes) -> NodeRecord | None:
        return await self._one(NodeRecord, node_table, node_table.c.key == key)

    async def names(self) -> Set[str]:
        return set((await self._connection.execute(select(node_table.c.name))).scalars())

    async def add_nodes(self, records: Sequence[NodeRecord]) -> None:
        if records:
            await self._connection.execute(insert(node_table), [record_values(record) for record in records])

    async def set_nodes(self, records: Iterable[NodeRecord]) -> None:
        """Overwrite the nodes of these numbers, in one go: a thousand that came back together are written together."""
        columns = [column.name for column in node_table.c if column.name != "number"]
        rows = [
            # SQLAlchemy keeps the columns' own names for itself here.
            {f"_{name}": value for name, value in record_values(record).items()}
            for record in records
        ]
        if rows:
            statement = update(node_table).where(node_table.c.number == bindparam("_number"))
            await self._connection.execute(statement.values({name: bindparam(f"_{name}") for name in columns}), rows)

    async def remove_node(self, number: int) -> None:
        """With its exposures and records."""
        await self._connection.execute(delete(exposure_table).where(exposure_table.c.node == number))
        await self._connection.execute(delete(usage_table).where(usage_table.c.node == number))
        await self._connection.execute(delete(record_table).where(record_table.c.node == number))
        await self._connection.execute(delete(node_table).where(node_table.c.number == number))

    # invites

    async def add_invite(self, record: InviteRecord) -> None:
        await self._connection.execute(insert(invite_table).values(**record_values(record)))

    async def invites(self, secret_hashes: Collection[bytes]) -> dict[bytes, InviteRecord]:
        """Those of them that there are, by hash."""
        if not secret_hashes:
            return {}
        found = await self._rows(InviteRecord, invite_table, invite_table.c.secret_hash.in_(secret_hashes))
        return {record.secret_hash: record for record in found}

    async def use_invite(self, secret_hash: bytes, times: int) -> None:
        await self._connection.execute(
            update(invite_table)
            .where(invite_table.c.secret_hash == secret_hash, invite_table.c.left >= times)
            .values(left=invite_table.c.left - times)
        )

    async def forget_invites(self, expired_before: float) -> None:
        await self._connection.execute(delete(invite_table).where(invite_table.c.expires < expired_before))

    # exposures

    async def exposures(self) -> list[ExposureRecord]:
        return await self._rows(ExposureRecord, exposure_table, order=exposure_table.c.id)

    async def add_exposure(self, record: ExposureRecord) -> ExposureRecord:
        """Returns it with the id that the registry gave it; that of `record` does not count."""
        return await self._added(exposure_table, record)

    async def set_exposure(self, record: ExposureRecord) -> None:
        values = record_values(record)
        del values["id"]
        await self._connection.execute(update(exposure_table).where(exposure_table.c.id == record.id).values(**values))

    async def remove_exposure(self, number: int) -> None:
        await self._connection.execute(delete(exposure_table).where(exposure_table.c.id == number))
        await self._connection.execute(delete(usage_table).where(usage_table.c.exposure == number))

    async def usage(self) -> list[UsageRecord]:
        return await self._rows(UsageRecord, usage_table)

    async def set_usage(self, records: Iterable[UsageRecord]) -> None:
        """Those of nodes that there still are."""
        numbers = set((await self._connection.execute(select(node_table.c.number))).scalars())
        for record in records:
            key = (usage_table.c.node == record.node) & (usage_table.c.exposure == record.exposure)
            await self._connection.execute(delete(usage_table).where(key))
            if record.node in numbers:
                await self._connection.execute(insert(usage_table).values(**record_values(record)))

    # tokens for HTTP CONNECT

    async def tokens(self) -> list[TokenRecord]:
        return await self._rows(TokenRecord, token_table, order=token_table.c.id)

    async def add_token(self, record: TokenRecord) -> TokenRecord:
        """Returns it with the id that the registry gave it."""
        return await self._added(token_table, record)

    async def remove_token(self, number: int) -> None:
        await self._connection.execute(delete(token_table).where(token_table.c.id == number))

    # records of the zone

    async def records(self) -> list[DnsRecord]:
        return await self._rows(DnsRecord, record_table, order=record_table.c.name)

    async def add_record(self, record: DnsRecord) -> None:
        await self._connection.execute(insert(record_table).values(**record_values(record)))

    async def remove_record(self, record: DnsRecord) -> None:
        columns = record_table.c
        await self._connection.execute(
            delete(record_table).where(
                columns.name == record.name, columns.rtype == record.rtype, columns.value == record.value
            )
        )

    # inside

    async def _added(self, table: Table, record: R) -> R:
        """A row whose id the registry gives: the record with it."""
        values = record_values(record)
        del values["id"]
        result = await self._connection.execute(insert(table).values(**values))
        key = result.inserted_primary_key
        assert key is not None  # an INSERT of one row always has it
        return msgspec.structs.replace(record, id=int(key[0]))

    async def _one(self, kind: type[R], table: Table, condition: ColumnElement[bool]) -> R | None:
        rows = await self._rows(kind, table, condition)
        return rows[0] if rows else None

    async def _rows(
        self,
        kind: type[R],
        table: Table,
        condition: ColumnElement[bool] | None = None,
        order: ColumnElement[Any] | None = None,
    ) -> list[R]:
        fields = kind.__struct_fields__
        query = select(*(table.c[name] for name in fields))
        if condition is not None:
            query = query.where(condition)
        if order is not None:
            query = query.order_by(order)
        try:
            rows = (await self._connection.execute(query)).all()
            return [msgspec.convert(dict(zip(fields, row, strict=True)), kind, builtin_types=(bytes,)) for row in rows]
        except (msgspec.ValidationError, ValueError, TypeError) as error:  # ValueError: JSON that is none
            raise corrupt(self._path, f"table {table.name}: {error}") from error
