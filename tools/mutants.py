"""Changes the code in one place at a time and prints the changes that no fast test notices: `mutants.py MODULE ...`.

    mutants.py choosing imds            two mutants of each place and kind; without a module: of the whole boundary
    mutants.py --sample 30 cache        a sample of 30 of those, the same each time
    mutants.py --complete choosing         all: at a `<`, say, each other comparison

cosmic-ray makes the mutants, of a copy of the tree below build/mutants. Each is tested in a fork of a process that has
collected the tests already, which takes a fifth of the time. Exit status 1: fewer than 90 % were noticed.
"""

import argparse
import contextlib
import difflib
import itertools
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import types
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build/mutants"
TREE = WORK / "tree"
COPY_OF = ("src", "tests", "tools", "deploy", "examples", "docs", "pyproject.toml", "README.md")
MINIMUM_RATE = 0.9
_NUMBERS = "core/NumberReplacer"
_SIZE = re.compile(r"[A-Z_]+ = \d{3,}\b")
_ANNOTATIONS = "core/ReplaceBinaryOperator_BitOr_"
"""`X | None` is a type nearly everywhere; changing it changes no behaviour."""


TIMEOUT_SECONDS = 90.0
SETTINGS = """\
[cosmic-ray]
module-path = "src/podidentity/{module}"
timeout = 90.0
excluded-modules = []
test-command = ""

[cosmic-ray.distributor]
name = "local"
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A module, and the tests that should notice."""

    module: str
    tests: tuple[str, ...]


_NMI = "tests/daemons/nmi"
TARGETS = {
    "choosing": Target("core/tokens/choosing.py", ("tests/unit/core/tokens/test_choosing.py",)),
    "imds": Target("core/tokens/imds.py", ("tests/unit/core/tokens/test_imds.py",)),
    "heads": Target(
        "nmi/heads.py",
        (
            f"{_NMI}/test_heads.py",
            f"{_NMI}/test_hostile.py",
            f"{_NMI}/test_conformance.py",
            "tests/fuzz/test_fuzz.py::test_the_seeds_and_the_hostile_table_hold",
            "tests/fuzz/test_fuzz.py::test_the_check_can_fail",
        ),
    ),
    "access": Target("nmi/access.py", (f"{_NMI}/test_access.py", f"{_NMI}/test_own_decision.py")),
    "anti_spoof": Target("nmi/adapters/anti_spoof.py", (f"{_NMI}/test_anti_spoof.py",)),
    "cache": Target("issuance/cache.py", (f"{_NMI}/test_cache.py",)),
    "pod_lookup": Target("nmi/pod_lookup.py", (f"{_NMI}/test_pod_lookup.py",)),
}
"""The modules that make up the security boundary, each with its tests."""


def main() -> int:
    """Measure the modules of the command line; return 1 when too few mutants of any were noticed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="at most N mutants of each")
    parser.add_argument("--complete", action="store_true", help="all mutants, not two of each place and kind")
    options = parser.parse_args()
    unknown = sorted({*options.modules} - TARGETS.keys())
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such module; choose from {', '.join(TARGETS)}")
    names = options.modules or [*TARGETS]
    if len(names) > 1:  # each in a process of its own: the tests of one would find the mutants of another
        flags = [f"--sample={options.sample}", *(["--complete"] if options.complete else [])]
        return max(subprocess.run([sys.executable, __file__, *flags, name], check=False).returncode for name in names)
    copy_tree()
    return int(measure(names[0], options.sample, complete=options.complete) < MINIMUM_RATE)


def copy_tree() -> None:
    """Copy what the tests need: cosmic-ray changes files in place."""
    shutil.rmtree(TREE, ignore_errors=True)
    TREE.mkdir(parents=True)
    for name in COPY_OF:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, TREE / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(ROOT / name, TREE / name)


def measure(name: str, sample: int, *, complete: bool) -> float:
    """Test the mutants of a module, print those that live, and return the share that was noticed."""
    mutations = mutations_of(name)
    mutations = choose(mutations if complete else at_each_place(mutations), sample)
    os.chdir(TREE)
    sys.path.insert(0, str(TREE / "src"))
    os.environ["PYTHONPATH"] = str(TREE / "src")
    sys.dont_write_bytecode = True
    judge = Judge(TARGETS[name], mutations)
    pytest.main(["-q", "-s", "-p", "no:cacheprovider", "--timeout=20", *TARGETS[name].tests], plugins=[judge])
    rate = judge.noticed / max(judge.judged, 1)
    print(f"{name}: {judge.noticed} of {judge.judged} mutants noticed, {rate:.0%}", flush=True)
    return rate


class Judge:
    """A plugin of pytest: runs the tests not once, but for each mutant in a fork of the process that collected them."""

    def __init__(self, target: Target, mutations: list[MutationSpec]) -> None:
        self.judged = self.noticed = 0
        self._module = f"podidentity.{target.module.removesuffix('.py').replace('/', '.')}"
        self._source = (TREE / "src/podidentity" / target.module).read_text()
        self._mutations = mutations

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Judge all mutants. Raises `UsageError` when the tests of the unchanged module fail."""
        if self._is_noticed(session, self._source):
            raise pytest.UsageError(f"the tests of {self._module} fail as it is; mend them first")
        for mutation in self._mutations:
            operator = get_operator(mutation.operator_name)(**mutation.operator_args)
            try:
                mutant = mutate_code(self._source, operator, mutation.occurrence)
            except AttributeError:  # cosmic-ray cannot replace an exception with a dot in its name
                continue
            self.judged += 1
            if self._is_noticed(session, mutant):
                self.noticed += 1
                print(".", end="", file=sys.stderr, flush=True)
            else:
                lines = self._source.splitlines(), mutant.splitlines()
                print(*difflib.unified_diff(*lines, self._module, lineterm="", n=1), sep="\n", flush=True)
        return True

    def _is_noticed(self, session: pytest.Session, source: str) -> bool:
        """Whether a test fails with this source, or takes too long."""
        child = os.fork()
        if not child:
            self._run_tests(session, source)
        descriptor = os.pidfd_open(child)
        in_time = select.select([descriptor], [], [], TIMEOUT_SECONDS)[0]
        os.close(descriptor)
        with contextlib.suppress(ProcessLookupError):  # also what its tests have started
            os.killpg(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1] != 0 or not in_time

    def _run_tests(self, session: pytest.Session, source: str) -> None:
        """Be the process of one mutant: run the tests up to the first that fails, and end."""
        status = 1
        try:
            os.setpgid(0, 0)
            silence = os.open(os.devnull, os.O_RDWR)
            for descriptor in range(3):
                os.dup2(silence, descriptor)
            replace_module(self._module, source)
            for item, next_item in itertools.zip_longest(session.items, session.items[1:]):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=next_item)
                if session.testsfailed:
                    break
            status = int(session.testsfailed > 0)
        finally:
            os._exit(status)


