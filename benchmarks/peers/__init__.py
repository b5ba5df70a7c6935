"""Other ways of doing what the hops do, each in a process and, where it needs packages of its own, an environment of
its own. `*_job.py` are what those processes run: ordinary code, as somebody would write it with that library."""
