"""What runs on the far side of the sandbox: the fork server, and the processes that it forks.

A process inherits the memory of its server, and makes a copy of each page that it writes to. So
nothing here imports threads, logging or anything else that only the grader's side needs.
"""
