"""What checks said of a run's descriptions: written batch by batch, counted by the database."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, and_, func, or_, select

from app.database.dialect import insert
from app.database.pair_rows import lock_pairs
from app.database.records import Run
from app.database.schema import answers, checked_pairs, enqueues, is_live, pairs, results, run_figures, text_checks

_ROWS_A_STATEMENT = 1_000


class UncheckedPair(NamedTuple):
    """A described pair whose present descriptions are not checked by the present rules."""

    id: int
    request: str
    payload: dict[str, Any]
    descriptions: list[dict[str, Any]]


class CheckedText(NamedTuple):
    """One description's flags, as bits; ``predicate`` is None where it stands for the pair."""

    predicate: str | None
    flags: int
    verification: float | None = None  # P(the relation holds), where the model was asked and answered


class Checked(NamedTuple):
    """The checks of one pair's descriptions, and the request that these answer."""

    request: str
    texts: list[CheckedText]


def unchecked(connection: Connection, run: Run, rules: str, after: int, limit: int) -> list[UncheckedPair]:
    """Some described pairs of ids above ``after`` that are to be checked, in the order of their ids."""
    columns = (pairs.c.id, pairs.c.request, pairs.c.payload, results.c.descriptions)
    query = _described(run, columns).where(pairs.c.id > after, _is_unchecked(rules))
    return [UncheckedPair(*row) for row in connection.execute(query.order_by(pairs.c.id).limit(limit))]


def count_unchecked(connection: Connection, run: Run, rules: str) -> int:
    """How many described pairs are to be checked."""
    return int(connection.execute(_described(run, (func.count(),)).where(_is_unchecked(rules))).scalar_one())


def keep_checks(connection: Connection, run: Run, rules: str, found: Mapping[int, Checked]) -> int:
    """Keep the checks of some pairs; those that were described otherwise since, or deleted, are left out."""
    lock_pairs(connection, list(found))
    query = _described(run, (pairs.c.id, pairs.c.request)).where(pairs.c.id.in_(found))
    same = {row.id for row in connection.execute(query) if found[row.id].request == row.request}
    if not same:
        return 0
    known = select(checked_pairs.c.pair_id, checked_pairs.c.request).where(checked_pairs.c.pair_id.in_(same))
    others = [row.pair_id for row in connection.execute(known) if row.request != found[row.pair_id].request]
    connection.execute(text_checks.delete().where(text_checks.c.pair_id.in_(others)))  # scores of other texts, too
    _put_pairs(connection, run, rules, {pair_id: found[pair_id] for pair_id in same})
    texts = [
        {"pair_id": pair_id, "position": position, "run_id": run.id, **text._asdict()}
        for pair_id in same
        for position, text in enumerate(found[pair_id].texts)
    ]
    statement = insert(connection, text_checks)
    renewed: dict[str, Any] = {name: statement.excluded[name] for name in ("predicate", "flags")}
    renewed["verification"] = func.coalesce(statement.excluded.verification, text_checks.c.verification)
    statement = statement.on_conflict_do_update(index_elements=["pair_id", "position"], set_=renewed)
    for start in range(0, len(texts), _ROWS_A_STATEMENT):
        connection.execute(statement, texts[start : start + _ROWS_A_STATEMENT])
    return len(texts)


def _put_pairs(connection: Connection, run: Run, rules: str, found: Mapping[int, Checked]) -> None:
    rows = []
    for pair_id, checked in found.items():
        flags = 0
        for text in checked.texts:
            flags |= text.flags
        rows.append({"pair_id": pair_id, "run_id": run.id, "request": checked.request, "rules": rules, "flags": flags})
    statement = insert(connection, checked_pairs)
    renewed = {name: statement.excluded[name] for name in ("request", "rules", "flags")}
    connection.execute(statement.on_conflict_do_update(index_elements=["pair_id"], set_=renewed), rows)


