"""Who is in which group of the directory: users, service principals, managed identities, and groups in groups."""

from collections.abc import Callable, Iterable

from podidentity_lab.azure.state import State


def groups_of(state: State, object_id: str, *, transitive: bool) -> list[str]:
    """Return the object IDs of the groups that somebody is in; with `transitive`, of the groups' groups too."""
    direct = [group.object_id for group in state.directory_groups.values() if object_id in group.members]
    return _closure(direct, lambda group_id: groups_of(state, group_id, transitive=False)) if transitive else direct


def members_of(state: State, group_id: str, *, transitive: bool) -> list[str]:
    """Return the object IDs of a group's members that are there; with `transitive`, of its groups' members too."""

    def direct(object_id: str) -> list[str]:
        group = state.directory_groups.get(object_id)
        return [member for member in group.members if kind(state, member)] if group else []

    return _closure(direct(group_id), direct) if transitive else direct(group_id)


def holders(state: State, object_id: str) -> set[str]:
    """Return whose roles somebody has: their own, and those of all groups that they are in."""
    return {object_id, *groups_of(state, object_id, transitive=True)}


def kind(state: State, object_id: str) -> str:
    """Return what a directory object is, as role assignments call it: User, Group, ServicePrincipal; "" for none."""
    if object_id in state.principals:
        return "ServicePrincipal"
    if object_id in state.users:
        return "User"
    return "Group" if object_id in state.directory_groups else ""


def forget(state: State, object_id: str) -> None:
    """Take a directory object out of all groups."""
    for group in state.directory_groups.values():
        for ids in (group.members, group.owners):
            if object_id in ids:
                ids.remove(object_id)


def _closure(start: Iterable[str], neighbours: Callable[[str], list[str]]) -> list[str]:
    """Return all that can be reached, each once, nearest first: groups may contain one another in a circle."""
    reached = list(dict.fromkeys(start))
    for object_id in reached:
        reached += [neighbour for neighbour in neighbours(object_id) if neighbour not in reached]
    return reached
