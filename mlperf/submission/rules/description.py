"""Rules on the descriptions of a system and of an implementation, which people write."""

from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from errors import InputFileError
from mlperf.submission.findings import PLACEHOLDER, Fault
from mlperf.submission.rounds import ONE_OF, REQUIRED_SCENARIO
from mlperf.submission.tree import MEASUREMENTS, README, Result, System, line_with, load_json

# Of systems/<system>.json; True: it may not be empty
FIELDS = {
    **dict.fromkeys(("division", "submitter", "status", "system_name", "system_type"), True),
    "system_type_detail": False,
    **dict.fromkeys(("number_of_nodes", "host_processor_model_name"), True),
    **dict.fromkeys(("host_processors_per_node", "host_processor_core_count"), True),
    "host_processor_frequency": False,
    "host_processor_caches": False,
    "host_processor_interconnect": False,
    **dict.fromkeys(("host_memory_capacity", "host_memory_configuration"), True),
    **dict.fromkeys(("host_storage_capacity", "host_storage_type"), True),
    **dict.fromkeys(("host_networking", "host_networking_topology"), True),
    "host_network_card_count": True,
    **dict.fromkeys(("accelerators_per_node", "accelerator_model_name"), True),
    **dict.fromkeys(("accelerator_memory_capacity", "accelerator_memory_configuration"), True),
    "accelerator_frequency": False,
    **dict.fromkeys(("accelerator_host_interconnect", "accelerator_interconnect"), True),
    "accelerator_interconnect_topology": False,
    "accelerator_on-chip_memories": False,
    **dict.fromkeys(("cooling", "framework", "operating_system", "other_software_stack"), True),
    "hw_notes": False,
    "sw_notes": False,
}
MEASUREMENT_FIELDS = (
    *("input_data_types", "retraining", "starting_weights_filename", "weight_data_types"),
    "weight_transformations",
)
NUMBERS = ("number_of_nodes", "accelerators_per_node")  # the official checker multiplies them
STATUSES = ("available", "preview", "rdi")
SYSTEM_TYPES = ("datacenter", "datacenter,edge", "edge,datacenter")


def system_fields(system: System) -> Iterator[Fault]:
    """The system's description has every field, with a value where one is required."""
    path = system.description
    try:
        description = load_json(path)
    except InputFileError as error:
        yield Fault(path, str(error).removeprefix(f"{path}: "))
        return
    for name, filled in FIELDS.items():
        if name not in description:
            yield Fault(path, f"the field {name} is missing")
        elif filled and not description[name]:
            yield _fault(path, name, f"{name} is empty: it needs a value")
    yield from _expected(path, description, "division", (system.division,))
    yield from _expected(path, description, "submitter", (system.organisation.lower(),))
    yield from _expected(path, description, "status", STATUSES)
    yield from _expected(path, description, "system_type", SYSTEM_TYPES)
    for name in NUMBERS:
        value = str(description.get(name) or 0)
        if PLACEHOLDER not in value and not value.isdecimal():
            yield _fault(path, name, f"{name} is {value!r}, not a whole number")
    if "is_network" in description and str(description["is_network"]) != "false":
        message = f"is_network is {description['is_network']!r}, not 'false': the network division"
        yield _fault(path, "is_network", f"{message} has rules of its own")


def placeholders(system: System) -> Iterator[Fault]:
    """No field was left as `init` wrote it."""
    paths = [system.description, *sorted(system.sources.rglob("*.md"))]
    for result in system.results:
        paths += [result.folder / MEASUREMENTS, result.folder / README]
    for path in paths:
        if path.is_file():
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if PLACEHOLDER in line:
                    yield Fault(path, line.strip().rstrip(","), number)


def sources(system: System) -> Iterator[Fault]:
    """The folder with the code is there and not empty."""
    if not any(path.is_file() for path in system.sources.rglob("*")):
        yield Fault(system.sources, "is missing or empty: it holds the submission's code")


def scenarios(system: System) -> Iterator[Fault]:
    """In the closed division there are Offline and one of Server and Interactive."""
    here = {result.scenario for result in system.results}
    folder = system.home / "results" / system.name
    if not here:
        if not any(path.is_dir() for path in folder.glob("*")):  # it may have other benchmarks'
            yield Fault(folder, "no results for this system")
        return
    if system.closed:
        modes = {result.mode for result in system.results}
        yield from (Fault(folder, message) for message in missing_scenarios(modes))
    for result in system.results:
        if result.mode is None:
            yield Fault(result.folder, f"{result.scenario} is not a scenario of this benchmark")


def missing_scenarios(modes: Container[str | None]) -> Iterator[str]:
    """What the closed division lacks, given the modes that there are results of."""
    if REQUIRED_SCENARIO.lower() not in modes:
        yield f"no results of {REQUIRED_SCENARIO}, which is required"
    if not any(name.lower() in modes for name in ONE_OF):
        yield f"one of {' and '.join(ONE_OF)} is required beside {REQUIRED_SCENARIO}"


def power(system: System) -> Iterator[Fault]:
    """systems/<system>_power.yaml, if there is one, lists power supplies with their watts."""
    path = system.power_description
    if not path.is_file():
        return
    if not system.round.power_description:
        message = f"round {system.round.name} does not read this file"
        yield Fault(path, message, level="note")
        return
    content = read_yaml(path)
    supplies = list(_supplies(content))
    if not isinstance(content, dict):
        yield Fault(path, "not a YAML mapping")
    elif not supplies:
        yield Fault(path, "no component has both 'PSUs' and 'Min PSUs Needed'")
    for label, units, least in supplies:
        watts = [unit.get("PowerCapacityWatts") for unit in units if isinstance(unit, dict)]
        positive = [value for value in watts if isinstance(value, int | float) and value > 0]
        if len(positive) < len(units):
            yield Fault(path, f"{label}: each PSU needs PowerCapacityWatts, a number of watts")
        if not isinstance(least, int) or not 0 < least <= len(units):
            yield Fault(path, f"{label}: Min PSUs Needed is {least!r}, of {len(units)} PSUs")


def measurements(result: Result) -> Iterator[Fault]:
    """measurements.json has every field, with a value."""
    path = result.folder / MEASUREMENTS
    try:
        values = load_json(path)
    except InputFileError:
        return  # a fault of its own
    for name in MEASUREMENT_FIELDS:
        if not values.get(name):
            yield _fault(
                path, name, f"the field {name} is {'empty' if name in values else 'missing'}"
            )


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, or None if it is none."""
    import yaml

    try:
        return yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def _supplies(node: Any, label: str = "system") -> Iterator[tuple[str, list[Any], Any]]:
    """Label, power supplies and how many of them are needed, of each component."""
    if isinstance(node, list):
        for child in node:
            yield from _supplies(child, label)
    if not isinstance(node, dict):
        return
    keys = {str(key).lower(): key for key in node}
    if {"psus", "min psus needed"} <= set(keys):
        units = node[keys["psus"]]
        yield label, units if isinstance(units, list) else [], node[keys["min psus needed"]]
        return
    for key, child in node.items():
        yield from _supplies(child, str(key))


def _expected(
    path: Path, description: dict[str, Any], name: str, allowed: tuple[str, ...]
) -> Iterator[Fault]:
    value = str(description.get(name, ""))
    if value and PLACEHOLDER not in value and value.lower() not in allowed:
        yield _fault(path, name, f"{name} is {value!r}, not {' or '.join(map(repr, allowed))}")


def _fault(path: Path, name: str, message: str) -> Fault:
    return Fault(path, message, line_with(path, f'"{name}"'))