def counts_by_predicate(connection: Connection, run: Run) -> Iterator[tuple[str | None, int, int]]:
    """Rows (predicate, flags, number of texts) of present descriptions."""
    grouped = (text_checks.c.predicate, text_checks.c.flags)
    yield from map(tuple, connection.execute(_texts(run, (*grouped, func.count())).group_by(*grouped)))


def counts_by_class(connection: Connection, run: Run) -> Iterator[tuple[str, int, int]]:
    """Rows (class, flags, number of texts), each text under both of its classes, once where they are one."""
    for role, other in ((pairs.c.subject, None), (pairs.c.object, pairs.c.subject)):
        query = _texts(run, (role, text_checks.c.flags, func.count())).group_by(role, text_checks.c.flags)
        if other is not None:
            query = query.where(role != other)
        yield from map(tuple, connection.execute(query))


def verifications(connection: Connection, pair_ids: Collection[int]) -> dict[int, dict[int, float]]:
    """The scores that there are: pair -> position of the text -> P(the relation holds)."""
    found: dict[int, dict[int, float]] = {}
    query = select(text_checks.c.pair_id, text_checks.c.position, text_checks.c.verification)
    query = query.where(text_checks.c.pair_id.in_(pair_ids), text_checks.c.verification.is_not(None))
    for row in connection.execute(query):
        found.setdefault(row.pair_id, {})[row.position] = row.verification
    return found


def basis_of(connection: Connection, run: Run) -> list[Any]:
    """What a run's figures are computed from, in short: equal again, the figures are."""
    sources = select(enqueues.c.id, enqueues.c.created_at).where(enqueues.c.run_id == run.id).order_by(enqueues.c.id)
    mine = text_checks.c.run_id == run.id
    scores = select(func.count(text_checks.c.verification), func.coalesce(func.sum(text_checks.c.verification), 0.0))
    told = [list(row) for row in connection.execute(sources)]
    return [told, [float(value) for value in connection.execute(scores.where(mine)).one()]]


def keep_figures(connection: Connection, run: Run, basis: list[Any], figures: dict[str, Any]) -> None:
    """Keep a run's figures with what they were computed from."""
    statement = insert(connection, run_figures).values(run_id=run.id, basis=basis, figures=figures)
    renewed = {name: statement.excluded[name] for name in ("basis", "figures")}
    connection.execute(statement.on_conflict_do_update(index_elements=["run_id"], set_=renewed))


def figures_of(connection: Connection, run: Run) -> tuple[list[Any], dict[str, Any]] | None:
    """A run's figures as of its last check, after what they were computed from; None before the first."""
    query = select(run_figures.c.basis, run_figures.c.figures).where(run_figures.c.run_id == run.id)
    row = connection.execute(query).first()
    return None if row is None else (row.basis, row.figures)


def rules_of(connection: Connection, run: Run) -> str | None:
    """The rules by which most of the run's pairs were checked last."""
    query = select(checked_pairs.c.rules).where(checked_pairs.c.run_id == run.id).group_by(checked_pairs.c.rules)
    return connection.execute(query.order_by(func.count().desc()).limit(1)).scalar_one_or_none()


def _described(run: Run, columns: Collection[Any]) -> Select[Any]:
    joined = pairs.join(results, answers(results))
    joined = joined.outerjoin(checked_pairs, checked_pairs.c.pair_id == pairs.c.id)
    return select(*columns).select_from(joined).where(pairs.c.run_id == run.id, is_live())


def _is_unchecked(rules: str) -> Any:
    return or_(
        checked_pairs.c.pair_id.is_(None), checked_pairs.c.request != pairs.c.request, checked_pairs.c.rules != rules
    )


def _texts(run: Run, columns: Collection[Any]) -> Select[Any]:
    joined = text_checks.join(checked_pairs, checked_pairs.c.pair_id == text_checks.c.pair_id)
    present = and_(pairs.c.id == checked_pairs.c.pair_id, pairs.c.request == checked_pairs.c.request)
    joined = joined.join(pairs, present)
    return select(*columns).select_from(joined).where(text_checks.c.run_id == run.id, is_live())
