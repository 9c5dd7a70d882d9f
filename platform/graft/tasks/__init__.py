"""What is to be learned: the catalogue of tasks."""

TASKS = {
    "file": "graft.tasks.file:FileTask",
    "python-docs": "graft.tasks.python_docs:PythonDocs",
    "digits": "graft.tasks.vectors:Digits",
    "wine": "graft.tasks.vectors:Wine",
    "key-value": "graft.tasks.key_value:KeyValueTask",
    "xtreme-up-qa": "graft.tasks.xtreme_up:XtremeUpQa",
    "xor-attriqa": "graft.tasks.xor_attriqa:XorAttriQa",
    "xquad-qa": "graft.tasks.xquad:XquadQa",
    "xquad-attribution": "graft.tasks.xquad:XquadAttribution",
    "humaneval": "graft.tasks.programs:HumanEval",
    "mbpp": "graft.tasks.programs:Mbpp",
    "breast-cancer": "graft.tasks.vectors:BreastCancer",
}
"""Name to `"module:Class"`; the class is the task's section of a spec."""
