"""`idempo demo`: payment callbacks, several processes, some of them killed, and a ledger that has to agree in the end.

`callbacks` reads the input, `postings` is the decorated function and its ledger, `worker` a process and `crew` its
parent, `reconcile` the independent check, `screen` what people see, and `run` puts them together.
"""