def replace_module(name: str, source: str) -> None:
    """Put what `source` defines in the place of a loaded module's objects, wherever these were imported."""
    module = sys.modules[name]
    old = dict(vars(module))
    exec(compile(source, name, "exec"), vars(module))  # noqa: S102  # our own code, a little changed
    keys = {id(value): key for key, value in old.items() if getattr(value, "__module__", "") == name}
    for importer in filter(is_ours, [*sys.modules.values()]):
        for key, value in [*vars(importer).items()]:
            origin = keys.get(id(value), key if value is old.get(key) else "__")  # numbers and texts go by their names
            if not origin.startswith("__"):
                vars(importer)[key] = vars(module)[origin]


def is_ours(module: types.ModuleType) -> bool:
    """Whether a module is in the copy."""
    return str(getattr(module, "__file__", "") or "").startswith(str(TREE))


def mutations_of(name: str) -> list[MutationSpec]:
    """Return all mutations of a module that change behaviour, in the order of their places."""
    config, session = WORK / f"{name}.toml", WORK / f"{name}.sqlite"
    config.write_text(SETTINGS.format(module=TARGETS[name].module))
    session.unlink(missing_ok=True)
    program = str(Path(sys.executable).with_name("cosmic-ray"))
    subprocess.run([program, "init", str(config), str(session)], cwd=TREE, check=True, stdout=subprocess.DEVNULL)
    with use_db(session, WorkDB.Mode.open) as work:
        mutations = [item.mutations[0] for item in work.work_items]
    mutations.sort(key=lambda mutation: (mutation.start_pos, mutation.operator_name, mutation.occurrence))
    return [mutation for mutation in mutations if is_noticeable(mutation)]


def at_each_place(mutations: list[MutationSpec]) -> list[MutationSpec]:
    """Return two of each place and kind of change, the same each time."""
    places: dict[tuple[object, ...], list[MutationSpec]] = defaultdict(list)
    for mutation in mutations:
        kind = mutation.operator_name.partition("/")[2].partition("_")[0]
        places[mutation.start_pos, kind].append(mutation)
    return [mutation for place in places.values() for mutation in choose(place, 2)]


def choose(mutations: list[MutationSpec], sample: int) -> list[MutationSpec]:
    """Return a sample, the same each time; all of them when `sample` is 0."""
    if not 0 < sample < len(mutations):
        return mutations
    return random.Random(0).sample(mutations, sample)  # noqa: S311  # no secret


def is_noticeable(mutation: MutationSpec) -> bool:
    """Whether a test could notice it: no annotation, no `*` in a list of parameters, no decorator, no size of a memory.

    A memory of 4,097 entries is as bounded as one of 4,096.
    """
    row, column = mutation.start_pos
    line = (TREE / mutation.module_path).read_text().splitlines()[row - 1]
    is_size = mutation.operator_name == _NUMBERS and _SIZE.match(line) is not None
    is_star = line[column : column + 2] == "*,"
    return not (mutation.operator_name.startswith(_ANNOTATIONS) or is_star or is_size or line.lstrip().startswith("@"))


if __name__ == "__main__":
    sys.exit(main())
