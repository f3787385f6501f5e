"""What `import idempo` costs and loads, against its heaviest dependency. Each import in a process of its own."""

import json
import subprocess
import sys

from benchmarks.method import Measured, Plan, Subject, summed_up, turns
from benchmarks.stores import Stores

__all__ = ["measure"]

IDEMPO = "import idempo"
HEAVIEST = {
    "import idempo; idempo.RedisCache": "import redis",
    "import idempo; idempo.UniqueInsert": "import sqlalchemy",
}
NEEDED = ("tenacity", "msgspec")
"""What `import idempo` may load; the rest comes with the strategy that uses it."""
TIMER = """
import json, sys, time
before = set(sys.modules)
began = time.perf_counter()
{code}
taken = (time.perf_counter() - began) * 1e6
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps([taken, sorted(loaded - sys.stdlib_module_names), len(set(sys.modules) - before)]))
"""


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of this benchmark, by title."""
    subjects = [Subject(f"import {name}", str, str) for name in NEEDED]
    subjects += [Subject(code, str, str) for code in HEAVIEST.values()]
    # The floor of `import idempo` is the heavier of what it needs, which is known only afterwards.
    subjects += [Subject(IDEMPO, str, str)]
    subjects += [Subject(code, str, str, floor) for code, floor in HEAVIEST.items()]
    times: dict[str, list[list[float]]] = {subject.name: [] for subject in subjects}
    notes: dict[str, str] = {}
    for subject in turns(subjects, Plan(rounds=max(1, plan.rounds // 4), seed=plan.seed)):
        taken, packages, count = imported(subject.name)
        times[subject.name].append([taken])
        notes[subject.name] = f"loads {count} modules, of {', '.join(packages) or 'the standard library'}"
    rows = {
        subject.name: summed_up(subject, times[subject.name]) for subject in subjects if not subject.floor
    }
    heaviest = max((f"import {name}" for name in NEEDED), key=lambda name: rows[name].median)
    found = []
    for subject in subjects:
        floor = heaviest if subject.name == IDEMPO else subject.floor
        judged = Subject(subject.name, str, str, floor, note=notes[subject.name])
        found.append(summed_up(judged, times[subject.name], times.get(floor)))
    return {"import": found}


def imported(code: str) -> tuple[float, list[str], int]:
    """Return how many microseconds it took, what packages it loaded, and how many modules."""
    script = TIMER.format(code=code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    taken, packages, count = json.loads(done.stdout)
    named = [name for name in packages if not name.startswith("_") and name != "cython_runtime"]
    return taken, named, count
