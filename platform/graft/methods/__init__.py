"""How a task is learned: the catalogue of methods."""

from importlib.metadata import entry_points

METHODS = {
    "probe": "graft.methods.probe:Probe",
    "icl": "graft.methods.icl:InContextLearning",
}
"""Name to `"module:Class"`; the class is the method's section of a spec and builds its graph."""

METHODS |= {point.name: point.value for point in entry_points(group="graft.methods") if point.name not in METHODS}
