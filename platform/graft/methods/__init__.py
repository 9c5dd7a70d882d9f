"""How a task is learned: the catalogue of methods."""

from importlib.metadata import entry_points

METHODS = {
    "probe": "graft.methods.probe:Probe",
    "tart": "graft.methods.tart:Tart",
    "icl": "graft.methods.icl:InContextLearning",
    "full": "graft.methods.full:Full",
    "peft": "graft.methods.peft:Peft",
    "adapter": "graft.methods.adapter:Adapter",
    "instruct": "graft.methods.instruct:Instruct",
    "distill": "graft.methods.distill:Distill",
    "fiat": "graft.methods.fiat:Fiat",
    "calm": "graft.methods.calm:Calm",
}
"""Name to `"module:Class"`; the class is the method's section of a spec and builds its graph."""

METHODS |= {point.name: point.value for point in entry_points(group="graft.methods") if point.name not in METHODS}
